"""Which kind of photograph a file is, by its first bytes, and which kinds can be read.

The suffix counts only where a file is not to be opened, and for camera raw, whose content looks
like TIFF.
"""

import contextlib
import dataclasses
import os
import re
from typing import BinaryIO

import PIL.features
import PIL.Image

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

SNIFFED_BYTES = 64  # that tell every kind


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of photographs."""

    name: str
    suffixes: tuple[str, ...]
    signature: bytes  # regular expression of the first bytes
    decoder: str | None  # Pillow's name, or None if there is none
    feature: str | None = None  # of Pillow, where it may have been built without
    remedy: str = "convert them to JPEG"  # where they cannot be read

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


def opened(path: str) -> BinaryIO:
    """Returns an open file; a pipe that is found instead of one is not waited for."""
    return open(path, "rb", opener=lambda path, mode: os.open(path, mode | os.O_NONBLOCK))


def suffix_of(path: str) -> str:
    """Returns the end of a name that tells its kind, in small letters, with its dot."""
    return os.path.splitext(path)[1].lower()


def kind_by_suffix(path: str) -> Kind | None:
    """Returns the kind of photograph that a file is by its name, or None."""
    return _BY_SUFFIX.get(suffix_of(path))


def kind_by_content(start: bytes, path: str) -> Kind | None:
    """Returns the kind of photograph that a file with these first bytes is, or None.

    Args:
        start: At least `SNIFFED_BYTES`, or the whole file.
        path: Its name, whose suffix tells camera raw from TIFF.
    """
    found = next((kind for kind in KINDS if re.match(kind.signature, start, re.DOTALL)), None)
    return _RAW if found in (_TIFF, None) and kind_by_suffix(path) is _RAW else found
