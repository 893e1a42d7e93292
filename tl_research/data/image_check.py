"""Reads, checks, hashes, decodes and resizes every image once, before the split is decided.

Pixels are resized as in `keras.utils.image_dataset_from_directory` (bilinearly, ignoring the aspect
ratio) and rounded to uint8.
"""

import collections
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tl_research import ahead, distribution, in_place
from tl_research.data import decoding, formats, near_copies, split
from tl_research.data.catalog import Catalog, ImageFile
from tl_research.data.formats import Kind
from tl_research.data.shards import Shards

_AHEAD = 256  # files in the queue at once, and between reports of progress


class CheckedImages(NamedTuple):
    """The result of the check; all but the pixels have one row per good file, in catalog order."""

    catalog: Catalog
    good: np.ndarray  # int64 [N], indices of the good files in the catalog
    sha256s: tuple[str, ...]  # SHA-256 of each file's bytes, hexadecimal
    pixel_sha256s: tuple[str, ...]  # of the type, shape and upright pixels before resizing
    thumbnails: np.ndarray  # uint8 [N, 16, 16, 3], see `tl_research.data.near_copies`
    # uint8 [M, image_size, image_size, 3] of the files that this process holds, or None if not kept
    pixels: np.ndarray | None
    bad: list[tuple[str, str]]  # [(name, reason)] of the files that are in neither list, by name
    unreadable: list[tuple[str, Kind]]  # [(name, kind)] of photographs of an unreadable kind
    traits: dict  # {what is unusual about a good file: number of such files}
    smallest: tuple[int, int] | None  # (width, height) of the good file with the fewest pixels
    shards: Shards = Shards()

    @property
    def files(self) -> list[ImageFile]:
        """The good files."""
        return [self.catalog.files[index] for index in self.good]

    def without(self, rows: Collection[int]) -> "CheckedImages":
        """Returns a copy without some of the good files; the pixels move to the copy."""
        if not rows:
            return self
        kept = np.setdiff1d(np.arange(len(self.good)), list(rows))
        held = np.flatnonzero(np.isin(self.shards.held(self.sha256s), kept))
        return self._replace(
            good=self.good[kept],
            sha256s=tuple(self.sha256s[row] for row in kept),
            pixel_sha256s=tuple(self.pixel_sha256s[row] for row in kept),
            thumbnails=self.thumbnails[kept],
            pixels=None if self.pixels is None else in_place.kept_rows(self.pixels, held),
        )


class _Result(NamedTuple):
    """What the check finds for one file; of one that is not good only the last two."""

    sha256: bytes = b""
    pixel_sha256: bytes = b""
    thumbnail: np.ndarray = np.zeros((16, 16, 3), np.uint8)
    traits: str = ""  # one per line
    size: tuple[int, int] = (0, 0)  # width, height
    reason: str = ""
    kind: str = ""  # name of the `Kind` of a photograph that cannot be read


def resized(images: np.ndarray, image_size: int) -> tf.Tensor:
    """Returns images [..., H, W, 3] in 0..255 as in training: float32 whole numbers
    [..., image_size, image_size, 3].
    """
    return tf.round(tf.image.resize(images, [image_size, image_size], method="bilinear"))


def resize_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """Returns uint8 [image_size, image_size, 3] from uint8 [H, W, 3]: the same as `resized` for one
    image, in less than half the time.
    """
    with tf.device("CPU:0"):  # a GPU gives other pixels
        pixels = tf.raw_ops.ResizeBilinear(
            images=image[None], size=[image_size, image_size], half_pixel_centers=True
        )
    return np.rint(pixels.numpy()[0]).astype(np.uint8)


