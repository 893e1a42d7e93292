"""What of the images is trained on, and what is said of the others."""

import csv
import dataclasses
import json
import os
import shutil

import numpy as np
import peak_memory
import PIL.Image
import pytest

from tl_research.config import Config
from tl_research.data import dataset
from tl_research.errors import DataError, UserError
from tl_research.run.directory import RunDirectory


@pytest.fixture
def load(write_images, tmp_path):
    photos = write_images(tmp_path / "photos", count=40, size=16)

    def load(begun=False, **settings):
        config = Config(
            **{
                "dataset": "directory",
                "data_dir": photos,
                "image_size": 16,
                "workdir": str(tmp_path / "run"),
                "resume": "never",
                **settings,
            }
        )
        with RunDirectory(config) as directory:
            if begun:
                directory.write_json("run.json", {})  # so that the split binds
            return dataset.load(config, directory), directory.read_json("split.json")

    return load


def test_class_share_leaves_out_training_images_of_that_class_by_their_content(load):
    (whole, manifest), (half, same) = load(), load(class_share=("bee=0.5", "cat=0.1"))
    assert (
        manifest == same
        and whole.validation.names == half.validation.names
        and whole.test.names == half.test.names
    )
    sha256 = {file["path"]: file["sha256"] for file in manifest["files"]}
    kept = [
        name
        for name in whole.train.names
        if int(sha256[name], 16) / 2**256 < {"ant": 1.0, "bee": 0.5, "cat": 0.1}[name[:3]]
    ]
    assert list(half.train.names) == kept and 0 < sum(name[:3] == "bee" for name in kept) < sum(
        name[:3] == "bee" for name in whole.train.names
    )
    np.testing.assert_array_equal(
        half.train.images([len(kept) - 1]),
        whole.train.images([whole.train.names.index(kept[-1])]),
    )
    counts = np.bincount(half.train.labels)
    assert half.notes[-2:] == (
        f"{counts[1]} training images of bee kept by --class_share",
        f"{counts[2]} training images of cat kept by --class_share",
    )


def test_labelled_folder_is_read_whole_after_training_on_a_share(load, tmp_path):
    load()
    config = Config(image_size=16, class_share=("bee=0.5",))
    labelled = dataset.load_labelled(str(tmp_path / "photos"), ("cat", "bee", "ant"), config)
    assert np.bincount(labelled.labels).tolist() == [40, 40, 40]
    assert {(name[:3], int(label)) for name, label in zip(labelled.names, labelled.labels)} == {
        ("cat", 0),
        ("bee", 1),
        ("ant", 2),
    }


def test_class_share_that_cannot_be_is_one_line(load):
    with pytest.raises(
        UserError,
        match="--class_share=dee=0.5 names no class; expected one of ant, bee, cat; "
        "did you mean bee?",
    ):
        load(class_share=("dee=0.5",))
    with pytest.raises(UserError, match="leaves none of its"):
        load(class_share=("bee=1e-9",))
    for wrong in ("bee", "=0.5", "bee=x", "bee=0", "bee=1.5"):
        with pytest.raises(UserError, match="--class_share"):
            load(class_share=(wrong,))
    assert json.dumps(Config(class_share=("a=b=0.5",)).class_shares) == '{"a=b": 0.5}'


@pytest.fixture
def photos(write_images, tmp_path):
    return write_images(tmp_path / "photos", count=8, size=16)


@pytest.fixture
def load_photos(photos, tmp_path):
    """A function that loads the photographs and returns (`Dataset`, {path: reason} of the bad)."""

    def load(dataset_name="directory", **settings):
        config = Config(
            dataset=dataset_name,
            data_dir=photos,
            image_size=16,
            workdir=str(tmp_path / "run"),
            resume="never",
            **settings,
        )
        with RunDirectory(config) as directory:
            data = dataset.load(config, directory)
        return data, _listed(tmp_path / "run")

    return load


def _listed(run):
    with open(run / "bad_images.csv") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def _names(data):
    sides = (data.train, data.validation, data.test)
    return {name for side in sides for name in side.names}


