"""What decoding an image file may take, in memory and time, judged by its headers before any of it
begins: every format can claim more than it holds.

A JPEG with more pixels than allowed is decoded at a half, a quarter or an eighth of its scale.
"""

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterator

import PIL.Image

MAX_PIXELS = 89_478_485  # Pillow's own limit, which knows no reduced scale
# Both at once are memory for a few bytes, in bytes of the pixels as they are decoded: a flat
# photograph stays below, and so does a page of black and white at 600 dots per inch.
_BOMB_BYTES, _BOMB_BYTES_PER_BYTE = 3 << 24, 600
# A scan goes over all pixels: 3 s for 16 times the most pixels. A photograph has up to a dozen.
_SCANNED = 16
_AT_ONCE = 4 * MAX_PIXELS  # pixels in decoding, of all threads together: 12 bytes each at most
_SCALES = (1, 2, 4, 8)  # of a JPEG
_MAX_SEGMENTS = 1 << 16  # of a JPEG
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # but fill, escapes and restarts
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # sequential and progressive, also arithmetic
_SCAN, _END = 0xDA, 0xD9
PIL.Image.MAX_IMAGE_PIXELS = None  # it is looked at here


class BadImage(Exception):
    """The reason why a file is not an image that can be trained on."""


@dataclasses.dataclass(frozen=True)
class _Jpeg:
    """What the headers of a JPEG say."""

    frame: int  # the marker that begins it, and says how it is compressed
    bits: int
    pixels: int
    components: int
    scans: int


class Room:
    """What threads take parts of, that are together no more than there is."""

    def __init__(self, size: int):
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, part: int) -> Iterator[None]:
        """Inside, `part` of it is taken, or all that there is; it is waited for."""
        part = min(part, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= part)
            self._free -= part
        try:
            yield
        finally:
            with self._changed:
                self._free += part
                self._changed.notify_all()


ROOM = Room(_AT_ONCE)


def check_headers(kind: str, data: bytes, max_pixels: int) -> None:
    """Raises BadImage for what no decoder should be given, not even to open it.

    Args:
        kind: Name of the `formats.Kind`.
        data: The content of the file.
        max_pixels: As of `reduced`.
    """
    limit = max(max_pixels, MAX_PIXELS)
    if kind == "WebP" and data[12:16] == b"VP8X":  # whose canvas is allocated when it is opened
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        _check_pixels(width, height, limit)
    if kind == "JPEG" and (jpeg := _read_jpeg(data)):
        _check_jpeg(jpeg, limit)


def reduced(image: PIL.Image.Image, kind: str, num_bytes: int, max_pixels: int) -> bool:
    """Returns whether an open image, not yet decoded, will be at a reduced scale.

    Args:
        image: It is told so.
        kind: Name of the `formats.Kind`.
        num_bytes: Of the file.
        max_pixels: That it may have; 0 is `MAX_PIXELS`, and fewer for next to no bytes.

    Raises:
        BadImage: If it has more pixels.
    """
    limit, (width, height) = max_pixels or MAX_PIXELS, image.size
    if kind == "JPEG":
        _draft(image, limit)
    if image.width * image.height > limit:
        _check_pixels(width, height, limit)
    if kind == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        _check_pixels(tags.get(322, 1), tags.get(323, 1), limit)  # a tile is allocated as a whole
    bits = 1 if image.mode == "1" else 8 * len(image.getbands())
    decoded = image.width * image.height * bits // 8
    if not max_pixels and decoded > max(_BOMB_BYTES, _BOMB_BYTES_PER_BYTE * num_bytes):
        raise BadImage(
            f"{width} x {height} pixels in {num_bytes:,} bytes; at most {_BOMB_BYTES_PER_BYTE} of "
            "memory for each, but for --max_image_pixels"
        )
    return (width, height) != image.size


def _draft(image, limit):
    """Lets a JPEG be decoded at the largest scale at which it has no more pixels than `limit`."""
    width, height = image.size
    fitting = (s for s in _SCALES if -(-width // s) * -(-height // s) <= limit)
    scale = next(fitting, _SCALES[-1])
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _check_pixels(width, height, limit):
    if width * height > limit:
        raise BadImage(f"{width} x {height} pixels; at most --max_image_pixels, {limit:,}")


def _check_jpeg(jpeg, limit):
    """Raises BadImage for a JPEG of a kind that is not decoded, or that would take too much."""
    if jpeg.bits != 8 or jpeg.frame not in _DECODED_FRAMES:
        what = f"{jpeg.bits}-bit" if jpeg.bits != 8 else "lossless or hierarchical"
        raise BadImage(f"{what} JPEG, which cannot be read: convert it to one of 8 bits")
    what = f"JPEG of {jpeg.pixels:,} pixels in {jpeg.scans:,} scans"
    if jpeg.pixels * jpeg.scans > _SCANNED * limit:
        most = _SCANNED * limit // max(1, jpeg.pixels)
        raise BadImage(f"{what}; at most {most} of so many, but for --max_image_pixels")
    # All coefficients of several scans are kept, at any scale: as many bytes as of so many pixels.
    if jpeg.scans > 1 and jpeg.pixels * jpeg.components > 6 * limit:
        raise BadImage(
            f"{what}, of {jpeg.components} components; at most 2 x --max_image_pixels, {limit:,}"
        )


def _read_jpeg(data):
    """Returns the `_Jpeg` of a file, or None if it has no frame; raises BadImage if it has too many
    parts to be looked at.
    """
    frame, header, scans, at = None, b"", 0, 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if not found or found[1][0] == _END:
            break
        marker, at = found[1][0], found.end()
        if marker in _FRAMES and frame is None:
            frame, header = marker, data[at : at + 8]
        scans += marker == _SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    else:
        raise BadImage(f"JPEG of more than {_MAX_SEGMENTS:,} segments")
    if len(header) < 8:
        return None
    height, width = (int.from_bytes(header[place : place + 2], "big") for place in (3, 5))
    return _Jpeg(frame, header[2], height * width, header[7], scans)
