"""The bytes of an image file to its pixels, in one way for training, evaluation and prediction.

Pillow decodes every kind. EXIF orientation is applied; of an animation the first frame is taken, an
alpha channel is dropped, and of 16-bit samples the upper 8 bits are kept.
"""

import contextlib
import io
import os
import stat
import warnings

import numpy as np
import PIL.Image

from tl_research.data import formats

MAX_PIXELS = 89_478_485  # Pillow's own limit; a 48 kB GIF can claim more and would be allocated
# more than either at once: no photograph, but memory for a few bytes
BOMB_PIXELS, BOMB_PIXELS_PER_BYTE = 1 << 24, 200
MAX_BYTES = 1 << 28
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# What matters is said of the file; `catch_warnings` around each would not be safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(Exception):
    """The reason why a file is not an image that can be trained on."""


class UnreadableKind(BadImage):
    """The file is a photograph, of a kind that this installation cannot read."""

    def __init__(self, kind):
        super().__init__(f"{kind.name} photograph, which cannot be read: {kind.remedy}")
        self.kind = kind


def load_pixels(image: str | np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3] of an image: its path, or already these pixels.

    Raises:
        BadImage: With the reason why it cannot be used.
    """
    if isinstance(image, np.ndarray):
        return image
    return decode_image(read_file(image), image)[0]


def read_file(path: str) -> bytes:
    """Returns the bytes of a regular file; opening a pipe would wait for ever.

    Raises:
        BadImage: If it cannot be read, or is empty or too large for an image.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if status.st_size == 0:
            raise BadImage("empty file")
        if status.st_size > MAX_BYTES:
            raise BadImage(f"file of {status.st_size:,} bytes; at most {MAX_BYTES:,}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def decode_image(data: bytes, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns uint8 [H, W, 3], upright, and what is to be said of the file.

    Args:
        data: The content of an image file. Its size is checked before anything is decoded.
        path: Its name.

    Raises:
        UnreadableKind: If there is no decoder for a photograph of its kind.
        BadImage: With the reason why it cannot be used.
    """
    kind = formats.kind_by_content(data[: formats.SNIFFED_BYTES], path)
    if kind is None:
        raise BadImage(f"{_text_or_nothing(data)} named {_suffix(path)}")
    if not kind.is_readable:
        raise UnreadableKind(kind)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=[kind.decoder]) as image:
            _check_size(image.size, len(data))
            if kind.name == "PNG":
                _check_sums(data)
            return _decoded(image, kind, data, path)
    except PIL.Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
    except PIL.UnidentifiedImageError as error:
        raise BadImage(f"damaged {kind.name} image") from error
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers do
        what = " ".join(str(error).split()) or type(error).__name__
        is_cut = "truncated" in what.lower()
        raise BadImage(
            f"truncated {kind.name}" if is_cut else f"cannot be decoded: {what}"
        ) from error


def _decoded(image, kind, data, path):
    """Returns what `decode_image` does, from an open `PIL.Image` whose size was checked."""
    orientation = _orientation(image)
    image.load()  # which turns TIFF already
    upright = _rgb(image)
    if (left := _orientation(image)) in _TURNS:
        upright = upright.transpose(_TURNS[left])
    traits = {
        "named as another format; decoded by content": formats.suffix_of(path) not in kind.suffixes,
        "animated; the first frame is used": _is_animated(image, kind),
        "rotated by EXIF; turned upright": orientation in _TURNS,
        "not in 8-bit RGB; converted, without alpha": image.mode != "RGB"
        or (kind.name == "PNG" and data[24] == 16),
    }
    return np.asarray(upright), tuple(trait for trait, there in traits.items() if there)


def _rgb(image):
    """Returns an image of 8-bit RGB."""
    if image.mode.startswith("I;16"):  # which Pillow would clip at 255
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage("32-bit samples, of no known range; expected 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image):
    with contextlib.suppress(Exception):  # damaged EXIF beside a whole image
        return image.getexif().get(_EXIF_ORIENTATION)


def _is_animated(image, kind):
    # the two parts of an MPO or HEIC are no animation
    with contextlib.suppress(Exception):  # damage behind the first frame
        return kind.name in ("GIF", "PNG", "WebP", "AVIF") and image.is_animated


def _check_size(size, num_bytes):
    """Raises BadImage for more pixels than a photograph has, also for so few bytes."""
    pixels, what = size[0] * size[1], f"{size[0]} x {size[1]} pixels"
    if pixels > MAX_PIXELS:
        raise BadImage(f"{what}; at most {MAX_PIXELS:,}")
    if pixels > BOMB_PIXELS and pixels > BOMB_PIXELS_PER_BYTE * num_bytes:
        raise BadImage(f"{what} in {num_bytes:,} bytes; at most {BOMB_PIXELS_PER_BYTE} a byte")


def _check_sums(png):
    """Raises an exception for a PNG with a wrong checksum, which decoding does not look at."""
    with PIL.Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.verify()


def _text_or_nothing(data):
    start = data[:512].lstrip().lower()
    if b"<svg" in start:
        return "SVG text"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "HTML or XML text"
    return "no known image format"


def _suffix(path):
    return formats.suffix_of(path) or "without a suffix"
