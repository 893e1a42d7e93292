"""Decodes image files to pixels, in the same way for training, evaluation and prediction.

Pillow decodes every kind. EXIF orientation is applied, the first frame of an animation is used, an
alpha channel is dropped, and the upper 8 bits of 16-bit samples are kept.
"""

import contextlib
import errno
import io
import os
import stat
import warnings

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from tl_research.data import decoding_limits, formats, split
from tl_research.data.decoding_limits import BadImage

MAX_BYTES = 1 << 28
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_REDUCED = "of more than --max_image_pixels; decoded at a reduced scale"
# What matters is reported per file; `catch_warnings` around each would not be safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableKind(BadImage):
    """The file is a photograph of a kind that this installation cannot read."""

    def __init__(self, kind: formats.Kind):
        super().__init__(f"{kind.name} photograph, which cannot be read: {kind.remedy}")
        self.kind = kind


def load_pixels(path: str, max_pixels: int = 0, sha256: str | None = None) -> np.ndarray:
    """Returns the pixels of an image file, uint8 [H, W, 3].

    Args:
        path: The file.
        max_pixels: As for `decode_image`.
        sha256: Expected SHA-256 of its content, hexadecimal, or None.

    Raises:
        BadImage: With the reason why it cannot be used.
    """
    data = read_file(path)
    if sha256 and split.content_sha256(data) != sha256:
        raise BadImage("its content has changed")
    return decode_image(data, path, max_pixels)[0]


def pixels_of(
    image: str | os.PathLike | bytes | PIL.Image.Image | np.ndarray, max_pixels: int = 0
) -> np.ndarray:
    """Returns the upright pixels, uint8 [H, W, 3], of a path, the bytes of an image file, a
    `PIL.Image`, or an array or tensor, uint8 [H, W, 3].

    Raises:
        BadImage: With the reason why it cannot be used.
    """
    if isinstance(image, (str, os.PathLike)):
        return load_pixels(os.fspath(image), max_pixels)
    if isinstance(image, bytes):
        return decode_image(image, "", max_pixels)[0]
    if isinstance(image, PIL.Image.Image):
        return np.asarray(_upright(image))
    array = np.asarray(image)
    if not formats.is_image(array):
        raise BadImage(f"array of {array.dtype} {list(array.shape)}; expected uint8 [H, W, 3]")
    return array


def read_file(path: str) -> bytes:
    """Returns the bytes of a regular file; opening a pipe would block.

    Raises:
        BadImage: If it cannot be read, is empty, or is too large for an image.
        OSError: If the system is out of file handles or memory.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if status.st_size > MAX_BYTES:
            raise BadImage(f"file of {status.st_size:,} bytes; at most {MAX_BYTES:,}")
        with formats.opened(path) as file:  # it may have been replaced
            data = file.read(MAX_BYTES)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # not the image's fault
        raise BadImage(error.strerror or str(error)) from error
    if not data:
        raise BadImage("empty file")
    return data


def decode_image(data: bytes, path: str, max_pixels: int = 0) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (upright pixels, uint8 [H, W, 3]; what is unusual about the file).

    Args:
        data: The content of an image file; its cost is checked before anything is decoded.
        path: Its name.
        max_pixels: As `Config.max_image_pixels`.

    Raises:
        UnreadableKind: If there is no decoder for a photograph of its kind.
        BadImage: With the reason why it cannot be used.
    """
    kind = _readable_kind(data, path)
    decoding_limits.check_headers(kind.name, data, max_pixels)
    content = _without_texts(data) if kind.name == "PNG" else data
    try:
        with PIL.Image.open(io.BytesIO(content), formats=[str(kind.decoder)]) as image:
            is_reduced = decoding_limits.reduced(image, kind.name, len(data), max_pixels)
            if kind.name == "PNG":  # decoding ignores wrong checksums
                with PIL.Image.open(io.BytesIO(content), formats=["PNG"]) as again:
                    again.verify()
            with decoding_limits.ROOM.taken(image.width * image.height):
                pixels, traits = _decoded(image, kind, data, path)
            return pixels, (*traits, _REDUCED) if is_reduced else traits
    except PIL.UnidentifiedImageError as error:
        raise BadImage(f"damaged {kind.name} image") from error
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers raise
        what = " ".join(str(error).split()) or type(error).__name__
        is_cut = "truncated" in what.lower()
        raise BadImage(
            f"truncated {kind.name}" if is_cut else f"cannot be decoded: {what}"
        ) from error


def _readable_kind(data, path):
    kind = formats.kind_by_content(data[: formats.SNIFFED_BYTES], path)
    if kind is None:
        suffix = formats.suffix_of(path) or "without a suffix"
        raise BadImage(f"{_text_or_nothing(data)}, named {suffix}")
    if not kind.is_readable:
        raise UnreadableKind(kind)
    return kind


def _decoded(image, kind, data, path):
    """Returns (pixels, traits) as `decode_image` does, of a `PIL.Image` whose size was checked."""
    is_turned = _orientation(image) in _TURNS
    upright = _upright(image)
    is_animated, is_deep = _is_animated(image, kind), kind.name == "PNG" and data[24] == 16
    traits = {
        "named as another format; decoded by content": formats.suffix_of(path) not in kind.suffixes,
        "animated; the first frame is used": is_animated and kind.name != "TIFF",
        "of several pages; the first is used": is_animated and kind.name == "TIFF",
        "rotated by EXIF; turned upright": is_turned,
        "not in 8-bit RGB; converted, without alpha": image.mode != "RGB" or is_deep,
    }
    return np.asarray(upright), tuple(trait for trait, applies in traits.items() if applies)


def _upright(image):
    """Returns an image in 8-bit RGB, turned as its EXIF says."""
    image.load()  # this turns TIFF already
    upright = _rgb(image)
    left = _orientation(image)
    return upright.transpose(_TURNS[left]) if left in _TURNS else upright


def _rgb(image):
    """Returns an image in 8-bit RGB."""
    is_deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if is_deep:  # Pillow would clip at 255
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage("32-bit samples of unknown range; expected 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image):
    with contextlib.suppress(Exception):  # damaged EXIF beside a whole image
        return image.getexif().get(_EXIF_ORIENTATION)


def _is_animated(image, kind):
    # the two parts of an MPO or HEIC are not an animation
    with contextlib.suppress(Exception):  # damage behind the first frame
        return kind.name in ("GIF", "PNG", "WebP", "AVIF", "TIFF") and image.is_animated


def _without_texts(png):
    """Returns a PNG without its color profile and texts, which may be too long for Pillow, except
    texts that can hold an orientation.
    """
    kept, at = [png[:8]], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        is_text = png[at + 4 : at + 8] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
        if not is_text or png.startswith((b"XML:com.adobe.xmp\0", b"Raw profile type"), at + 8):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _text_or_nothing(data):
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "pointer of Git LFS ('git lfs pull' fetches the image)"
    if b"<svg" in start:
        return "SVG text"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "HTML or XML text"
    return "not in a known image format"
