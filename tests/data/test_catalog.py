"""Folders to files: what counts, what is refused, which side is fixed."""

import collections
import contextlib
import hashlib
import http.server
import os
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile

import pytest

from tl_research import errors
from tl_research.config import Config
from tl_research.data import catalog, drawn_flowers, walk


def make(root, *names):
    for name in names:
        path = os.path.join(os.fspath(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    return str(root)


def find(root, **arguments):
    config = Config(
        dataset="directory", data_dir=str(root), download_dir="/nonexistent", **arguments
    )
    return catalog.find_images(config)


def names(found):
    return [file.name for file in found.files]


def test_classes_are_sorted_folders_and_files_are_sorted_by_name(tmp_path):
    found = find(
        make(
            tmp_path, "b/2.png", "a/1.JPG", "b/1.webp", "a/deep/x.jpg/0.gif", "a/z.bmp", "b/q.jpeg"
        )
    )
    assert found.classes == ("a", "b")
    assert names(found) == [
        "a/1.JPG",
        "a/deep/x.jpg/0.gif",
        "a/z.bmp",
        "b/1.webp",
        "b/2.png",
        "b/q.jpeg",
    ]
    assert [file.label for file in found.files] == [0, 0, 0, 1, 1, 1]
    assert {file.side for file in found.files} == {None}
    assert found.files[1].path == str(tmp_path / "a/deep/x.jpg/0.gif")
    assert (found.others, found.refused, found.warnings) == ({}, (), ())


def test_other_files_are_counted_by_suffix(tmp_path):
    make(
        tmp_path,
        "a/1.jpg",
        "b/1.jpg",
        "a/._1.jpg",
        "a/Thumbs.db",
        "a/.ipynb_checkpoints/1.jpg",
        "__MACOSX/a/1.jpg",
        "LICENSE.txt",
        "a/notes.txt",
        ".git/x.jpg",
        "loose.jpg",
    )
    found = find(tmp_path)
    assert names(found) == ["a/1.jpg", "b/1.jpg"]
    assert found.others == {
        "hidden or system": 5,
        ".txt": 2,
        ".jpg beside the class folders": 1,
    }
    assert walk.others_text(found.others) == (
        "8 other files are not used: 5 hidden or system, 2 .txt, 1 .jpg beside the class folders"
    )


def test_text_on_other_files_is_short_and_readable():
    assert walk.others_text(collections.Counter({".\udcff": 1})) == (
        "1 other file is not used: 1 .\\xff"
    )
    many = collections.Counter({f".{i}": i for i in range(1, 9)})
    assert walk.others_text(many) == (
        "36 other files are not used: 8 .8, 7 .7, 6 .6, 5 .5, 4 .4, 3 more kinds"
    )


def test_image_is_known_by_its_first_bytes_where_its_suffix_says_nothing(tmp_path):
    starts = {
        "photo": b"\xff\xd8\xff\xe0",
        "shot.jpg_large": b"\x89PNG\r\n",
        "phone.tmp": b"\0\0\0\x18ftypheic",
        "film.mov": b"\0\0\0\x14ftypqt  ",
        "table.csv": b"a,b\n",
        "raw.cr3": b"",  # a kind that is named, if it cannot be read
    }
    make(tmp_path, "b/1.jpg", *(f"a/{name}" for name in starts))
    for name, start in starts.items():
        (tmp_path / "a" / name).write_bytes(start + bytes(60 if start else 0))
    os.mkfifo(tmp_path / "a/pipe.txt")
    (tmp_path / "a/away.txt").symlink_to(tmp_path / "nowhere")
    found = find(tmp_path)
    assert names(found) == ["a/phone.tmp", "a/photo", "a/raw.cr3", "a/shot.jpg_large", "b/1.jpg"]
    assert found.others == {".mov": 1, ".csv": 1, ".txt": 2} and found.refused == ()


def test_names_that_are_not_utf8_travel(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "b/-\n \U0001f33b.jpg")
    open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb").close()
    found = find(tmp_path)
    assert "a/\udcff.jpg" in names(found) and "b/-\n \U0001f33b.jpg" in names(found)
    assert all(os.path.exists(file.path) for file in found.files)


def test_links_that_leave_dangle_or_turn_in_circles_and_fifos_are_refused(tmp_path):
    outside = tmp_path / "outside"
    make(outside, "secret.jpg", "folder/1.jpg")
    root = tmp_path / "data"
    make(root, "a/1.jpg", "b/1.jpg")
    (root / "a/inside.jpg").symlink_to(root / "b/1.jpg")
    (root / "a/outside.jpg").symlink_to(outside / "secret.jpg")
    (root / "a/dangling.jpg").symlink_to(root / "b/none.jpg")
    (root / "a/self.jpg").symlink_to(root / "a/self.jpg")
    (root / "a/up").symlink_to(root)
    (root / "a/away").symlink_to(outside / "folder")
    (root / "circle").symlink_to(tmp_path)
    os.mkfifo(root / "b/fifo.jpg")
    found = find(root)
    assert found.classes == ("a", "b")
    assert names(found) == ["a/1.jpg", "a/inside.jpg", "b/1.jpg"]
    reasons = dict(found.refused)
    assert sorted(reasons) == [
        "a/away",
        "a/dangling.jpg",
        "a/outside.jpg",
        "a/self.jpg",
        "a/up",
        "b/fifo.jpg",
        "circle",
    ]
    assert reasons["a/outside.jpg"] == f"link that leaves the data directory: {outside}/secret.jpg"
    assert reasons["a/dangling.jpg"].startswith("dangling link")
    assert reasons["b/fifo.jpg"] == "not a regular file"


def test_data_dir_and_class_folders_may_be_links(tmp_path):
    make(tmp_path / "real", "a/1.jpg")
    make(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "real/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/2.jpg").symlink_to("1.jpg")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    assert names(find(tmp_path / "data")) == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]


def test_order_in_which_a_folder_is_listed_does_not_matter(tmp_path, monkeypatch):
    make(tmp_path, "b/2.jpg", "a/10.jpg", "a/9.jpg", "b/x/1.jpg")
    scandir, found = os.scandir, []
    for last_first in (False, True):

        def listed(path):
            with scandir(path) as entries:
                by_name = sorted(entries, key=lambda entry: entry.name, reverse=last_first)
            return contextlib.nullcontext(by_name)

        monkeypatch.setattr(walk.os, "scandir", listed)
        found.append(find(tmp_path))
    assert found[0] == found[1] and names(found[0])[0] == "a/10.jpg"


def test_unreadable_folders(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "a/locked/2.jpg", "b/1.jpg")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", refuse)
    found = find(tmp_path)
    assert names(found) == ["a/1.jpg", "b/1.jpg"]
    assert found.refused == (("a/locked/", "unreadable folder: Permission denied"),)
    with pytest.raises(errors.DataError, match="--data_dir=.*locked cannot be read"):
        find(tmp_path / "a/locked")


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "cannot be read"),
        (["x.jpg", "y.jpg"], "holds 0 classes .no folders."),
        (
            ["flowers/a/1.jpg", "flowers/b/1.jpg"],
            "holds 1 classes .'flowers'.*did you mean .*/flowers",
        ),
        (["a/1.jpg", "rose/notes.txt"], "class 'rose' has 0 images"),
        (["rose/1.jpg", "Rose/1.jpg"], "'Rose' and 'rose' .* differ only"),
        (["rose/1.jpg", "rose /1.jpg"], "'rose' and 'rose ' .* differ only"),
        (["\u00e9/1.jpg", "e\u0301/1.jpg"], "differ only"),
        (
            ["train/a/1.jpg", "test/a/1.jpg", "val/a/1.jpg"],
            (
                "sides and not classes; use --data_dir=.*/train --validation_dir=.*/val "
                "--test_dir=.*/test"
            ),
        ),
        (["train/a/1.jpg", "test/a/1.jpg"], "use --data_dir=.*/train --test_dir=.*/test$"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, files, message):
    make(tmp_path / "data", *files)
    with pytest.raises(errors.DataError, match=message) as raised:
        find(tmp_path / "data")
    assert "\n" not in str(raised.value)


