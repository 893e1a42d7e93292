"""Images and labels from a table: what is refused, how they are split, what is recorded."""

import csv
import hashlib
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.data import dataset
from tl_research.data.catalog import Table, of_table
from tl_research.data.dataset import Dataset
from tl_research.errors import DataError
from tl_research.run.directory import RunDirectory

CLASSES = ("ant", "bee", "cat")


def _images(count=60, height=20, width=16):
    return np.random.RandomState(0).randint(0, 256, (count, height, width, 3)).astype(np.uint8)


def _labels(count=60):
    return np.arange(count) % 3


@pytest.fixture
def load(tmp_path):
    """A function of a table that loads it in one run directory; returns (data, split.json)."""

    def load(table, **settings):
        config = Config(image_size=16, workdir=str(tmp_path / "run"), **settings)
        with RunDirectory(config) as directory:
            directory.write_json("run.json", {})  # so that the split binds
            data = dataset.load(config, directory, lambda config: table)
            return data, directory.read_json("split.json")

    return load


def _sides(manifest):
    return {file["path"]: file["side"] for file in manifest["files"]}


def test_arrays_are_split_within_classes_by_content_and_resized_as_files_are(load):
    images, labels = _images(), _labels()
    data, manifest = load(Table(images, labels, CLASSES))
    by_name = {file["path"]: file for file in manifest["files"]}
    assert len(by_name) == 60 and manifest["classes"] == list(CLASSES)
    kept = dict(zip(data.train.names, data.train.images(range(len(data.train))).numpy()))
    ranks = {}
    for i in range(60):
        file = by_name[f"array/{i}"]
        content = b"uint8 (20, 16, 3)\n" + images[i].tobytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["class"] == CLASSES[i % 3]
        rank = hashlib.sha256(f"0\n{file['sha256']}".encode()).hexdigest()
        ranks.setdefault(i % 3, []).append((rank, file["side"]))
        if file["side"] == "train":
            resized = np.round(tf.image.resize(images[i], [16, 16]).numpy())
            np.testing.assert_array_equal(kept[f"array/{i}"], resized)
    in_order = ["train"] * 16 + ["validation"] * 2 + ["test"] * 2
    assert all([side for _, side in sorted(found)] == in_order for found in ranks.values())
    for side in ("train", "validation", "test"):
        examples = getattr(data, side)
        assert set(examples.labels) == {0, 1, 2} and examples.labels.dtype == np.int32
        assert [int(name[6:]) % 3 for name in examples.names] == examples.labels.tolist()


@pytest.mark.parametrize("kind", ["sets", "numbers"])
def test_labels_that_are_no_classes_are_split_by_content_alone(load, kind):
    labels = {
        "sets": np.random.RandomState(1).randint(0, 2, (60, 3)).astype(np.float64),
        "numbers": np.random.RandomState(1).rand(60),
    }[kind]
    data, manifest = load(Table(_images(), labels, CLASSES))
    assert load(Table(_images(), labels, CLASSES))[1] == manifest  # read and compared
    assert data.train.labels.dtype == np.float32
    for side in ("train", "validation", "test"):
        examples = getattr(data, side)
        assert len(examples) and examples.labels.shape == (len(examples), *labels.shape[1:])
        for name, label in zip(examples.names, examples.labels):
            np.testing.assert_array_equal(label, labels[int(name[6:])].astype(np.float32))
    # one label that differs in its last bit
    labels[7] = np.nextafter(labels[7].astype(np.float32), np.float32(2))
    with pytest.raises(
        DataError, match=r"split.json does not match the images: 1 changed \(array/7"
    ):
        load(Table(_images(), labels, CLASSES))


def test_each_side_has_an_image_however_few_there_are(load):
    for seed in range(5):
        images = np.random.RandomState(seed).randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)
        data, _ = load(Table(images, np.zeros(3, np.float32), ("age",)), resume="never")
        assert [len(getattr(data, side)) for side in ("train", "validation", "test")] == [1, 1, 1]


def test_run_does_not_go_on_with_other_pixels_labels_or_classes(load):
    images, labels = _images(), _labels()
    _, manifest = load(Table(images, labels, CLASSES))
    assert load(Table(images, labels.astype(np.uint8), list(CLASSES)))[1] == manifest
    other = images.copy()
    other[5, 0, 0, 0] ^= 1
    with pytest.raises(DataError, match=r"1 changed \(array/5\)") as error:
        load(Table(other, labels, CLASSES))
    assert error.value.exit_code == 2
    other = labels.copy()
    other[[0, 1]] = other[[1, 0]]
    with pytest.raises(DataError, match=r"2 changed \(array/0, array/1\)"):
        load(Table(images, other, CLASSES))
    with pytest.raises(DataError, match="split.json was made with classes"):
        load(Table(images, labels, ("ant", "bee", "dog")))
    with pytest.raises(DataError, match="1 missing"):
        load(Table(images[:-1], labels[:-1], CLASSES))


