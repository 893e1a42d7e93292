"""Reads, checks, hashes and decodes every image once, before anything is decided from the files.

Pixels are those of `keras.utils.image_dataset_from_directory`, rounded to uint8: decoded to RGB,
resized bilinearly without keeping the aspect ratio. EXIF rotation is ignored, as there; of an
animation the first frame is taken; an alpha channel is dropped and 16-bit samples are reduced.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import os
import re
import stat
import struct
import warnings

import numpy as np
import PIL
import PIL.Image
import tensorflow as tf

from tl_research.data import split

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
}
MAX_PIXELS = 89_478_485  # Pillow's own limit; a 48 kB GIF can claim more and would be allocated
# more than either at once: no photograph, but memory for a few bytes
BOMB_PIXELS, BOMB_PIXELS_PER_BYTE = 1 << 24, 200
MAX_BYTES = 1 << 28
_SIGNATURES = {
    "PNG": rb"\x89PNG",
    "JPEG": rb"\xff\xd8\xff",
    "GIF": rb"GIF8",
    "BMP": rb"BM.{4}\0{4}",
    "WebP": rb"RIFF.{4}WEBP",
}
_EXIF_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class CheckedImages:
    """What the check found; the arrays have one row for each good file, in the order of the
    catalog.
    """

    good: np.ndarray  # int64 [N], places of the good files in the catalog
    sha256s: tuple[str, ...]  # SHA-256 of each file's bytes, hexadecimal
    fractions: np.ndarray  # float64 [N], see `tl_research.data.split`
    # uint8 [N, image_size, image_size, 3], or None where they were not to be kept
    pixels: np.ndarray | None
    bad: list  # [(name, reason)] of all other files, sorted by name
    traits: dict  # {what is said of good files that are not as one might think: how many they are}
    smallest: tuple[int, int] | None  # (width, height) of the good file with the fewest pixels


def make_decoder(image_size):
    """Returns a function from the bytes of an image file, a scalar string tensor, or from uint8
    [H, W, 3], to uint8 [image_size, image_size, 3].
    """

    @tf.function(reduce_retracing=True)
    def decode(data):
        data = tf.convert_to_tensor(data)
        image = decode_image(data) if data.dtype == tf.string else data
        return tf.cast(resized(image, image_size), tf.uint8)

    return decode


def decode_image(data):
    """Returns uint8 [H, W, 3] of the bytes of an image file, a scalar string tensor."""
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def resized(images, image_size):
    """Returns images [..., H, W, 3] in 0..255 as training sees them: [..., image_size, image_size,
    3], float32 whole numbers.
    """
    return tf.round(tf.image.resize(images, [image_size, image_size], method="bilinear"))


def load_image(path, decode):
    """Returns (uint8 pixels, the file's bytes, what is to be said of it, (width, height) before it
    was resized).

    Args:
        path: Of the file, which is checked before anything is decoded; or uint8 [H, W, 3], whose
            bytes are those of type, shape and pixels.
        decode: What `make_decoder` returns.

    Raises:
        BadImage: With the reason why it cannot be used.
    """
    if isinstance(path, np.ndarray):
        data = f"{path.dtype} {path.shape}\n".encode() + path.tobytes()
        return decode(tf.constant(path)).numpy(), data, (), (path.shape[1], path.shape[0])
    try:
        data = _read(path)
        traits, size = _check_header(data, path)
        return decode(tf.constant(data)).numpy(), data, traits, size
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    except tf.errors.OpError as error:
        raise BadImage(_decode_reason(data, error)) from error


def check_images(
    catalog, image_size, split_seed, *, keep_pixels_bytes, progress=lambda done, total: None
):
    """Returns `CheckedImages` for the files of a catalog.

    Pixels are kept where they fit in `keep_pixels_bytes`.
    """
    files = catalog.files
    decode = make_decoder(image_size)
    keep = len(files) * image_size * image_size * 3 <= keep_pixels_bytes
    pixels = np.zeros((len(files), image_size, image_size, 3), np.uint8) if keep else None

    def check(index):
        """Returns (None, sha256, fraction, traits, size) or (reason, None, None, (), None)."""
        try:
            image, data, traits, size = load_image(files[index].path, decode)
        except BadImage as error:
            return str(error), None, None, (), None
        if keep:
            pixels[index] = image
        return (
            None,
            split.content_sha256(data),
            split.split_fraction(split_seed, data),
            traits,
            size,
        )

    results = []
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        # in slices, so that a million files do not wait in the queue at once
        for start in range(0, len(files), 256):
            results += pool.map(check, range(start, min(start + 256, len(files))))
            progress(len(results), len(files))
    good = np.array([i for i, result in enumerate(results) if result[0] is None], np.int64)
    bad = [(files[i].name, result[0]) for i, result in enumerate(results) if result[0] is not None]
    if keep and len(good) < len(files):
        pixels = pixels[good]
    traits = collections.Counter(trait for result in results for trait in result[3])
    smallest = min(
        (result[4] for result in results if result[4]),
        key=lambda size: size[0] * size[1],
        default=None,
    )
    return CheckedImages(
        good,
        tuple(results[i][1] for i in good),
        np.array([results[i][2] for i in good], np.float64),
        pixels,
        sorted(bad + list(catalog.refused)),
        dict(sorted(traits.items())),
        smallest,
    )


class BadImage(Exception):
    """The reason why a file is not an image that can be trained on."""


def _read(path):
    """Returns the bytes of a regular file; opening a pipe would wait for ever."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    if status.st_size == 0:
        raise BadImage("empty file")
    if status.st_size > MAX_BYTES:
        raise BadImage(f"file of {status.st_size:,} bytes; at most {MAX_BYTES:,}")
    with open(path, "rb") as file:
        return file.read()


