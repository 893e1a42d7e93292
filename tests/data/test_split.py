"""The side of a file by hand, the one exception, and split.json."""

import hashlib
import json
import os

import pytest

from tl_research import errors
from tl_research.data import split

FRACTIONS = (0.8, 0.1, 0.1)
CLASSES = ("daisy", "roses")


def assign(*files, fixed=None, classes=CLASSES, fractions=FRACTIONS):
    """Splits files given as (label, fraction, content); names are f0, f1, ..."""
    labels, at, contents = zip(*files)
    names = [f"f{i}" for i in range(len(files))]
    return split.assign_sides(
        names, labels, at, contents, fixed or [None] * len(files), classes, fractions
    )


ROSES = ((1, 0.1, "r1"), (1, 0.85, "r2"), (1, 0.95, "r3"))  # a class that needs no exception


def test_fraction_is_the_first_eight_bytes_of_the_seeded_hash():
    # sha256(b"0\nabc") begins with these digits (sha256sum says so); / 2**64.
    digest = hashlib.sha256(b"0\nabc").hexdigest()
    assert split.split_fraction(0, b"abc") == int(digest[:16], 16) / 2**64
    assert (
        split.split_fraction(1, b"abc")
        == int(hashlib.sha256(b"1\nabc").hexdigest()[:16], 16) / 2**64
    )
    assert (
        split.content_sha256(b"abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_cumulative_split_decides_and_bounds_belong_above():
    sides = assign(
        (0, 0.0, "a"),
        (0, 0.79, "b"),
        (0, 0.8, "c"),
        (0, 0.89, "d"),
        (0, 0.91, "e"),
        (0, 1.0, "f"),
        *ROSES,
    ).sides
    assert sides[:6] == ("train", "train", "validation", "validation", "test", "test")


def test_one_file_more_moves_no_other():
    files = [(i % 2, split.split_fraction(3, bytes([i])), f"{i:03d}") for i in range(200)]
    before = assign(*files[:-1]).sides
    assert assign(*files).sides[:-1] == before
    assert 140 < before.count("train") < 178  # 80 % of 199, five standard deviations


def test_empty_side_takes_the_nearest_and_of_equals_the_smaller_hash():
    sides = assign(
        (0, 0.1, "a"), (0, 0.7, "c"), (0, 0.7, "b"), (0, 0.2, "d"), (0, 0.95, "e"), *ROSES
    ).sides
    assert sides[:5] == ("train", "train", "validation", "train", "test")
    # From above: 0.91 is 0.01 from validation, 0.7 is 0.1 from it; but the only test image may not
    # leave.
    assert assign((0, 0.1, "a"), (0, 0.7, "b"), (0, 0.91, "c"), (0, 0.99, "d"), *ROSES).sides[
        :4
    ] == ("train", "train", "validation", "test")
    assert assign((0, 0.1, "a"), (0, 0.7, "b"), (0, 0.91, "c"), *ROSES).sides[:3] == (
        "train",
        "validation",
        "test",
    )


def test_three_images_on_one_side_are_spread():
    # Validation takes 0.5 (the nearest to 0.8), then test the nearest left, 0.3; train keeps 0.1.
    assert assign((0, 0.1, "a"), (0, 0.5, "b"), (0, 0.3, "c"), *ROSES).sides[:3] == (
        "train",
        "validation",
        "test",
    )


def test_equal_contents_move_together_across_classes():
    daisies = ((0, 0.1, "a"), (0, 0.2, "b"), (0, 0.7, "x"), (0, 0.95, "e"))
    result = assign(*daisies, *ROSES, (1, 0.7, "x"))
    assert result.sides[2] == result.sides[7] == "validation"
    assert result.num_duplicates == 1
    # Where "x" is all that the roses have in train, it stays, and the next nearest goes.
    result = assign(*daisies, *ROSES[1:], (1, 0.7, "x"))
    assert result.sides == ("train", "validation", "train", "test", "validation", "test", "train")


def test_contents_that_no_class_can_spare_are_an_error():
    # Daisies: a, b, x in train; each is the only image of another class in train, so nothing can go
    # to validation.
    shared = ("a", "b", "x")
    files = [(0, 0.1, name) for name in shared] + [(0, 0.95, "e")]
    for label, name in enumerate(shared, 1):
        files += [(label, 0.1, name), (label, 0.85, f"v{label}"), (label, 0.95, f"t{label}")]
    with pytest.raises(errors.DataError, match="'daisy' has no image for validation"):
        assign(*files, classes=("daisy", "p", "q", "r"))


@pytest.mark.parametrize("contents", ["ab", "aabb"])
def test_fewer_than_three_different_images_are_an_error(contents):
    with pytest.raises(errors.DataError, match="'daisy' has 2 different images"):
        assign(*[(0, 0.1, content) for content in contents], *ROSES)


def test_heldout_images_are_halved_by_class():
    files = (
        (0, 0.9, "t0"),
        (1, 0.9, "t1"),
        (0, 0.49, "a"),
        (0, 0.5, "b"),
        (1, 0.6, "c"),
        (1, 0.7, "d"),
    )
    fixed = ["train"] * 2 + ["heldout"] * 4
    result = assign(*files, fixed=fixed)
    # Though both roses lie above 0.5: the first half in the order of their fractions is for
    # validation.
    assert result.sides == ("train", "train", "validation", "test", "validation", "test")
    assert result.warnings == ()
    # One held-out rose cannot be on both sides: a warning, as for a class that is missing.
    result = assign(*files[:5], fixed=fixed[:5])
    assert result.sides[4] == "validation"
    assert result.warnings == ("no test images of roses",)


def test_halves_of_odd_classes_take_turns_and_copies_stay_together():
    files = [(label, 0.1 * place, f"{label}{place}") for label in (0, 1) for place in range(5)] + [
        (1, 0.0, "00"),
        (1, 0.3, "13"),
    ]
    result = assign((0, 0.5, "t0"), (1, 0.5, "t1"), *files, fixed=["train"] * 2 + ["heldout"] * 12)
    # Daisies: 3 and 2. Roses have 6 contents with the daisy's "00", which is for validation: two
    # more, and three.
    assert result.sides[2:] == (
        *["validation"] * 3,
        "test",
        "test",
        "validation",
        "validation",
        *["test"] * 3,
        "validation",
        "test",
    )
    result = assign(
        (0, 0.5, "t0"), (1, 0.5, "t1"), *files[:10], fixed=["train"] * 2 + ["heldout"] * 10
    )
    assert result.sides[2:] == (
        *["validation"] * 3,
        "test",
        "test",
        *["validation"] * 2,
        *["test"] * 3,
    )


def test_equal_images_on_fixed_sides_are_reported():
    files = (
        (0, 0.1, "a"),
        (1, 0.1, "b"),
        (0, 0.1, "a"),
        (1, 0.9, "c"),
        (0, 0.9, "d"),
        (1, 0.2, "e"),
    )
    result = assign(*files, fixed=["train"] * 2 + ["heldout"] * 4)
    assert result.sides == ("train", "train", "validation", "test", "test", "validation")
    assert result.num_duplicates == 1
    assert len(result.warnings) == 1
    assert (
        "1 images stand on more than one side" in result.warnings[0]
        and "f0 = f2" in result.warnings[0]
    )


def test_class_without_training_images_and_empty_side_are_errors():
    fixed = ["train", "validation", "test", "validation"]
    with pytest.raises(errors.DataError, match="no train images of roses"):
        assign((0, 0.1, "a"), (0, 0.1, "b"), (0, 0.1, "c"), (1, 0.1, "d"), fixed=fixed)
    with pytest.raises(errors.DataError, match="no test images"):
        assign((0, 0.1, "a"), (1, 0.1, "b"), (0, 0.1, "c"), fixed=["train", "train", "validation"])


def manifest(**changes):
    names, labels, sha256s = ["b/2.jpg", "a/\udcff\n.jpg", "a/1.jpg"], [1, 0, 0], ["22", "11", "00"]
    sides = ["train", "validation", "test"]
    arguments = dict(
        seed=0,
        fractions=FRACTIONS,
        classes=("a", "b"),
        names=names,
        labels=labels,
        sha256s=sha256s,
        sides=sides,
    )
    return split.make_manifest(**{**arguments, **changes})


def test_manifest_has_the_contract_s_shape_and_survives_the_disk(tmp_path):
    expected = {
        "seed": 0,
        "fractions": [0.8, 0.1, 0.1],
        "classes": ["a", "b"],
        "files": [
            {"path": "a/\udcff\n.jpg", "class": "a", "sha256": "11", "side": "validation"},
            {"path": "a/1.jpg", "class": "a", "sha256": "00", "side": "test"},
            {"path": "b/2.jpg", "class": "b", "sha256": "22", "side": "train"},
        ],
    }
    expected["files"].sort(key=lambda file: file["path"])
    assert manifest() == expected
    path = tmp_path / "split.json"
    split.write_manifest(str(path), manifest())
    assert json.loads(path.read_text(encoding="ascii")) == expected
    assert len(path.read_text().splitlines()) == 5  # a line a file
    split.check_manifest(str(path), manifest())
    assert os.listdir(tmp_path) == ["split.json"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sha256s=["22", "11", "33"]), r"1 changed \(a/1.jpg\)"),
        (dict(sides=["train", "validation", "validation"]), r"1 changed \(a/1.jpg\)"),
        (
            dict(names=["b/2.jpg", "a/0.jpg", "a/1.jpg"]),
            r"1 missing, 1 added \(a/\\udcff\\n.jpg, a/0.jpg\)",
        ),
        (dict(seed=1), "seed 0, now it is 1"),
        (dict(classes=("a", "c")), "classes"),
        (dict(fractions=(0.7, 0.2, 0.1)), "fractions"),
    ],
)
def test_changed_data_do_not_match(tmp_path, changes, message):
    path = str(tmp_path / "split.json")
    split.write_manifest(path, manifest())
    with pytest.raises(errors.DataError, match=message) as raised:
        split.check_manifest(path, manifest(**changes))
    assert "\n" not in str(raised.value)


