"""Finds every image of a data set, its class, and the side it is fixed to, without opening any.

An image is a file in a class folder, or in a subfolder of one, that `tl_research.data.walk`
accepts. `--data_dir` and its class folders may be links.
"""

import collections
import itertools
import os
import stat
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from tl_research.config import Config
from tl_research.data import download, drawn_flowers, formats, sides
from tl_research.data.walk import (
    RUN,
    count_other,
    images_below,
    is_inside,
    is_of_runs,
    is_system_file,
)
from tl_research.errors import DataError, UserError


class Archive(NamedTuple):
    """The source of a named data set, and what it must contain."""

    url: str
    size: int | None  # in bytes
    sha256: str | None
    folder: str  # inside the archive
    num_images: dict  # {folder of class folders, relative to `folder`: number of images}


ARCHIVES = {
    "tf_flowers": Archive(
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        228_813_984,
        "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        "flower_photos",
        {"": 3670},
    ),
    # No hash is published: HTTPS, the checksums inside the zip, and these counts replace it.
    "cats_vs_dogs": Archive(
        "https://storage.googleapis.com/mledu-datasets/cats_and_dogs_filtered.zip",
        None,
        None,
        "cats_and_dogs_filtered",
        {"train": 2000, "validation": 1000},
    ),
}


class ImageFile(NamedTuple):
    """One image: absolute path, name in `split.json`, class, and side.

    `side` is the side itself, 'heldout' if the split chooses between validation and test,
    'development' if it chooses between training and validation, or None if it decides alone. A name
    that is not UTF-8 keeps its bytes as in `os.fsdecode`. From a `Table` the path may be the image
    itself, uint8 [H, W, 3], and the label a number, or a list of one number per class.
    """

    path: str | np.ndarray
    name: str
    label: int | float | list[float]
    side: str | None


class Catalog(NamedTuple):
    """All images of a data set, sorted by name.

    `others` counts the files that are not images, by suffix; `refused` lists (name, reason) of
    files that cannot be read safely, which the image check reports as bad images.
    """

    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    others: collections.Counter
    refused: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    @property
    def labels_are_classes(self) -> bool:
        """Whether each label is an index into `classes`."""
        return not self.files or isinstance(self.files[0].label, int)


class Table(NamedTuple):
    """Images and their labels, as an extension's `load_catalog` returns them."""

    images: Sequence  # paths of files, or uint8 [N, H, W, 3] of any size
    # int [N], indices into `classes`; float [N, K], a number per class; or float [N], numbers
    labels: np.ndarray
    classes: Sequence[str]  # K names


def of_table(table: Table) -> Catalog:
    """Returns the `Catalog` of a `Table`, in the table's order.

    An image is named by its path below the folder common to all, or by its index in the array.

    Raises:
        DataError: If it is not a valid table.
    """
    if not isinstance(table, Table):
        raise DataError(
            f"load_catalog gave {type(table).__name__}; expected data.catalog.Table(images, "
            "labels, classes); correct it"
        )
    labels = _labels_of(table)
    is_files = all(isinstance(image, (str, os.PathLike)) for image in table.images)
    named = (_named_files if is_files else _named_arrays)(table.images)
    files = [ImageFile(path, name, label, None) for (name, path), label in zip(named, labels)]
    return Catalog(tuple(map(str, table.classes)), tuple(files), collections.Counter(), (), ())


def _named_files(images):
    """Returns (name, absolute path) for each path."""
    paths = list(map(os.path.abspath, images))
    root = os.path.commonpath(map(os.path.dirname, paths))
    named = {os.path.relpath(path, root): path for path in paths}
    if len(named) < len(paths):
        twice = collections.Counter(paths).most_common(1)[0][0]
        raise DataError(f"load_catalog gave {twice!r} twice; expected each once; leave one out")
    return named.items()


def _named_arrays(images):
    """Yields (name, uint8 [H, W, 3]) for each image."""
    for i, image in enumerate(map(np.asarray, images)):
        if not formats.is_image(image):
            raise DataError(
                f"load_catalog gave image {i} as {image.dtype} {list(image.shape)}; expected "
                "paths, or uint8 [N, H, W, 3]; convert it"
            )
        yield f"array/{i}", image


