"""The images of each class on each side, and what so many test images can tell."""

import numpy as np

from tl_research import metrics
from tl_research.data.dataset import Dataset
from tl_research.data.split import SIDES, printable

_MAX_CLASSES = 10  # of more only the smallest and the largest have a line
_FEW_STEPS = 10  # test images whose every possible accuracy is said


def describe_split(data: Dataset) -> list[str]:
    """Returns lines on the sides of a `Dataset`; none where labels are no classes."""
    if data.train.labels.dtype != np.int32:
        return []
    return [*_table(data), _test_resolution(len(data.test))]


def counts_of(data: Dataset) -> np.ndarray:
    """Returns int [K, 3], how many images of each class, or with it in their set, are on each
    side.
    """
    labels = [getattr(data, side).labels for side in SIDES]
    count = len(data.classes)
    each = [(of > 0).sum(0) if of.ndim == 2 else np.bincount(of, minlength=count) for of in labels]
    return np.stack(each, 1)


def _table(data):
    """Returns a line for each class, or for the smallest and the largest of many."""
    counts = counts_of(data)
    rows = list(zip(map(printable, data.classes), counts.tolist()))
    if len(rows) > _MAX_CLASSES:
        totals = counts.sum(1)
        rows = [rows[totals.argmin()], rows[totals.argmax()]]
        names = [f"{name} (the {which})" for (name, _), which in zip(rows, ("fewest", "most"))]
        rows = [(name, row) for name, (_, row) in zip(names, rows)]
    width = max(len(name) for name, _ in rows)
    return [
        f"split: {name:{width}}  "
        + ", ".join(f"{side} {count:>{len(str(counts.max()))}}" for side, count in zip(SIDES, row))
        for name, row in rows
    ]


def _test_resolution(count):
    """Returns a line that says how fine, and how certain, an accuracy over `count` images is."""
    if count <= _FEW_STEPS:
        steps = [f"{100 * right / count:.3g}" for right in range(count + 1)]
        can_be = f"can only be {', '.join(steps[:-1])} or {steps[-1]} %"
    else:
        low, high = metrics.wilson_interval(round(0.9 * count), count)
        can_be = f"moves in steps of {100 / count:.2g} points, and of one near 90 % the 95 % "
        can_be += f"interval is {100 * low:.0f}-{100 * high:.0f} %"
    advice = "; use --split=..., add images, or look at cross_validation"
    return f"test: {count} images; the accuracy {can_be}{advice * (count < 100)}"