def test_at_most_five_files_are_named(tmp_path):
    path = str(tmp_path / "split.json")
    names = [f"{i}.jpg" for i in range(9)]
    split.write_manifest(
        path, split.make_manifest(0, FRACTIONS, ("a",), names, [0] * 9, names, ["train"] * 9)
    )
    with pytest.raises(errors.DataError, match=r"9 missing \(0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg\)"):
        split.check_manifest(path, split.make_manifest(0, FRACTIONS, ("a",), [], [], [], []))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": [1]}', '{"files": []}', "[" * 100_000])
def test_unreadable_split_is_a_data_error(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(errors.DataError, match="cannot read"):
        split.check_manifest(str(tmp_path / "split.json"), manifest())


def test_failed_write_keeps_the_old_split(tmp_path, monkeypatch):
    path = str(tmp_path / "split.json")
    split.write_manifest(path, manifest())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(errors.StorageError, match="No space"):
        split.write_manifest(path, manifest(seed=1))
    split.check_manifest(path, manifest())


def test_side_that_a_shared_image_fills_takes_no_second_one():
    # Daisies send "x" to validation; it is a rose as well, so the rose at 0.79, though nearer,
    # stays in train.
    result = assign(
        (0, 0.1, "a"),
        (0, 0.2, "b"),
        (0, 0.7, "x"),
        (0, 0.95, "e"),
        (1, 0.7, "x"),
        (1, 0.79, "r"),
        (1, 0.1, "s"),
        (1, 0.95, "t"),
    )
    assert result.sides[4:] == ("validation", "train", "train", "test")