def test_given_validation_images_are_held_out_and_given_test_images_fix_all_sides(tmp_path):
    make(tmp_path, "t/a/1.jpg", "t/b/1.jpg", "v/a/1.jpg", "v/b/2.jpg", "x/a/3.jpg", "x/b/3.jpg")
    found = find(tmp_path / "t", validation_dir=str(tmp_path / "v"))
    assert [(file.name, file.label, file.side) for file in found.files] == [
        ("train/a/1.jpg", 0, "train"),
        ("train/b/1.jpg", 1, "train"),
        ("validation/a/1.jpg", 0, "heldout"),
        ("validation/b/2.jpg", 1, "heldout"),
    ]
    found = find(tmp_path / "t", validation_dir=str(tmp_path / "v"), test_dir=str(tmp_path / "x"))
    assert [(file.name, file.side) for file in found.files][:4:2] == [
        ("test/a/3.jpg", "test"),
        ("train/a/1.jpg", "train"),
    ]
    assert {file.side for file in found.files} == {"train", "validation", "test"}


def test_labels_come_from_the_training_side_alone(tmp_path):
    make(
        tmp_path,
        "t/a/1.jpg",
        "t/b/1.jpg",
        "t/c/1.jpg",
        "v/b/1.jpg",
        "v/c/2.jpg",
        "w/b/1.jpg",
        "w/d/1.jpg",
    )
    found = find(tmp_path / "t", validation_dir=str(tmp_path / "v"))
    assert [(file.name, file.label) for file in found.files[3:]] == [
        ("validation/b/1.jpg", 1),
        ("validation/c/2.jpg", 2),
    ]
    assert found.warnings == (f"class 'a' has no folder in {tmp_path}/v",)
    with pytest.raises(errors.DataError, match="--validation_dir=.*/w has class 'd'"):
        find(tmp_path / "t", validation_dir=str(tmp_path / "w"))