def _labels_of(table: Table) -> list[Any]:
    """Returns the labels of a `Table` as Python values, rounded to float32 if they are not classes.

    Raises:
        DataError: If they do not fit its images and classes.
    """
    labels, count, classes = np.asarray(table.labels), len(table.images), len(table.classes)
    is_class = labels.ndim == 1 and labels.dtype.kind in "iu"
    fits = labels.shape in ((count,), (count, classes)) and count and labels.dtype.kind in "iufb"
    if not fits or not (
        ((labels >= 0) & (labels < classes)).all() if is_class else np.isfinite(labels).all()
    ):
        raise DataError(
            f"load_catalog gave labels {labels.dtype} {list(labels.shape)} for {count} images and "
            f"{classes} classes; expected int [{count}] below {classes}, or finite float [{count}, "
            f"{classes}] or [{count}]; correct them"
        )
    return (labels if is_class else labels.astype(np.float32)).tolist()


def find_images(config: Config) -> Catalog:
    """Returns the `Catalog` of the data set that `--dataset` names, which is downloaded or drawn
    into `--download_dir` first if it is not there.

    `--data_dir` is a folder of class folders, instead of a download; for cats_vs_dogs a folder with
    train/ and validation/ (and test/), unless `--validation_dir` is given. That and `--test_dir`
    have the same classes, and names then begin with train/, validation/ or test/. Without
    `--test_dir` the validation images are halved; without `--validation_dir` the training images
    are split into both.

    Raises:
        UnreachableError: The archive cannot be downloaded.
        DataError: A folder is missing, unreadable or without class folders, or the number of images
            is wrong.
        StorageError: `--download_dir` cannot be written.
    """
    root = config.data_dir or _own_root(config)
    if config.dataset == "cats_vs_dogs" and not (config.validation_dir or config.test_dir):
        given = sides.of_cats_vs_dogs(root, config.data_dir)
    else:
        given = sides.given(root, config.validation_dir, config.test_dir)
    found = of_folders(given)
    if not config.data_dir:
        _check_counts(config, found.files, root)
    return found


def of_folders(given: Sequence[tuple[str, str | None, str]]) -> Catalog:
    """Returns the `Catalog` of folders of class folders.

    Args:
        given: Of each (folder, side as of `ImageFile`, the flag that names it), the one with all
            classes first.

    Raises:
        DataError: As `find_images`.
    """
    walk = _Walk()
    for named in given:
        walk.add(*named)
    return Catalog(
        tuple(walk.classes),
        tuple(sorted(walk.files, key=lambda file: file.name)),
        walk.others,
        tuple(sorted(walk.refused)),
        tuple(walk.warnings),
    )


def is_there(config: Config) -> bool:
    """Returns whether a named data set was downloaded or drawn before."""
    return os.path.isdir(_own_folder(config))


def _own_folder(config):
    version = f"-{drawn_flowers.VERSION}" if config.dataset == "drawn_flowers" else ""
    return f"{config.download_dir}/{config.dataset}{version}"


def _own_root(config):
    """Returns the folder of a named data set, which is made first if it is not there."""
    folder, mirror = config.download_dir, config.download_base_url
    if folder.startswith("~"):
        raise UserError(
            f"--download_dir={folder}, and no home directory is known (HOME is not set and "
            "the user has no account); expected one; set HOME or give --download_dir"
        )
    unpacked = _own_folder(config)
    if config.dataset == "drawn_flowers":
        return download.make_folder(unpacked, _draw_all)
    archive = ARCHIVES[config.dataset]
    file_name = archive.url.rpartition("/")[2]
    if not os.path.isdir(unpacked):  # once unpacked, the archive may be deleted
        url = f"{mirror.rstrip('/')}/{file_name}" if mirror else archive.url
        path = download.fetch(url, folder, file_name, size=archive.size, sha256=archive.sha256)
        download.unpack(path, unpacked, max_files=20_000, max_bytes=1 << 30)
    return f"{unpacked}/{archive.folder}"


def _draw_all(folder):
    for name in drawn_flowers.CLASSES:
        os.mkdir(f"{folder}/{name}")
    every = list(itertools.product(drawn_flowers.CLASSES, range(drawn_flowers.IMAGES_PER_CLASS)))
    for name, i in tqdm.tqdm(every, "drawing flowers", disable=None):
        drawn_flowers.write_bmp(f"{folder}/{name}/{i:03d}.bmp", drawn_flowers.draw(name, i))