def _write_raw(photos, count):
    for i in range(count):
        with open(os.path.join(photos, "ant", f"{i}.dng"), "wb") as file:
            file.write(b"II*\0" + bytes(60 + i))


def test_one_image_in_two_classes_is_an_error_that_names_both(load_photos, photos, tmp_path):
    other_bytes = PIL.Image.open(os.path.join(photos, "ant", "03.png"))
    other_bytes.save(os.path.join(photos, "cat", "same.bmp"))
    reasons = {
        "ant/03.png": "is in class cat too, as cat/same.bmp",
        "cat/same.bmp": "is in class ant too, as ant/03.png",
    }
    with pytest.raises(DataError) as error:
        load_photos()
    for name, reason in reasons.items():
        assert f"{name} ({reason})" in str(error.value)
    assert error.value.exit_code == 2 and _listed(tmp_path / "run") == reasons
    # of a named data set nobody can correct that
    for settings in ({"on_bad_image": "skip"}, {"dataset_name": "tf_flowers"}):
        data, listed = load_photos(**settings)
        assert listed == reasons and len(_names(data)) == 23 and not _names(data) & set(reasons)
        note = "2 images in two classes left out, see bad_images.csv"
        assert note in data.notes


def test_duplicate_is_listed_by_its_pixels(load_photos, photos, tmp_path):
    PIL.Image.open(os.path.join(photos, "ant", "03.png")).save(
        os.path.join(photos, "ant", "copy.bmp")
    )
    data, listed = load_photos()
    assert listed == {} and len(_names(data)) == 25
    with open(tmp_path / "run" / "duplicates.csv") as file:
        (row,) = csv.DictReader(file)
    assert (row["path"], row["equals"]) == ("ant/copy.bmp", "ant/03.png")
    assert (
        "1 duplicate image (see duplicates.csv), on the same side of the split as the original"
        in (data.notes)
    )


@pytest.mark.parametrize("count, warns", [(2, False), (3, True), (24, True)])
def test_photographs_that_cannot_be_read_are_counted_and_left_out(
    load_photos, photos, capsys, count, warns
):
    _write_raw(photos, count)
    data, listed = load_photos()
    line = f"{count} camera raw photographs cannot be read: convert them to JPEG"
    assert line in data.notes and len(_names(data)) == 24
    reason = "camera raw photograph, which cannot be read: convert them to JPEG"
    assert listed == {f"ant/{i}.dng": reason for i in range(count)}
    assert (f"warning: {line}" in capsys.readouterr().err) == warns


def test_photographs_that_cannot_be_read_stop_the_run_where_they_outnumber_the_others(
    load_photos, photos
):
    _write_raw(photos, 25)
    with pytest.raises(
        DataError,
        match="25 of 49 images are of kinds that cannot be read, more than the 24 that can: "
        "25 camera raw photographs cannot be read: convert them to JPEG",
    ):
        load_photos(on_bad_image="skip")