def test_cats_vs_dogs_local_layouts(tmp_path):
    make(
        tmp_path / "c",
        "train/cats/1.jpg",
        "train/dogs/1.jpg",
        "validation/cats/2.jpg",
        "validation/dogs/2.jpg",
        "vectorize.py",
    )

    def sides(**arguments):
        found = catalog.find_images(
            Config(dataset="cats_vs_dogs", download_dir="/nonexistent", **arguments)
        )
        return found.classes, [(file.name, file.side) for file in found.files]

    expected = (
        ("cats", "dogs"),
        [
            ("train/cats/1.jpg", "train"),
            ("train/dogs/1.jpg", "train"),
            ("validation/cats/2.jpg", "heldout"),
            ("validation/dogs/2.jpg", "heldout"),
        ],
    )
    assert sides(data_dir=str(tmp_path / "c")) == expected
    assert (
        sides(data_dir=str(tmp_path / "c/train"), validation_dir=str(tmp_path / "c/validation"))
        == expected
    )
    with pytest.raises(errors.DataError, match="does not hold train/ and validation/"):
        sides(data_dir=str(tmp_path / "c/train"))
    make(tmp_path / "c", "test/cats/3.jpg", "test/dogs/3.jpg")
    assert {side for _, side in sides(data_dir=str(tmp_path / "c"))[1]} == {
        "train",
        "validation",
        "test",
    }


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield types.SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}/", folder=folder)
    server.shutdown()
    server.server_close()