def _check_counts(config, files, root):
    """Raises DataError unless a data set that we made or downloaded is complete."""
    expected = {"": drawn_flowers.IMAGES_PER_CLASS * len(drawn_flowers.CLASSES)}
    if config.dataset in ARCHIVES:
        expected = ARCHIVES[config.dataset].num_images
    for name, count in expected.items():
        folder = os.path.join(root, name)
        found = sum(file.path.startswith(folder) for file in files)
        if found != count:
            raise DataError(
                f"{folder} has {found} images; expected {count}; delete "
                f"{_own_folder(config)} and run again"
            )


def _check_classes(classes, folder, flag):
    if len(classes) < 2:
        named = ", ".join(map(repr, classes)) or "no folders"
        deeper, hint = sides.with_classes(folder), "point one level too high or too low"
        if deeper != folder:
            hint = f"mean {deeper}"
        raise DataError(
            f"{flag}={folder} holds {len(classes)} classes ({named}); expected at least 2 folders "
            f"of images; did you {hint}?"
        )
    sides.check(classes, folder, flag)
    _check_twins(classes, folder)


def _check_twins(classes, folder):
    """Raises DataError if two class names look alike."""
    seen = {}
    for name in classes:
        other = seen.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), name)
        if other != name:
            raise DataError(
                f"classes {other!a} and {name!a} in {folder} differ only by case, spaces or "
                "encoding; merge or rename them"
            )


def _is_reached_folder(entry, folder, flag):
    """Returns whether an entry of a data directory is a folder, or a link to one.

    Raises:
        DataError: If that cannot be determined, since it may be a class.
    """
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError as error:
        target = f", a link to {os.readlink(entry.path)}" if entry.is_symlink() else ""
        raise DataError(
            f"class {entry.name!r} in {flag}={folder} cannot be reached ({error.strerror}{target});"
            " expected a folder of images; restore it or remove the entry"
        ) from error


class _Walk:
    """Collects the images of one or more folders of class folders."""

    def __init__(self):
        self.classes, self.files, self.refused, self.warnings = [], [], [], []
        self.others = collections.Counter()

    def add(self, folder: str, side: str | None, flag: str) -> None:
        """Adds the images of a folder; the first one must have all classes.

        Args:
            folder: A folder of class folders.
            side: As for `ImageFile`.
            flag: The flag that names the folder, for messages.
        """
        found = self._class_folders(folder, flag)
        if not self.classes:
            self.classes = found
            _check_classes(found, folder, flag)
        if extra := sorted(set(found) - set(self.classes)):
            _check_twins([*self.classes, *extra], folder)
            raise DataError(
                f"{flag}={folder} has class {extra[0]!r}, which the training images lack; "
                f"expected {', '.join(self.classes[:5])}; remove it or add training images"
            )
        prefix = sides.PREFIXES.get(side, f"{side}/")
        for label, name in enumerate(self.classes):
            if name in found:
                self._images(folder, name, f"{prefix}{name}/", label, side)
            else:
                self.warnings.append(f"class {name!r} has no folder in {folder}")

    def _class_folders(self, folder, flag):
        """Returns the sorted names of the class folders in `folder`; counts everything else."""
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            raise DataError(
                f"{flag}={folder} cannot be read ({error.strerror}); expected a directory with one "
                "folder per class"
            ) from error
        real = os.path.realpath(folder)
        names = []
        for entry in entries:
            if is_system_file(entry.name) or not _is_reached_folder(entry, folder, flag):
                is_image = formats.kind_by_suffix(entry.name)
                where = " beside the class folders" if is_image else ""
                count_other(entry.name, self.others, where)
            elif entry.is_symlink() and is_inside(real, os.path.realpath(entry.path)):
                self.refused.append((entry.name, "link to a folder that holds the data directory"))
            elif is_of_runs(entry.path):
                self.others[RUN] += 1
            else:
                names.append(entry.name)
        return sorted(names)

    def _images(self, root, name, prefix, label, side):
        """Adds every image below a class folder."""
        folder, count = f"{root}/{name}", len(self.files)
        # the class folder itself may be a link
        inside = (os.path.realpath(root), os.path.realpath(folder))
        for found, path, reason in images_below(folder, inside, self.others):
            if reason and path == folder:
                raise DataError(
                    f"class {prefix[:-1]!r} is an {reason} ({folder}); expected one that can be "
                    "read; change its permissions or remove it"
                )
            if reason:
                self.refused.append((prefix + found, reason))
            else:
                self.files.append(ImageFile(path, prefix + found, label, side))
        if len(self.files) == count:
            raise DataError(
                f"class {name!r} has 0 images in {root}; expected photographs; add some or remove "
                "the folder"
            )
