"""The side of a file by hand: ranks, cuts, groups, and what an image more moves."""

import collections
import hashlib

import pytest

from tl_research import errors
from tl_research.data import split

FRACTIONS = (0.8, 0.1, 0.1)
CLASSES = ("daisy", "roses")
SPLIT = ("validation", "test")


def assign(labels, groups, *, fixed=None, contents=None, classes=CLASSES, fractions=FRACTIONS):
    """Splits files named f0, f1, ... of these labels and groups, each of its own content."""
    names = [f"f{i}" for i in range(len(labels))]
    contents = contents or [f"{group}-{i}" for i, group in enumerate(groups)]
    fixed = fixed or [None] * len(labels)
    return split.assign_sides(names, labels, contents, groups, fixed, classes, fractions, 3)


def singles(count, label=0):
    """Returns the groups of so many files that are near-copies of none."""
    return [f"{label}/{i:03d}" for i in range(count)]


def ranked(groups):
    """Returns groups in their order, found by other code than the split's."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"3\n{group}".encode()).hexdigest())


def counts(count, fractions=FRACTIONS, label=0):
    """Returns how many of so many images of one class are on each side."""
    groups = singles(count, label)
    sides = assign(
        [label] * count + [1 - label] * 3, groups + singles(3, 1 - label), fractions=fractions
    ).sides
    return tuple(sides[:count].count(side) for side in split.SIDES)


def test_content_hash_is_sha256():
    # sha256sum says so
    assert (
        split.content_sha256(b"abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    "count, expected",
    [
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),  # 3.2 and 3.6 are nearest to 3 and 4, which leave no test image
        (10, (8, 1, 1)),
        (11, (9, 1, 1)),  # cuts at 8.8 and 9.9
        (25, (20, 3, 2)),  # cuts at 20 and 22.5, in the middle: the later
        (40, (32, 4, 4)),
        (258, (206, 26, 26)),  # cuts at 206.4 and 232.2
    ],
)
def test_shares_hold_within_a_class(count, expected):
    assert counts(count) == expected


def test_odd_classes_take_the_earlier_of_two_cuts():
    assert counts(25, label=1) == (20, 2, 3)


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)])
def test_no_side_of_a_class_is_empty(fractions):
    assert all(min(counts(count, fractions)) >= 1 for count in range(3, 60))


def test_groups_are_ranked_by_the_hash_of_seed_and_content_and_cut():
    groups = singles(20)
    sides = dict(zip(groups, assign([0] * 20 + [1] * 3, groups + singles(3, 1)).sides))
    in_order = [sides[group] for group in ranked(groups)]
    assert in_order == ["train"] * 16 + ["validation"] * 2 + ["test"] * 2


def test_order_of_the_files_decides_nothing():
    labels, groups = [0, 1] * 20, singles(20) + singles(20, 1)
    sides = dict(zip(groups, assign(labels, groups).sides))
    backwards = assign(labels[::-1], groups[::-1]).sides
    assert dict(zip(groups[::-1], backwards)) == sides


def test_image_more_moves_at_most_one_across_each_cut_of_its_class():
    groups, others = singles(120), singles(25, 1)
    before = {}
    for count in range(60, 121):
        labels = [0] * count + [1] * 25
        now = dict(zip(groups[:count] + others, assign(labels, groups[:count] + others).sides))
        moved = [(before[group], now[group]) for group in before if before[group] != now[group]]
        assert len(moved) <= 2 and max(collections.Counter(moved).values(), default=0) <= 1
        assert set(moved) <= {
            (a, b) for pair in zip(split.SIDES, split.SIDES[1:]) for a, b in (pair, pair[::-1])
        }
        assert all(now[group] == before.get(group, now[group]) for group in others)
        before = now


def test_group_shares_a_side_and_a_cut_passes_it_on_the_nearer_end():
    # 10 images, cut at 8 and 9; a pair is larger than a tenth, and so ranked first
    groups = singles(8) + ["pair", "pair"]
    result = assign([0] * 10 + [1] * 3, groups + singles(3, 1))
    sides = dict(zip(groups, result.sides))
    assert result.sides[8:10] == ("train", "train")
    order = ranked(singles(8))
    assert [sides[group] for group in order] == ["train"] * 6 + ["validation", "test"]
    assert result.groups == (None,) * 8 + ("pair", "pair") + (None,) * 3
    # 40 images in pairs: 16 pairs, 2 and 2, in the order of their hashes
    groups = singles(20)
    result = assign([0] * 40 + [1] * 3, groups * 2 + singles(3, 1))
    assert result.sides[:20] == result.sides[20:40]
    sides = dict(zip(groups, result.sides))
    in_order = [sides[group] for group in ranked(groups)]
    assert in_order == ["train"] * 16 + ["validation"] * 2 + ["test"] * 2


def test_group_of_two_classes_has_the_side_of_the_first():
    groups = singles(10) + singles(9, 1) + [singles(10)[4]]
    result = assign([0] * 10 + [1] * 10, groups)
    assert result.sides[19] == result.sides[4]
    # nine are the roses' own: 7, 1 and 1 of them
    assert collections.Counter(result.sides[10:19]) == {"train": 7, "validation": 1, "test": 1}
    # what is another class's altogether has its sides, whatever is missing
    result = assign([0] * 20 + [1] * 20, singles(20) * 2)
    assert result.sides[:20] == result.sides[20:] and result.warnings == ()


def test_near_copies_that_leave_too_little_to_split_are_not_kept_together():
    groups = ["scene"] * 9 + singles(1)
    result = assign([0] * 10 + [1] * 3, groups + singles(3, 1))
    assert collections.Counter(result.sides[:10]) == {"train": 8, "validation": 1, "test": 1}
    assert result.groups == (None,) * 13
    assert result.warnings == (
        "most images of daisy are near-copies, as of a fixed camera; they are split as different "
        "images",
    )
    # eight of ten fit into training; equal images are kept together however many they are
    groups = ["scene"] * 8 + singles(2)
    result = assign([0] * 10 + [1] * 3, groups + singles(3, 1))
    assert result.sides[:8] == ("train",) * 8 and result.warnings == ()
    equal = ["same"] * 28 + singles(2) + singles(3, 1)
    result = assign([0] * 30 + [1] * 3, equal, contents=equal)
    assert result.sides[:28] == ("train",) * 28 and result.warnings == ()


def test_fewer_than_three_different_images_are_an_error():
    groups = ["a", "a", "b", "b", *singles(3, 1)]
    with pytest.raises(errors.DataError, match="'daisy' has 2 different images; expected 3"):
        assign([0] * 4 + [1] * 3, groups, contents=groups)


def heldout(daisies, roses, fixed=("train", "train")):
    """Splits a training image of each class and these groups of a held-out directory."""
    labels = [0, 1] + [0] * len(daisies) + [1] * len(roses)
    groups = ["t0", "t1", *daisies, *roses]
    return assign(labels, groups, fixed=[*fixed, *["heldout"] * (len(labels) - 2)])


def test_heldout_images_are_halved_by_class():
    daisies, roses = singles(4), singles(6, 1)
    result = heldout(daisies, roses)
    sides = dict(zip(daisies + roses, result.sides[2:]))
    assert result.sides[:2] == ("train", "train") and result.warnings == ()
    for groups in (daisies, roses):
        half = len(groups) // 2
        in_order = [sides[group] for group in ranked(groups)]
        assert in_order == ["validation"] * half + ["test"] * half
    result = heldout(["a", "a", "b", "b"], roses)  # near-copies stay together
    assert result.sides[2] == result.sides[3] != result.sides[4] == result.sides[5]
    assert heldout(["a", "a"], roses).sides[2:4] in (SPLIT, SPLIT[::-1])  # unless nothing is left


def test_halves_of_odd_classes_take_turns():
    daisies, roses = (heldout(singles(5), singles(5, 1)).sides[k:][:5] for k in (2, 7))
    assert (daisies.count("validation"), roses.count("validation")) == (3, 2)
    # one held-out image cannot be on both sides: a warning, as for a class that is missing
    result = heldout(singles(1), singles(4, 1))
    assert result.sides[2] == "validation" and result.warnings == ("no test images of daisy",)
    result = heldout(singles(4), singles(1, 1))
    assert result.sides[6] == "test" and result.warnings == ("no validation images of roses",)


def test_near_copies_on_fixed_sides_are_reported():
    result = assign(
        [0, 1, 0, 1, 0, 1],
        ["a", "b", "a", "c", "d", "e"],
        fixed=["train"] * 2 + ["heldout"] * 4,
    )
    assert result.sides[:2] == ("train", "train") and len(result.warnings) == 1
    assert "1 images stand on more than one side" in result.warnings[0]
    assert "f0 = f2" in result.warnings[0]
    assert result.groups[0] == result.groups[2] == "a" and result.groups[1] is None


def test_class_without_training_images_and_empty_side_are_errors():
    fixed = ["train", "validation", "test", "validation"]
    with pytest.raises(errors.DataError, match="no train images of roses"):
        assign([0, 0, 0, 1], list("abcd"), fixed=fixed)
    with pytest.raises(errors.DataError, match="no test images"):
        assign([0, 1, 0], list("abc"), fixed=["train", "train", "validation"])
