"""Folders as people have them: sides that are taken for classes, classes that cannot be reached,
runs among the images, and one walk for training and prediction.
"""

import collections
import contextlib
import dataclasses
import os
import unicodedata

import numpy as np
import PIL.Image
import pytest

from tl_research import errors, predict
from tl_research.config import Config
from tl_research.data import catalog, dataset, manifest, sides, walk
from tl_research.run.directory import RunDirectory


def make(root, *names, content=b""):
    for name in names:
        path = os.path.join(os.fspath(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    return str(root)


def find(root, **arguments):
    config = Config(
        dataset="directory", data_dir=str(root), download_dir="/nonexistent", **arguments
    )
    return catalog.find_images(config)


@contextlib.contextmanager
def without_privileges():
    """Inside, permissions of files hold, also for root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def _sides(*sides, classes=("ant", "bee"), deeper=""):
    return [f"{side}/{deeper}{name}/1.jpg" for side in sides for name in classes]


@pytest.mark.parametrize(
    "files, fix",
    [
        (_sides("Training", "Testing"), "--data_dir={}/Training --test_dir={}/Testing"),
        (_sides("train2017", "val2017"), "--data_dir={}/train2017 --validation_dir={}/val2017"),
        (
            _sides("train", "dev", "tst"),
            "--data_dir={}/train --validation_dir={}/dev --test_dir={}/tst",
        ),
        (_sides("TrainSet", "my photos"), "--data_dir={}/TrainSet --validation_dir='{}/my photos'"),
        (
            [
                *_sides("seg_train", deeper="seg_train/"),
                *_sides("seg_test", deeper="x/"),
                "seg_pred/1.jpg",
            ],
            "--data_dir={}/seg_train/seg_train --test_dir={}/seg_test/x",
        ),
        (
            ["train/ant/1.jpg", "train/bee/1.jpg", "test/1.jpg", "notes/1.jpg"],
            "--data_dir={}/train",
        ),
        (
            ["trainA/1.jpg", "trainB/1.jpg", "testA/1.jpg"],
            "--data_dir={}/trainA --test_dir={}/testA",
        ),
        # nearly the same classes, whatever they are called, and other files
        (
            [
                *_sides("part 1", classes=("a", "b", "c")),
                *_sides("part 2", classes=("a", "b")),
                "part 1/a.csv",
            ],
            "--data_dir='{}/part 1' --validation_dir='{}/part 2'",
        ),
    ],
)
def test_sides_in_other_words_are_named_with_the_flags_to_give(tmp_path, files, fix):
    root = make(tmp_path / "data", *files)
    with pytest.raises(errors.DataError, match="are sides and not classes") as raised:
        find(root)
    assert str(raised.value).endswith("; use " + fix.replace("{}", root)), raised.value


@pytest.mark.parametrize(
    "folders, found",
    [
        (("train", "val", "test"), {"data_dir": 0, "validation_dir": 1, "test_dir": 2}),
        (("train", "valid"), {"data_dir": 0, "validation_dir": 1}),
        (("TRAIN", "Validation", "Testing"), {"data_dir": 0, "validation_dir": 1, "test_dir": 2}),
        (("train/all", "test/all"), {"data_dir": 0, "test_dir": 1}),
        (("train", "val", "valid"), {}),  # which is it?
        (("train", "val", "roses"), {}),
        (("val", "test"), {}),
        (("train",), {}),
        (("train2017", "val2017"), {}),
    ],
)
def test_folder_of_nothing_but_sides_is_taken_for_what_it_is(tmp_path, capsys, folders, found):
    root = make(tmp_path / "data", *_sides(*folders), "about.txt", ".DS_Store")
    config = Config(dataset="directory", data_dir=root, image_size=64)
    places = {flag: os.path.join(root, folders[place]) for flag, place in found.items()}
    assert sides.resolved(config) == dataclasses.replace(config, **places)
    said = " ".join(f"--{flag}={place}" for flag, place in places.items())
    assert capsys.readouterr().out == (f"{root} is already split; using {said}\n" if found else "")
    given = dataclasses.replace(config, validation_dir=root)
    assert sides.resolved(given) is given
    named = dataclasses.replace(config, dataset="cats_vs_dogs")
    assert sides.resolved(named) is named


def test_test_images_without_classes_are_no_side(tmp_path):
    root = make(tmp_path / "data", *_sides("train", "val"), "test/1.jpg")
    config = Config(dataset="directory", data_dir=root)
    assert sides.resolved(config) is config
    with pytest.raises(errors.DataError) as raised:
        find(root)
    assert str(raised.value).endswith(f"; use --data_dir={root}/train --validation_dir={root}/val")


def test_folder_around_the_folder_is_named(tmp_path):
    make(tmp_path / "zip", "photos/ant/1.jpg", "photos/bee/1.jpg")
    with pytest.raises(errors.DataError, match=r"holds 1 classes \('photos'\).*") as raised:
        find(tmp_path / "zip")
    assert str(raised.value).endswith(f"; did you mean {tmp_path}/zip/photos?")
    with pytest.raises(errors.DataError, match="did you point one level too high or too low"):
        find(tmp_path / "zip" / "photos" / "ant")


@pytest.mark.parametrize(
    "files",
    [
        ["train/1.jpg", "bus/1.jpg", "test car/1.jpg"],
        ["eval board/1.jpg", "test board/1.jpg"],
        ["valid/1.jpg", "invalid/1.jpg"],
        ["ant/images/1.jpg", "bee/images/1.jpg"],
        ["ant/left/1.jpg", "ant/right/1.jpg", "bee/left/1.jpg", "bee/right/1.jpg", "bee/2.jpg"],
        ["ant/x/1.jpg", "ant/y/1.jpg", "bee/y/1.jpg", "bee/z/1.jpg"],
    ],
)
def test_classes_that_only_look_like_sides_are_classes(tmp_path, files):
    assert len(find(make(tmp_path, *files)).files) == len(files)


def test_class_that_cannot_be_reached_is_named_with_the_reason(tmp_path, monkeypatch):
    root = tmp_path / "data"
    make(root, "ant/1.jpg", "bee/1.jpg")
    monkeypatch.chdir(root)  # which may be entered, whatever lies above
    for target, reason in (
        ("/nowhere/roses", "No such file or directory, a link to /nowhere/roses"),
        ("roses", "Too many levels of symbolic links, a link to roses"),
    ):
        os.symlink(target, root / "roses")
        with pytest.raises(errors.DataError, match="class 'roses' in --data_dir=") as raised:
            find(root)
        assert f"cannot be reached ({reason})" in str(raised.value)
        os.remove(root / "roses")
    make(root, "roses/1.jpg")
    os.chmod(root / "roses", 0)
    with (
        without_privileges(),
        pytest.raises(
            errors.DataError, match="class 'roses' is an unreadable folder: Permission denied"
        ),
    ):
        catalog.of_folders([(".", None, "--data_dir")])
    os.rename(root / "roses", root / "ant" / "roses")  # a part of one
    os.symlink("/nowhere", root / "bee" / "more")
    with without_privileges():
        found = catalog.of_folders([(".", None, "--data_dir")])
    assert found.refused == (
        ("ant/roses/", "unreadable folder: Permission denied"),
        ("bee/more", "dangling link to /nowhere"),
    )


def test_file_without_a_suffix_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    root = tmp_path / "data"
    make(root, "ant/1.jpg", "bee/1.jpg", "bee/photo", "bee/notes.txt", content=b"\xff\xd8\xff" * 9)
    monkeypatch.chdir(root)
    for name in ("photo", "notes.txt"):
        os.chmod(root / "bee" / name, 0)
    with without_privileges():
        found = catalog.of_folders([(".", None, "--data_dir")])
    assert [file.name for file in found.files] == ["ant/1.jpg", "bee/1.jpg", "bee/photo"]
    assert found.others == {".txt": 1}


def test_prediction_walks_by_the_rules_of_training(tmp_path):
    root, outside = tmp_path / "data", make(tmp_path / "outside", "1.jpg")
    make(
        root,
        "ant/1.jpg",
        "ant/deep/2.JPE",
        "ant/photo",
        "ant/.ipynb_checkpoints/1-checkpoint.jpg",
        "ant/__MACOSX/1.jpg",
        "ant/._1.jpg",
        "ant/old/flags.txt",
        "ant/old/bad_images.csv",
        "ant/old/report/confusion.png",
        "bee/1.jpg",
        content=b"\xff\xd8\xff\xe0",
    )
    (root / "ant" / "notes.txt").write_text("seen on Sunday")
    (root / "ant" / "away").symlink_to(outside)
    (root / "ant" / "away.jpg").symlink_to(outside + "/1.jpg")
    (root / "ant" / "gone.jpg").symlink_to(root / "none.jpg")
    os.mkfifo(root / "ant" / "pipe.jpg")
    others = collections.Counter()
    predicted = {
        name: reason for name, _, reason in predict.image_files([str(root / "ant")], others)
    }
    trained = find(root)
    of_ants = [file for file in trained.files if file.label == 0]
    assert {file.path for file in of_ants} == {p for p, reason in predicted.items() if not reason}
    assert len(of_ants) == 3 and trained.others == others
    refused = {str(root / name): reason for name, reason in trained.refused}
    assert len(refused) == 4 and refused.items() <= predicted.items()
    assert others == {"hidden or system": 3, ".txt": 1, "run of this program": 1}


def test_folders_of_the_operating_system_are_no_class_and_hold_no_images(tmp_path):
    for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"):
        make(tmp_path, f"{name}/1.jpg", f"ant/{name}/SYNOPHOTO_THUMB_XL.jpg")
    found = find(make(tmp_path, "ant/1.jpg", "bee/1.jpg"))
    assert found.classes == ("ant", "bee") and len(found.files) == 2
    assert found.others == {"hidden or system": 10}


def test_runs_are_no_class(tmp_path):
    make(
        tmp_path,
        "ant/1.jpg",
        "bee/1.jpg",
        *(f"runs/1/{name}" for name in ("flags.txt", "bad_images.csv", "report/curves.png")),
        *(f"old/{name}" for name in ("flags.txt", "bad_images.csv", "report/curves.png")),
    )
    found = find(tmp_path)
    assert found.classes == ("ant", "bee") and found.others == {walk.RUN: 2}
    make(tmp_path, "runs/1.jpg")  # a class of races
    os.remove(tmp_path / "runs" / "1" / "flags.txt")
    assert find(tmp_path).classes == ("ant", "bee", "runs")


def test_names_that_look_alike_are_printed_escaped(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))
    make(tmp_path, f"t/{composed}/1.jpg", "t/x/1.jpg", f"v/{decomposed}/1.jpg", "v/x/1.jpg")
    with pytest.raises(errors.DataError, match=r"classes '\\xe9' and 'e\\u0301' in .*/v differ"):
        find(tmp_path / "t", validation_dir=str(tmp_path / "v"))
    make(tmp_path, f"t/{decomposed}/1.jpg")
    with pytest.raises(errors.DataError, match=r"classes 'e\\u0301' and '\\xe9' in .*/t differ"):
        find(tmp_path / "t")


def test_given_test_images_stay_whole_and_the_others_are_split_in_two(tmp_path, write_images):
    for number, (side, count) in enumerate((("train", 18), ("test", 5))):
        folder = write_images(tmp_path / side, ("ant", "bee"), count, 16)
        for path, _, names in os.walk(folder):  # no image is on both sides
            for name in names:
                pixels = np.asarray(PIL.Image.open(os.path.join(path, name)))
                PIL.Image.fromarray(pixels ^ number).save(os.path.join(path, name))
    config = Config(
        dataset="directory",
        data_dir=str(tmp_path / "train"),
        test_dir=str(tmp_path / "test"),
        image_size=16,
        workdir=str(tmp_path / "run"),
    )
    with RunDirectory(config) as directory:
        data = dataset.load(config, directory)
        recorded = dataset.load_recorded(config, directory.file("split.json"))
    # 8 to 1 of the 18 of each class
    sides = (data.train, data.validation, data.test)
    assert [np.bincount(side.labels).tolist() for side in sides] == [[16, 16], [2, 2], [5, 5]]
    assert {name.split("/")[0] for name in data.test.names} == {"test"}
    assert {name.split("/")[0] for name in data.train.names + data.validation.names} == {"train"}
    assert [side.names for side in sides] == [
        side.names for side in (recorded.train, recorded.validation, recorded.test)
    ]


@pytest.mark.parametrize("warned", [False, True])
def test_more_than_a_tenth_that_is_not_used_is_said_on_stderr(
    tmp_path, write_images, capsys, warned
):
    photos = write_images(tmp_path / "photos", ("ant", "bee"), 9, 16)
    make(photos, *(f"ant/{number}.psd" for number in range(2 + warned)))
    config = Config(
        dataset="directory", data_dir=photos, image_size=16, workdir=str(tmp_path / "run")
    )
    with RunDirectory(config) as directory:
        data = dataset.load(config, directory)
    said = f"{2 + warned} other files are not used: {2 + warned} .psd"
    assert said in data.notes and (f"warning: {said}\n" in capsys.readouterr().err) == warned


def test_names_of_a_split_that_look_alike_are_printed_escaped(tmp_path):
    recorded, found = (
        [{"path": name, "class": "x", "sha256": "0"}] for name in ("x/\u00e9.jpg", "x/e\u0301.jpg")
    )
    with pytest.raises(errors.DataError, match=r"\(x/\u00e9.jpg, x/e\\u0301.jpg\)"):
        manifest.check_files(recorded, found)
    path = str(tmp_path / "split.json")
    known = {"seed": 0, "fractions": [1], "classes": ["\u00e9"], "left_out": [], "files": []}
    manifest.write(path, known)
    with pytest.raises(errors.DataError, match=r"classes \u00e9, now it is e\\u0301, b;"):
        manifest.check(path, {**known, "classes": ["e\u0301", "b"]})


def test_of_many_sides_a_few_are_named(tmp_path):
    root = make(tmp_path, *_sides(*(f"fold {number}" for number in range(9))))
    with pytest.raises(errors.DataError) as raised:
        find(root)
    assert "fold 3 and fold 4 and 4 more, which are sides and not classes, as all hold ant" in str(
        raised.value
    )
