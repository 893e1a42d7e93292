"""Limits the memory and time of decoding an image file, from its headers, before decoding begins:
every format can claim more than it holds.

A JPEG with more pixels than allowed is decoded at a half, a quarter or an eighth of its scale.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

import PIL.Image

MAX_PIXELS = 89_478_485  # Pillow's own limit, which ignores reduced scales
# A file that exceeds both, in bytes of its decoded pixels, is a decompression bomb. Photographs of
# flat surfaces stay below, and so does a black-and-white page at 600 dots per inch.
_BOMB_BYTES, _BOMB_BYTES_PER_BYTE = 3 << 24, 600
# Each scan visits all pixels: 16 scans of the largest allowed image take 3 s. A photograph has up
# to a dozen. `pytest tests/data/test_decoding_limits.py` checks the limit.
_SCANNED = 16
_AT_ONCE = 4 * MAX_PIXELS  # pixels that all threads decode at once, at up to 12 bytes each
_SCALES = (1, 2, 4, 8)  # of a JPEG
_MAX_SEGMENTS = 1 << 16  # of a JPEG
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # except fill, escapes and restarts
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # sequential or progressive, also arithmetic
_SCAN, _END = 0xDA, 0xD9
PIL.Image.MAX_IMAGE_PIXELS = None  # checked here instead


class BadImage(Exception):
    """Why a file cannot be used as an image."""


class _Jpeg(NamedTuple):
    """The headers of a JPEG."""

    frame: int  # its start-of-frame marker, which says how it is compressed
    bits: int
    pixels: int
    components: int
    scans: int


class Room:
    """A resource that threads share: together they never take more than its size."""

    def __init__(self, size: int):
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, part: int) -> Iterator[None]:
        """Waits until `part` of the resource is free, at most all of it, and takes it inside."""
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
    """Raises BadImage for a file that Pillow should not even open.

    Args:
        kind: Name of the `formats.Kind`.
        data: The content of the file.
        max_pixels: As for `reduced`.
    """
    limit = max(max_pixels, MAX_PIXELS)
    if kind == "WebP" and data[12:16] == b"VP8X":  # opening allocates the canvas
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        _check_pixels(width, height, limit)
    if kind == "JPEG" and (jpeg := _read_jpeg(data)):
        _check_jpeg(jpeg, limit)


def reduced(image: PIL.Image.Image, kind: str, num_bytes: int, max_pixels: int) -> bool:
    """Returns whether an open image will be decoded at a reduced scale.

    Args:
        image: Not decoded yet; its scale is set here.
        kind: Name of the `formats.Kind`.
        num_bytes: Size of the file.
        max_pixels: Largest allowed number of pixels; 0: `MAX_PIXELS`, or fewer in a tiny file.

    Raises:
        BadImage: If it has more pixels.
    """
    limit, (width, height) = max_pixels or MAX_PIXELS, image.size
    if kind == "JPEG":  # at the largest scale at which it has at most `limit` pixels
        fitting = (s for s in _SCALES if -(-width // s) * -(-height // s) <= limit)
        if (scale := next(fitting, _SCALES[-1])) > 1:
            image.draft(None, (max(1, width // scale), max(1, height // scale)))
    if image.width * image.height > limit:
        _check_pixels(width, height, limit)
    if kind == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        _check_pixels(tags.get(322, 1), tags.get(323, 1), limit)  # a tile is allocated whole
    bits = 1 if image.mode == "1" else 8 * len(image.getbands())
    decoded = image.width * image.height * bits // 8
    if not max_pixels and decoded > max(_BOMB_BYTES, _BOMB_BYTES_PER_BYTE * num_bytes):
        raise BadImage(
            f"{width} x {height} pixels in {num_bytes:,} bytes; at most {_BOMB_BYTES_PER_BYTE} of "
            "memory for each, unless --max_image_pixels is set"
        )
    return (width, height) != image.size


def _check_pixels(width, height, limit):
    if width * height > limit:
        raise BadImage(f"{width} x {height} pixels; at most --max_image_pixels, {limit:,}")


def _check_jpeg(jpeg, limit):
    """Raises BadImage for a JPEG of an unsupported kind, or one that is too expensive."""
    if jpeg.bits != 8 or jpeg.frame not in _DECODED_FRAMES:
        what = f"{jpeg.bits}-bit" if jpeg.bits != 8 else "lossless or hierarchical"
        raise BadImage(f"{what} JPEG, which cannot be read: convert it to 8 bits")
    what = f"JPEG of {jpeg.pixels:,} pixels in {jpeg.scans:,} scans"
    if jpeg.pixels * jpeg.scans > _SCANNED * limit:
        most = _SCANNED * limit // max(1, jpeg.pixels)
        raise BadImage(f"{what}; at most {most} for so many, unless --max_image_pixels is set")
    # With several scans all coefficients are kept at any scale, 2 bytes each.
    if jpeg.scans > 1 and jpeg.pixels * jpeg.components > 6 * limit:
        raise BadImage(
            f"{what}, of {jpeg.components} components; at most 2 x --max_image_pixels, {limit:,}"
        )


def _read_jpeg(data):
    """Returns the `_Jpeg` of a file, or None if it has no frame; raises BadImage if it has too many
    segments.
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
