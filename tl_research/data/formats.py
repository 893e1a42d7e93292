"""Recognizes the kind of photograph in a file by its first bytes, and knows which can be read.

The suffix decides only where a file must not be opened, and for camera raw, whose content looks
like TIFF.
"""

import contextlib
import os
import re
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.features
import PIL.Image

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

SNIFFED_BYTES = 64  # enough to recognize every kind


class Kind(NamedTuple):
    """A kind of photograph."""

    name: str
    suffixes: tuple[str, ...]
    signature: bytes  # regular expression of the first bytes
    decoder: str | None  # Pillow's name for it, or None if it has no decoder
    feature: str | None = None  # the optional feature of Pillow that it needs
    remedy: str = "convert them to JPEG"  # if they cannot be read

    @property
    def is_readable(self) -> bool:
        """Whether this installation can decode such files."""
        PIL.Image.init()
        built = self.feature is None or bool(PIL.features.check(self.feature))
        return built and self.decoder in PIL.Image.OPEN


_RAW = Kind(
    "camera raw",
    (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"),
    rb"FUJIFILMCCD-RAW|.{4}ftypcrx |II\*\0.{4}CR|IIU\0|IIR[OS]",
    None,
)
_TIFF = Kind("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", "TIFF")
KINDS = (
    Kind(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jif", ".jfi", ".jfif", ".mpo"), rb"\xff\xd8\xff", "JPEG"
    ),
    Kind("PNG", (".png", ".apng"), rb"\x89PNG", "PNG"),
    Kind("GIF", (".gif",), rb"GIF8", "GIF"),
    Kind("BMP", (".bmp", ".dib"), rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", "BMP"),
    Kind("PNM", (".ppm", ".pgm", ".pbm", ".pnm"), rb"P[4-6]\s+(#|\d+\s)", "PPM"),
    Kind("WebP", (".webp",), rb"RIFF.{4}WEBP", "WEBP", "webp"),
    Kind("AVIF", (".avif",), rb".{4}ftyp(avi[fs]|m[is]f1.{4,44}avi[fs])", "AVIF", "avif"),
    Kind(
        "HEIC",
        (".heic", ".heif", ".hif"),
        rb".{4}ftyp(he[iv][cmsx]|m[is]f1)",
        "HEIF",
        remedy="pip install -e '.[heic]'",
    ),
    Kind(
        "JPEG 2000",
        (".jp2", ".j2k"),
        rb"\0{3}\x0cjP  |\xff\x4f\xff\x51",
        "JPEG2000",
        "jpg_2000",
    ),
    Kind("JPEG XL", (".jxl",), rb"\xff\x0a|\0{3}\x0cJXL ", None),
    _RAW,
    _TIFF,
)
BY_NAME = {kind.name: kind for kind in KINDS}
_BY_SUFFIX = {suffix: kind for kind in KINDS for suffix in kind.suffixes}


def is_image(array: np.ndarray) -> bool:
    """Returns whether an array is an image, uint8 [H, W, 3]."""
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size > 0


def opened(path: str) -> BinaryIO:
    """Returns an open file, without blocking if it is a pipe."""
    return open(path, "rb", opener=lambda path, mode: os.open(path, mode | os.O_NONBLOCK))


def suffix_of(path: str) -> str:
    """Returns the suffix of a file name in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def kind_by_suffix(path: str) -> Kind | None:
    """Returns the kind of photograph that a file name says, or None."""
    return _BY_SUFFIX.get(suffix_of(path))


def kind_by_content(start: bytes, path: str) -> Kind | None:
    """Returns the kind of photograph in a file, or None.

    Args:
        start: The first `SNIFFED_BYTES` of the file or more, or the whole file.
        path: Its name, whose suffix tells camera raw from TIFF.
    """
    found = next((kind for kind in KINDS if re.match(kind.signature, start, re.DOTALL)), None)
    return _RAW if found in (_TIFF, None) and kind_by_suffix(path) is _RAW else found
