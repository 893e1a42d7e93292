"""split.json: its shape, and what is compared with it."""

import json
import os

import pytest

from tl_research import errors
from tl_research.data import manifest
from tl_research.data.split import Split


@pytest.mark.parametrize(
    "change",
    [
        lambda split: split["files"][0].update(side="elsewhere"),
        lambda split: split["files"][0].update(path=["a"]),
        lambda split: split["files"][0].update(sha256=None),
        lambda split: split.update(left_out=[{}]),
        lambda split: split.update(files=5),
    ],
)
def test_split_that_nobody_wrote_is_refused(tmp_path, change):
    split = make()
    change(split)
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(errors.DataError, match="cannot read"):
        manifest.read(str(tmp_path / "split.json"))


FRACTIONS = (0.8, 0.1, 0.1)


def make(**changes):
    names, classes, sha256s = ["b/2.jpg", "a/\udcff\n.jpg", "a/1.jpg"], "baa", ["22", "11", "00"]
    arguments = dict(
        names=names,
        sha256s=sha256s,
        sides=["train", "validation", "test"],
        groups=[None, "00", "00"],
        seed=0,
        fractions=FRACTIONS,
        classes=("a", "b"),
        left_out=["a/0.jpg"],
    )
    arguments.update(changes)
    names, sha256s = arguments.pop("names"), arguments.pop("sha256s")
    found = Split(arguments.pop("sides"), arguments.pop("groups"), ())
    entries = [
        {"path": name, "class": label, "sha256": sha256}
        for name, label, sha256 in zip(names, classes, sha256s)
    ]
    return manifest.make(entries=entries, found=found, **arguments)


def test_manifest_has_the_contract_s_shape_and_survives_the_disk(tmp_path):
    expected = {
        "seed": 0,
        "fractions": [0.8, 0.1, 0.1],
        "classes": ["a", "b"],
        "left_out": ["a/0.jpg"],
        "files": [
            {
                "path": "a/\udcff\n.jpg",
                "class": "a",
                "sha256": "11",
                "side": "validation",
                "group": "00",
            },
            {"path": "a/1.jpg", "class": "a", "sha256": "00", "side": "test", "group": "00"},
            {"path": "b/2.jpg", "class": "b", "sha256": "22", "side": "train", "group": None},
        ],
    }
    expected["files"].sort(key=lambda file: file["path"])
    assert make() == expected
    path = tmp_path / "split.json"
    manifest.write(str(path), make())
    assert json.loads(path.read_text(encoding="ascii")) == expected
    assert len(path.read_text().splitlines()) == 5  # a line a file
    manifest.check(str(path), make())
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
        (dict(groups=[None, None, None]), r"2 changed \(a/1.jpg, a/\\udcff\\n.jpg\)"),
        (
            dict(left_out=["a/3.jpg"]),
            r"--leave_out names other images .* a/0.jpg, a/3.jpg; restore",
        ),
    ],
)
def test_changed_data_do_not_match(tmp_path, changes, message):
    path = str(tmp_path / "split.json")
    manifest.write(path, make())
    with pytest.raises(errors.DataError, match=message) as raised:
        manifest.check(path, make(**changes))
    assert "\n" not in str(raised.value)


def test_at_most_five_files_are_named(tmp_path):
    path = str(tmp_path / "split.json")
    names = [f"{i}.jpg" for i in range(9)]
    entries = [{"path": name, "class": "a", "sha256": name} for name in names]
    found = Split(["train"] * 9, [None] * 9, ())
    manifest.write(path, manifest.make(0, FRACTIONS, ("a",), entries, found, ()))
    nothing = manifest.make(0, FRACTIONS, ("a",), [], Split([], [], ()), ())
    with pytest.raises(errors.DataError, match=r"9 missing \(0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg\)"):
        manifest.check(path, nothing)


def test_split_of_an_earlier_version_says_what_to_do(tmp_path):
    path, old = str(tmp_path / "split.json"), make()
    del old["left_out"]
    for file in old["files"]:
        del file["group"]
    manifest.write(path, old)
    with pytest.raises(errors.DataError, match="earlier version.*--resume=never, or finish with"):
        manifest.check(path, make())
    manifest.check_files(manifest.read(path)["files"], old["files"])  # as the tools do
    other = [{**file, "sha256": "33"} for file in old["files"]]
    with pytest.raises(errors.DataError, match="3 changed"):
        manifest.check_files(manifest.read(path)["files"], other)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": [1]}', '{"files": []}', "[" * 100_000])
def test_unreadable_split_is_a_data_error(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(errors.DataError, match="cannot read"):
        manifest.check(str(tmp_path / "split.json"), make())


def test_failed_write_keeps_the_old_split(tmp_path, monkeypatch):
    path = str(tmp_path / "split.json")
    manifest.write(path, make())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(errors.StorageError, match="No space"):
        manifest.write(path, make(seed=1))
    manifest.check(path, make())