def test_each_class_is_split_in_its_shares_and_near_copies_share_a_side(load, tmp_path):
    data, _ = load()
    for side, count in (("train", 32), ("validation", 4), ("test", 4)):
        assert np.bincount(getattr(data, side).labels).tolist() == [count] * 3
    bees = tmp_path / "photos" / "bee"
    for i in range(12):  # of each nearly the same picture
        with PIL.Image.open(bees / f"{i:02d}.png") as image:
            other = PIL.Image.fromarray(np.asarray(image) // 2 * 2)
        other.save(bees / f"{i:02d}.bmp")
    shutil.copy(bees / "20.png", bees / "20-copy.png")
    data, manifest = load()
    sides, groups = (
        {file["path"]: file[key] for file in manifest["files"]} for key in ("side", "group")
    )
    for i in range(12):
        one, other = f"bee/{i:02d}.png", f"bee/{i:02d}.bmp"
        assert sides[one] == sides[other] and groups[one] == groups[other] is not None
    sha256 = {file["path"]: file["sha256"] for file in manifest["files"]}
    assert groups["bee/00.png"] == min(sha256["bee/00.png"], sha256["bee/00.bmp"])[:16]
    assert len(set(groups.values())) == 14 and groups["bee/30.png"] is None
    assert (
        "1 duplicate image (see duplicates.csv), on the same side of the split as the original"
        in (data.notes)
    )
    assert "12 groups of near-copies, each on one side" in data.notes


def test_images_are_left_out_and_recorded(load, tmp_path):
    path = tmp_path / "doubtful.csv"
    path.write_text("path,doubt\nbee/03.png,0.9\nant/00.png,0.8\n")
    settings = dict(leave_out=str(path), begun=True)
    data, manifest = load(**settings)
    assert manifest["left_out"] == ["ant/00.png", "bee/03.png"] and len(manifest["files"]) == 118
    used = {*data.train.names, *data.validation.names, *data.test.names}
    assert len(used) == 118 and not used & set(manifest["left_out"])
    assert "2 images left out, as --leave_out says" in data.notes
    assert load(**settings, resume="auto")[1] == manifest
    path.write_text("path\nbee/03.png\nant/01.png\n")
    with pytest.raises(DataError, match=r"other images than split.json: ant/00.png, ant/01.png;"):
        load(**settings, resume="auto")
    path.write_text("path\nbee/99.png\n")
    with pytest.raises(DataError, match=r"names 1 files that are not images .*\(bee/99.png\)"):
        load(**settings)
    images = np.random.RandomState(0).randint(0, 256, (30, 16, 16, 3)).astype(np.uint8)
    path.write_text("path\narray/7\n")
    config = Config(leave_out=str(path), image_size=16)
    table = dataset.Dataset.from_arrays(images, np.arange(30) % 3, "abc", config)
    names = table.train.names + table.validation.names + table.test.names
    assert len(names) == 29 and "array/7" not in names


def test_finished_run_keeps_the_sides_that_its_split_records(load, tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("path\ncat/00.png\n")
    _, manifest = load(leave_out=str(path))
    path.unlink()
    manifest["fractions"] = [0.5, 0.3, 0.2]
    for file in manifest["files"]:  # as another rule would have it
        file["side"] = {"0": "validation", "1": "test"}.get(file["path"][-5], "train")
    split_json = tmp_path / "split.json"
    config = Config(dataset="directory", data_dir=str(tmp_path / "photos"), image_size=16)

    def recorded(**changes):
        split_json.write_text(json.dumps({**manifest, **changes}))
        return dataset.load_recorded(config, str(split_json))

    data = recorded()
    assert {name[-5] for name in data.validation.names} == {"0"} and len(data.validation) == 11
    assert {name[-5] for name in data.test.names} == {"1"} and len(data.test) == 12
    assert len(data.train) == 96
    assert recorded(left_out=[]).train.names == data.train.names  # what is new is not looked at
    del manifest["left_out"]  # by an earlier version
    (tmp_path / "photos" / "cat" / "00.png").unlink()
    for file in manifest["files"]:
        del file["group"]
    assert recorded().test.names == data.test.names
    with pytest.raises(DataError, match=r"39 missing \(cat/01.png, "):
        recorded(classes=["ant", "bee", "dog"])
    manifest["files"][5]["sha256"] = "0" * 64
    with pytest.raises(DataError, match=r"1 changed \(ant/05.png\)"):
        recorded()


def test_pixels_are_in_memory_once(write_images, tmp_path):
    photos = write_images(tmp_path / "photos", count=60, size=8)
    for name in ("ant", "bee"):  # a bad one among them: the rest moves up
        with open(os.path.join(photos, name, "07.png"), "w"):
            pass
    config = Config(
        dataset="directory",
        data_dir=photos,
        image_size=512,
        on_bad_image="skip",
        workdir=str(tmp_path / "run"),
    )
    with RunDirectory(config) as directory:
        dataset.load(
            dataclasses.replace(config, image_size=16), directory
        )  # what loading takes by itself
        peak_memory.forget_peak()
        before = peak_memory.peak_mib()
        os.remove(directory.file("split.json"))
        data = dataset.load(config, directory)
    pixels = 178 * 512 * 512 * 3
    assert sum(map(len, (data.train, data.validation, data.test))) == 178
    assert peak_memory.peak_mib() - before < 1.15 * pixels / 2**20 + 24