def test_tf_flowers_from_a_mirror(tmp_path, mirror, monkeypatch):
    make(
        tmp_path / "src/flower_photos",
        *[f"{name}/{i}.jpg" for name in drawn_flowers.CLASSES for i in range(734)],
        "LICENSE.txt",
    )
    archive = mirror.folder / "flower_photos.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "src/flower_photos", "flower_photos")
    cache = tmp_path / "cache"
    # The pinned size and hash refuse what is not the real archive, whoever the mirror is.
    with pytest.raises(
        errors.DataError, match="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
    ):
        catalog.find_images(
            Config(dataset="tf_flowers", download_dir=str(cache), download_base_url=mirror.url)
        )
    url, _, _, *rest = catalog.ARCHIVES["tf_flowers"]
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    ours = catalog.Archive(url, archive.stat().st_size, sha256, *rest)
    monkeypatch.setitem(catalog.ARCHIVES, "tf_flowers", ours)
    found = catalog.find_images(
        Config(dataset="tf_flowers", download_dir=str(cache), download_base_url=mirror.url)
    )
    assert len(found.files) == 3670 and found.classes == drawn_flowers.CLASSES
    assert found.others == {".txt": 1}
    assert names(found)[0] == "daisy/0.jpg"
    archive.unlink()
    os.remove(found.files[0].path)  # cached: no server is asked, but the count is checked
    with pytest.raises(errors.DataError, match="has 3669 images; expected 3670; delete "):
        catalog.find_images(
            Config(dataset="tf_flowers", download_dir=str(cache), download_base_url=mirror.url)
        )


def test_cats_vs_dogs_from_a_mirror(tmp_path, mirror):
    with zipfile.ZipFile(mirror.folder / "cats_and_dogs_filtered.zip", "w") as file:
        for folder, count in (("train", 1000), ("validation", 500)):
            for name in ("cats", "dogs"):
                for i in range(count):
                    file.writestr(f"cats_and_dogs_filtered/{folder}/{name}/{i}.jpg", b"")
    found = catalog.find_images(
        Config(
            dataset="cats_vs_dogs",
            download_dir=str(tmp_path / "cache"),
            download_base_url=mirror.url,
        )
    )
    assert [sum(file.side == side for file in found.files) for side in ("train", "heldout")] == [
        2000,
        1000,
    ]
    with pytest.raises(errors.UnreachableError):
        catalog.find_images(
            Config(
                dataset="tf_flowers",
                download_dir=str(tmp_path / "cache"),
                download_base_url=mirror.url,
            )
        )


def test_drawn_flowers_are_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_flowers, "IMAGES_PER_CLASS", 2)
    found = catalog.find_images(Config(dataset="drawn_flowers", download_dir=str(tmp_path)))
    assert found.files[0].path == str(
        tmp_path / f"drawn_flowers-{drawn_flowers.VERSION}" / "daisy" / "000.bmp"
    )
    assert found.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert names(found)[:3] == ["daisy/000.bmp", "daisy/001.bmp", "dandelion/000.bmp"]
    monkeypatch.setattr(drawn_flowers, "draw", None)
    assert catalog.find_images(Config(dataset="drawn_flowers", download_dir=str(tmp_path))) == found
    monkeypatch.setattr(drawn_flowers, "IMAGES_PER_CLASS", 3)
    with pytest.raises(errors.DataError, match="has 10 images; expected 15"):
        catalog.find_images(Config(dataset="drawn_flowers", download_dir=str(tmp_path)))


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(drawn_flowers, "write_bmp", interrupt)
    with pytest.raises(KeyboardInterrupt):
        catalog.find_images(Config(dataset="drawn_flowers", download_dir=str(tmp_path)))
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []


def test_a_hundred_thousand_entries_are_listed_in_about_a_second(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    fake = [
        types.SimpleNamespace(
            name=f"{i:06d}.jpg",
            path=f"/x/{i:06d}.jpg",
            is_dir=lambda **_: False,
            is_symlink=lambda: False,
            is_file=lambda **_: True,
        )
        for i in range(100_000)
    ]
    scandir = os.scandir

    class Listing(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(
        catalog.os,
        "scandir",
        lambda path: Listing(fake) if os.fspath(path).endswith("/a") else scandir(path),
    )
    began = time.process_time()
    assert len(find(tmp_path).files) == 100_001
    assert time.process_time() - began < 3


def test_no_tensorflow_is_imported():
    code = (
        "import sys; from tl_research.data import catalog, split; sys.exit('tensorflow' in "
        "sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