def test_equal_images_share_a_side_and_are_listed(load, tmp_path):
    images = _images()
    images[30:] = images[:30]
    data, manifest = load(Table(images, _labels(), CLASSES))
    sides = _sides(manifest)
    assert all(sides[f"array/{i}"] == sides[f"array/{i + 30}"] for i in range(30))
    assert (
        "30 duplicate images (see duplicates.csv), on the same side of the split as the original"
        in data.notes
    )
    with open(tmp_path / "run" / "duplicates.csv") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {name: row["equals"] for name, row in rows.items()} == {
        f"array/{i + 30}": f"array/{i}" for i in range(30)
    }
    content = b"uint8 (20, 16, 3)\n" + images[31].tobytes()
    assert rows["array/31"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_equal_images_may_have_other_numbers(load):
    images = _images()
    images[1] = images[0]
    data, manifest = load(Table(images, np.arange(60, dtype=np.float32), ("age",)))
    assert len(manifest["files"]) == 60
    assert (
        "1 duplicate image (see duplicates.csv), on the same side of the split as the original"
        in (data.notes)
    )


def test_arrays_in_two_classes_are_refused_or_left_out():
    images, labels = _images(), _labels()
    images[4] = images[0]
    message = r"2 of 60 images are in two classes: array/0 \(is in class bee too, as array/4\)"
    config = Config(image_size=16)
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(images, labels, CLASSES, config)
    config = Config(image_size=16, on_bad_image="skip")
    data = Dataset.from_arrays(images, labels, CLASSES, config)
    sides = (data.train, data.validation, data.test)
    kept = {name for side in sides for name in side.names}
    assert kept == {f"array/{i}" for i in range(60)} - {"array/0", "array/4"}


def test_arrays_that_do_not_fit_are_resized_for_every_batch(load):
    images = [image[: 12 + i % 9] for i, image in enumerate(_images())]  # of several sizes
    memory, _ = load(Table(images, _labels(), CLASSES))
    streamed, _ = load(Table(images, _labels(), CLASSES), cache_pixels=0)
    assert streamed.train.pixels is None and memory.train.pixels is not None
    rows = np.array([[3, 0, 5], [1, 1, 2]])
    for row, batch in zip(rows, streamed.train.stream(rows), strict=True):
        np.testing.assert_array_equal(batch, memory.train.images(row))
    name, original = streamed.train.names[4], streamed.train.original(4)
    np.testing.assert_array_equal(original, images[int(name[6:])])
    assert any("the smallest image has 16 x 12 pixels" in note for note in memory.notes)


def test_paths_are_named_from_the_folder_that_all_are_in(load, write_images, tmp_path):
    photos = write_images(tmp_path / "photos", count=8, size=16)
    paths = [os.path.join(photos, name, f"{i:02d}.png") for i in range(8) for name in CLASSES]
    data, manifest = load(Table(paths, _labels(24), CLASSES))
    assert {file["path"] for file in manifest["files"]} == {
        os.path.relpath(path, photos) for path in paths
    }
    config = Config(
        dataset="directory", data_dir=photos, image_size=16, workdir=str(tmp_path / "folder")
    )
    with RunDirectory(config) as directory:
        of_folder = dataset.load(config, directory)
        assert (
            directory.read_json("split.json") == manifest
        )  # a folder of classes is one way to say it
    assert sorted(data.train.names) == sorted(of_folder.train.names)
    np.testing.assert_array_equal(
        data.train.original(0), np.array(PIL.Image.open(data.train.paths[0]))
    )


def test_bad_files_are_listed_and_may_be_skipped(load, write_images, tmp_path):
    photos = write_images(tmp_path / "photos", count=8, size=16)
    paths = [os.path.join(photos, name, f"{i:02d}.png") for i in range(8) for name in CLASSES]
    paths[4] = os.path.join(photos, "bee", "nowhere.png")
    with open(paths[6], "wb"):
        pass
    with pytest.raises(DataError, match="2 of 24 images cannot be used: .*ant/02.png.*nowhere.png"):
        load(Table(paths, _labels(24), CLASSES))
    data, manifest = load(Table(paths, _labels(24), CLASSES), on_bad_image="skip", resume="never")
    assert "2 bad images left out, see bad_images.csv" in data.notes
    assert len(manifest["files"]) == 22
    for file in manifest["files"]:
        assert file["class"] == os.path.dirname(file["path"])
    with open(tmp_path / "run" / "bad_images.csv") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["ant/02.png", "bee/nowhere.png"]


def test_from_arrays_gives_what_a_run_would_train_on(load):
    images, labels = _images(), _labels()
    expected, _ = load(Table(images, labels, CLASSES), class_share=("bee=0.6",))
    config = Config(image_size=16, class_share=("bee=0.6",))
    received = Dataset.from_arrays(images, labels, CLASSES, config)
    assert received.classes == expected.classes and received.notes == expected.notes
    for side in ("train", "validation", "test"):
        one, other = getattr(received, side), getattr(expected, side)
        assert one.names == other.names and len(one)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(*(side.images(range(len(one))) for side in (one, other)))


@pytest.mark.parametrize(
    "table, message",
    [
        ((1, 2, 3), "load_catalog gave tuple; expected data.catalog.Table"),
        (Table(_images(), _labels(59), CLASSES), r"labels int64 \[59\] for 60 images"),
        (Table(_images(), _labels() + 1, CLASSES), "expected int .60. below 3"),
        (Table(_images(), _labels() - 1, CLASSES), "expected int .60. below 3"),
        (Table(_images(), np.ones((60, 2)), CLASSES), r"labels float64 \[60, 2\]"),
        (Table(_images(), np.full(60, np.nan), CLASSES), "finite"),
        (Table(_images(), ["ant"] * 60, CLASSES), "labels <U3"),
        (Table(_images(0), _labels(0), CLASSES), "for 0 images"),
        (Table(_images() / 255, _labels(), CLASSES), r"image 0 as float64 \[20, 16, 3\]"),
        (Table(_images()[..., :1], _labels(), CLASSES), r"image 0 as uint8 \[20, 16, 1\]"),
        (Table(["a.png", "b/a.png", "a.png"], _labels(3), CLASSES), "gave '.*/a.png' twice"),
        (Table(["a.png", _images()[0], "b.png"], _labels(3), CLASSES), "image 0 as <U5"),
    ],
)
def test_what_is_no_table_is_one_line(table, message):
    with pytest.raises(DataError, match=message) as error:
        of_table(table)
    assert "\n" not in str(error.value)