def _check_header(data, path):
    """Checks type and size before anything is decoded.

    Returns (what is to be said of the file, (width, height)).
    """
    suffix = os.path.splitext(path)[1].lower()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is checked below
            with PIL.Image.open(io.BytesIO(data)) as image:
                image_format, mode, (width, height) = image.format, image.mode, image.size
                animated, rotated = (
                    image_format in ("PNG", "WEBP") and getattr(image, "is_animated", False),
                    False,
                )
                # of others Pillow would decode the whole to look for it
                if image_format in ("JPEG", "MPO", "WEBP"):
                    with contextlib.suppress(Exception):
                        rotated = image.getexif().get(_EXIF_ORIENTATION) in range(2, 9)
    except PIL.Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers do
        start = data[:512].lstrip().lower()
        damaged = next(
            (
                name
                for name, signature in _SIGNATURES.items()
                if re.match(signature, data, re.DOTALL)
            ),
            None,
        )
        if damaged:
            raise BadImage(f"damaged {damaged} image") from error
        kind = (
            "SVG text"
            if b"<svg" in start
            else "HTML or XML text"
            if start.startswith((b"<!doctype", b"<html", b"<?xml"))
            else "HEIC image"
            if data[4:8] == b"ftyp"
            else "no known image format"
        )
        raise BadImage(f"{kind} named {suffix or 'without a suffix'}") from error
    if image_format not in FORMATS:
        raise BadImage(f"{image_format} image; expected JPEG, PNG, GIF, BMP or WebP")
    pixels, what = (
        max(width * height, gif_pixels(data) if image_format == "GIF" else 0),
        f"{width} x {height} pixels",
    )
    if pixels > width * height:
        what += f", {pixels:,} in all frames"
    if pixels > MAX_PIXELS:
        raise BadImage(f"{what}; at most {MAX_PIXELS:,}")
    if pixels > BOMB_PIXELS and pixels > BOMB_PIXELS_PER_BYTE * len(data):
        raise BadImage(f"{what} in {len(data):,} bytes; at most {BOMB_PIXELS_PER_BYTE} a byte")
    traits = {
        "named as another format; decoded by content": suffix not in FORMATS[image_format],
        "animated; the first frame is used": animated or pixels > width * height,
        "rotated by EXIF, which is ignored": rotated,
        "not in 8-bit RGB; converted, without alpha": mode != "RGB"
        or (image_format == "PNG" and data[24] == 16),
    }
    return tuple(trait for trait, there in traits.items() if there), (width, height)


def gif_pixels(data):
    """Returns the pixels of all frames of a GIF: TensorFlow decodes each one, to keep the first."""
    total, place = 0, 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while place + 10 <= len(data) and data[place] != 0x3B:
        if data[place] == 0x2C:
            width, height, flags = struct.unpack_from("<HHB", data, place + 5)
            total += width * height
            place += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            place += 2
        while place < len(data) and data[place]:  # its blocks of data
            place += data[place] + 1
        place += 1
    return total


def _decode_reason(data, error):
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-64:]:
        return "truncated JPEG"
    # Behind TensorFlow's own account of the graph, before the name of the node.
    return (
        "cannot be decoded: "
        + error.message.split("\n\t [[")[0].split("[Op:")[0].strip().split("\n")[-1].strip()
    )
