"""The table of the split, and what is said of the test images, by hand."""

import types

import numpy as np
import pytest

from tl_research.data.pipeline import Examples
from tl_research.reporting.split_text import describe_split


def data(**counts):
    """Returns a data set of so many images of each class on the sides, by class."""
    sides = {}
    for k, side in enumerate(("train", "validation", "test")):
        labels = np.repeat(np.arange(len(counts)), [c[k] for c in counts.values()]).astype(np.int32)
        sides[side] = Examples((), (), labels, 16, None)
    return types.SimpleNamespace(classes=tuple(counts), **sides)


def test_each_of_a_few_classes_has_a_line():
    assert describe_split(data(ant=(160, 20, 20), beetle=(8, 1, 0)))[:-1] == [
        "split: ant     train 160, validation  20, test  20",
        "split: beetle  train   8, validation   1, test   0",
    ]


def test_of_many_classes_the_fewest_and_the_most_have_one():
    counts = {f"c{i}": (8 + i % 7, 1, 1) for i in range(5, 16)}
    assert describe_split(data(**counts))[:-1] == [
        "split: c7 (the fewest)  train  8, validation  1, test  1",
        "split: c6 (the most)    train 14, validation  1, test  1",
    ]


@pytest.mark.parametrize(
    "count, said",
    [
        (
            4,
            "test: 4 images; the accuracy can only be 0, 25, 50, 75 or 100 %; add images, use "
            "--split, or see cross_validation in results.json",
        ),
        # 18 of 20: the interval of Wilson is 0.6990 to 0.9721
        (
            20,
            "test: 20 images; the accuracy changes in steps of 5 points, and the 95 % interval of "
            "one near 90 % is 70-97 %; add images, use --split, or see cross_validation in "
            "results.json",
        ),
        # 360 of 400: 0.8667 to 0.9257
        (
            400,
            "test: 400 images; the accuracy changes in steps of 0.25 points, and the 95 % interval "
            "of one near 90 % is 87-93 %",
        ),
    ],
)
def test_what_so_many_test_images_can_tell(count, said):
    assert describe_split(data(ant=(1, 1, count)))[-1] == said


def test_labels_that_are_no_classes_have_no_table():
    table = data(age=(3, 3, 3))
    table.train = Examples((), (), np.zeros(3, np.float32), 16, None)
    assert describe_split(table) == []


def test_names_of_classes_cannot_begin_a_line_or_steer_a_terminal():
    lines = describe_split(data(**{"a\nRESULT {}": (9, 1, 1), "\x1b[2J": (9, 1, 1)}))
    assert lines[:2] == [
        f"split: {name:12}  train 9, validation 1, test 1" for name in ("a\\nRESULT {}", "\\x1b[2J")
    ]
