"""The images of each class on each side, and how precise the test accuracy can be."""

import numpy as np

from tl_research import metrics
from tl_research.data.dataset import Dataset
from tl_research.data.split import SIDES, printable

_MAX_CLASSES = 10  # with more, only the smallest and the largest class are listed
_FEW_STEPS = 10  # up to this number of test images, all possible accuracies are listed


def describe_split(data: Dataset) -> list[str]:
    """Returns lines on the sides of the split; none if labels are not classes."""
    if data.train.labels.dtype != np.int32:
        return []
    return [*_table(data), _test_resolution(len(data.test))]


def counts_of(data: Dataset) -> np.ndarray:
    """Returns int [K, 3], the number of images of each class on each side; an image with a set of
    classes counts for each of them.
    """
    labels = [getattr(data, side).labels for side in SIDES]
    count = len(data.classes)
    each = [(of > 0).sum(0) if of.ndim == 2 else np.bincount(of, minlength=count) for of in labels]
    return np.stack(each, 1)


def _table(data):
    """Returns a line per class, or for the smallest and the largest of many."""
    counts = counts_of(data)
    rows = list(zip(map(printable, data.classes), counts.tolist()))
    if len(rows) > _MAX_CLASSES:
        totals = counts.sum(1)
        ends = {"fewest": rows[totals.argmin()], "most": rows[totals.argmax()]}
        rows = [(f"{name} (the {which})", row) for which, (name, row) in ends.items()]
    width = max(len(name) for name, _ in rows)
    return [
        f"split: {name:{width}}  "
        + ", ".join(f"{side} {count:>{len(str(counts.max()))}}" for side, count in zip(SIDES, row))
        for name, row in rows
    ]


def _test_resolution(count):
    """Returns a line on the resolution and uncertainty of an accuracy over `count` images."""
    if count <= _FEW_STEPS:
        steps = [f"{100 * right / count:.3g}" for right in range(count + 1)]
        can_be = f"can only be {', '.join(steps[:-1])} or {steps[-1]} %"
    else:
        low, high = metrics.wilson_interval(round(0.9 * count), count)
        can_be = f"changes in steps of {100 / count:.2g} points, and the 95 % interval of one near "
        can_be += f"90 % is {100 * low:.0f}-{100 * high:.0f} %"
    advice = "; add images, use --split, or see cross_validation in results.json"
    return f"test: {count} images; the accuracy {can_be}{advice * (count < 100)}"