def check_images(
    catalog: Catalog,
    image_size: int,
    *,
    keep_pixels_bytes: int,
    max_pixels: int = 0,
    shards: Shards = Shards(),
    progress: Callable = lambda done, total: None,
) -> CheckedImages:
    """Returns `CheckedImages` for the files of a catalog, of which each process checks its own.

    Args:
        catalog: The images to check.
        image_size: Height and width to resize to, in pixels.
        keep_pixels_bytes: Resized pixels are kept if they fit in this many bytes.
        max_pixels: As for `decoding.decode_image`.
        shards: The shards of the run.
        progress: Called with the number of files checked and the number of files.
    """
    files, own = catalog.files, _own_places(catalog, shards)
    most = max(distribution.of_all_workers(len(own))) * image_size * image_size * 3
    keep = most <= min(distribution.of_all_workers(keep_pixels_bytes))
    pixels = in_place.zeros((len(own), image_size, image_size, 3), np.uint8) if keep else None

    def check(row: int) -> _Result:
        path = files[own[row]].path
        try:
            sha256, upright, traits = _load(path, max_pixels)
            if not len(shards.held([sha256])):
                raise decoding.BadImage("changed while it was checked")
        except decoding.UnreadableKind as error:
            return _Result(reason=str(error), kind=error.kind.name)
        except decoding.BadImage as error:
            return _Result(reason=str(error))
        if pixels is not None:
            pixels[row] = resize_image(upright, image_size)
        return _Result(
            sha256.encode(),
            pixel_sha256(upright).encode(),
            near_copies.thumbnail(upright),
            "\n".join(traits),
            (upright.shape[1], upright.shape[0]),
        )

    results = []
    for result in ahead.in_order(check, range(len(own)), _AHEAD):
        results.append(result)
        if len(results) % _AHEAD == 0 or len(results) == len(own):
            progress(len(results), len(own))
    good = [row for row, result in enumerate(results) if result.sha256]
    pixels = None if pixels is None else in_place.kept_rows(pixels, good)
    return _of_all(catalog, own, results, pixels, shards)


def _own_places(catalog, shards):
    """Returns int64 [M], the places in the catalog of the files that this process checks.

    Each process hashes a part of the files, whichever; then all know whose they are.
    """
    if shards.are_all_own:
        return np.arange(len(catalog.files))
    part = range(distribution.process_index(), len(catalog.files), distribution.num_processes())

    def sha256(place: int) -> str:
        image = catalog.files[place].path
        try:
            if isinstance(image, np.ndarray):
                return pixel_sha256(image)
            return split.content_sha256(decoding.read_file(image))
        except decoding.BadImage:  # its check, wherever, says why
            return split.content_sha256(os.fsencode(catalog.files[place].name))

    sha256s = np.array(list(ahead.in_order(sha256, part, _AHEAD)), "S64")
    found = distribution.all_gather({"place": np.array(part, np.int64), "sha256": sha256s})
    return np.sort(found["place"][shards.held(found["sha256"].astype(str))])


def pixel_sha256(pixels: np.ndarray) -> str:
    """Returns the SHA-256 of the type, shape and values of uint8 [H, W, 3], hexadecimal."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _load(image, max_pixels):
    """Returns (SHA-256 of the content, uint8 [H, W, 3], traits) of a path or an array."""
    if isinstance(image, np.ndarray):
        return pixel_sha256(image), image, ()
    content = decoding.read_file(image)
    return split.content_sha256(content), *decoding.decode_image(content, image, max_pixels)


def _of_all(catalog, own, results, pixels, shards):
    """Returns the `CheckedImages` of what all processes found, each of its own files."""
    # with a result of no file, since a process may have none
    columns = dict(zip(_Result._fields, map(np.array, zip(*results, _Result()))))
    found = shards.all_gather({**columns, "place": np.array([*own, -1])})
    order = np.argsort(found["place"])[np.count_nonzero(found["place"] < 0) :]
    is_good = found["sha256"][order] != b""
    of_good = {name: column[order[is_good]] for name, column in found.items()}
    bad = order[~is_good]
    names = [catalog.files[place].name for place in found["place"][bad]]
    refused = list(zip(names, found["reason"][bad].tolist(), found["kind"][bad].tolist()))
    traits = itertools.chain(*map(str.splitlines, of_good["traits"].tolist()))
    return CheckedImages(
        catalog,
        of_good["place"],
        tuple(of_good["sha256"].astype(str).tolist()),
        tuple(of_good["pixel_sha256"].astype(str).tolist()),
        of_good["thumbnail"],
        pixels,
        sorted([*catalog.refused, *((name, why) for name, why, kind in refused if not kind)]),
        [(name, formats.BY_NAME[kind]) for name, _, kind in refused if kind],
        dict(sorted(collections.Counter(traits).items())),
        min(map(tuple, of_good["size"].tolist()), key=math.prod, default=None),
        shards,
    )
