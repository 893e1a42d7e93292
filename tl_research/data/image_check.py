"""Reads, checks, hashes, decodes and resizes every image once, before anything is decided from the
files.

Pixels are resized as by `keras.utils.image_dataset_from_directory` (bilinearly, without keeping the
aspect ratio) and rounded to uint8.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tl_research import ahead, in_place
from tl_research.data import decoding, near_copies, split
from tl_research.data.catalog import Catalog, ImageFile
from tl_research.data.formats import Kind

_AHEAD = 256  # files that wait in the queue at once; progress is told after so many


@dataclasses.dataclass(frozen=True)
class CheckedImages:
    """What the check found; the arrays have one row for each good file, in the order of the
    catalog.
    """

    catalog: Catalog
    good: np.ndarray  # int64 [N], places of the good files in it
    sha256s: tuple[str, ...]  # SHA-256 of each file's bytes, hexadecimal
    pixel_sha256s: tuple[str, ...]  # of its type, shape and upright pixels before resizing
    thumbnails: np.ndarray  # uint8 [N, 16, 16, 3], see `tl_research.data.near_copies`
    # uint8 [N, image_size, image_size, 3], or None where they were not to be kept
    pixels: np.ndarray | None
    # [(name, reason)] of all other files, sorted by name, but for those in the next
    bad: list[tuple[str, str]]
    unreadable: list[tuple[str, Kind]]  # photographs of a kind that cannot be read
    traits: dict  # {what is said of good files that are not as one might think: how many they are}
    smallest: tuple[int, int] | None  # (width, height) of the good file with the fewest pixels

    @property
    def files(self) -> list[ImageFile]:
        """The good files."""
        return [self.catalog.files[index] for index in self.good]

    def without(self, rows: Collection[int]) -> "CheckedImages":
        """Returns this without some of the good files; it takes over the pixels."""
        if not rows:
            return self
        kept = np.setdiff1d(np.arange(len(self.good)), list(rows))
        return dataclasses.replace(
            self,
            good=self.good[kept],
            sha256s=tuple(self.sha256s[row] for row in kept),
            pixel_sha256s=tuple(self.pixel_sha256s[row] for row in kept),
            thumbnails=self.thumbnails[kept],
            pixels=None if self.pixels is None else in_place.kept_rows(self.pixels, kept),
        )


class _Good(NamedTuple):
    """What is kept of one good file."""

    sha256: str
    pixel_sha256: str
    thumbnail: np.ndarray
    traits: tuple[str, ...]
    size: tuple[int, int]  # width, height


def resized(images: np.ndarray, image_size: int) -> tf.Tensor:
    """Returns images [..., H, W, 3] in 0..255 as training sees them: [..., image_size, image_size,
    3], float32 whole numbers.
    """
    return tf.round(tf.image.resize(images, [image_size, image_size], method="bilinear"))


def resize_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """Returns uint8 [image_size, image_size, 3] of uint8 [H, W, 3]: what `resized` does, of one
    image in less than half the time.
    """
    with tf.device("CPU:0"):  # on a GPU other pixels
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
    progress: Callable = lambda done, total: None,
) -> CheckedImages:
    """Returns `CheckedImages` for the files of a catalog.

    Args:
        catalog: The images to check.
        image_size: Height and width, in pixels, that they are resized to.
        keep_pixels_bytes: Resized pixels are kept where they fit in so many bytes.
        max_pixels: As of `decoding.decode_image`.
        progress: Is called with the number of files that were checked and that there are.
    """
    files = catalog.files
    keep = len(files) * image_size * image_size * 3 <= keep_pixels_bytes
    pixels = in_place.zeros((len(files), image_size, image_size, 3), np.uint8) if keep else None

    def check(index: int) -> "_Good | decoding.BadImage":
        """Returns `_Good`, or the `BadImage` that says why it is not."""
        try:
            content, upright, traits = _load(files[index].path, max_pixels)
        except decoding.BadImage as error:
            return error
        if pixels is not None:
            pixels[index] = resize_image(upright, image_size)
        return _Good(
            split.content_sha256(content),
            pixel_sha256(upright),
            near_copies.thumbnail(upright),
            traits,
            (upright.shape[1], upright.shape[0]),
        )

    results = []
    for result in ahead.in_order(check, range(len(files)), _AHEAD):
        results.append(result)
        if len(results) % _AHEAD == 0 or len(results) == len(files):
            progress(len(results), len(files))
    return _gathered(catalog, results, pixels)


def pixel_sha256(pixels: np.ndarray) -> str:
    """Returns the SHA-256 of the type, shape and values of uint8 [H, W, 3], hexadecimal."""
    digest = hashlib.sha256(_header(pixels))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _header(pixels):
    return f"{pixels.dtype} {pixels.shape}\n".encode()


def _load(image, max_pixels):
    """Returns (content to hash, uint8 [H, W, 3], traits) of a path, or of an array, whose content
    is its type, shape and values.
    """
    if isinstance(image, np.ndarray):
        return _header(image) + image.tobytes(), image, ()
    content = decoding.read_file(image)
    return content, *decoding.decode_image(content, image, max_pixels)


def _gathered(catalog, results, pixels):
    """Returns the `CheckedImages` of what was found for each file of a catalog."""
    good, bad, unreadable = [], list(catalog.refused), []
    for index, result in enumerate(results):
        name = catalog.files[index].name
        if isinstance(result, _Good):
            good.append(index)
        elif isinstance(result, decoding.UnreadableKind):
            unreadable.append((name, result.kind))
        else:
            bad.append((name, str(result)))
    columns = zip(*(results[index] for index in good)) if good else [()] * len(_Good._fields)
    sha256s, pixel_sha256s, thumbnails, traits, sizes = columns
    counts = collections.Counter(itertools.chain.from_iterable(traits))
    return CheckedImages(
        catalog,
        np.array(good, np.int64),
        sha256s,
        pixel_sha256s,
        np.array(thumbnails, np.uint8).reshape(-1, 16, 16, 3),
        None if pixels is None else in_place.kept_rows(pixels, good),
        sorted(bad),
        unreadable,
        dict(sorted(counts.items())),
        min(sizes, key=math.prod, default=None),
    )
