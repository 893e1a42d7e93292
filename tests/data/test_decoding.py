"""Every kind of photograph is read in one way, upright, and by its content."""

import base64
import glob
import io
import os
import resource
import struct
from zlib import compress, crc32

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research.data import decoding, formats, image_check

# What the camera stored for each EXIF orientation, so that it is upright when turned as that says.
_STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: np.rot90(upright, 2),
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),  # the viewer turns it clockwise
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def _encoded(kind, pixels, **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def _noise(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def _smooth(height=48, width=32):
    """uint8 [height, width, 3] that survives lossy compression; no turn or flip leaves it as is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * y, 6 * x, 2 * y + 2 * x], axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    upright = _smooth()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    stored = _STORED[orientation](upright)
    data = _encoded(kind, stored, exif=_exif(orientation), **options)
    pixels, traits = decoding.decode_image(data, f"a.{kind.lower()}")
    assert pixels.shape == upright.shape and pixels.dtype == np.uint8
    # half a level of rounding in each of three conversions
    np.testing.assert_allclose(pixels.astype(int), upright, rtol=0, atol=4 if kind == "JPEG" else 0)
    assert traits == (("rotated by EXIF; turned upright",) if orientation > 1 else ())


def test_turned_photograph_gives_the_pixels_of_the_stored_ones_turned():
    stored = _encoded("JPEG", _noise(40, 30))
    turned = _encoded("JPEG", _noise(40, 30), exif=_exif(6))
    pixels, expected = (decoding.decode_image(data, "a.jpg")[0] for data in (turned, stored))
    np.testing.assert_array_equal(pixels, np.rot90(expected, -1))


def test_damaged_exif_leaves_a_whole_image_good():
    data = _encoded("JPEG", _smooth(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
    assert decoding.decode_image(data, "a.jpg")[1] == ()


def test_jpeg_is_decoded_with_the_accurate_transform():
    folder = os.environ.get("TL_RESEARCH_FLOWERS", "")
    paths = sorted(glob.glob(f"{folder}/*/*.jpg"))[::37] if folder else []
    contents = [_encoded("JPEG", _noise(64, 50, 3, seed=seed)) for seed in range(5)]
    for data in [*contents, *map(decoding.read_file, paths)]:
        expected = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        np.testing.assert_array_equal(decoding.decode_image(data, "a.jpg")[0], expected)


def test_resizing_of_one_image_equals_that_of_a_graph():
    for size in ((3, 5), (48, 32), (224, 224), (500, 301)):
        image = _noise(*size, 3)
        expected = tf.function(image_check.resized)(image, 224)
        np.testing.assert_array_equal(image_check.resize_image(image, 224), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_upper_bits_of_deep_grey_are_kept(kind):
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    pixels, traits = decoding.decode_image(_encoded(kind, grey), f"a.{kind.lower()}")
    np.testing.assert_array_equal(pixels, np.repeat(4 * np.arange(64).reshape(8, 8, 1), 3, 2))
    assert traits == ("not in 8-bit RGB; converted, without alpha",)


def test_upper_bits_of_deep_color_are_kept():
    deep = np.random.RandomState(0).randint(0, 65536, (8, 9, 3)).astype(np.uint16)
    pixels, traits = decoding.decode_image(tf.io.encode_png(deep).numpy(), "a.png")
    np.testing.assert_array_equal(pixels, deep >> 8)
    assert traits == ("not in 8-bit RGB; converted, without alpha",)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped(kind):
    image = _noise(8, 9, 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels, _ = decoding.decode_image(_encoded(kind, image, **options), f"a.{kind.lower()}")
    np.testing.assert_array_equal(pixels, image[..., :3])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_is_used(kind):
    frames = [_noise(8, 9, 3, seed=seed) for seed in range(3)]
    more = [PIL.Image.fromarray(frame) for frame in frames[1:]]
    data = _encoded(kind, frames[0], save_all=True, append_images=more, lossless=True)
    pixels, traits = decoding.decode_image(data, f"a.{kind.lower()}")
    np.testing.assert_array_equal(pixels, frames[0])
    assert traits == ("animated; the first frame is used",)


@pytest.mark.parametrize(
    "kind, name", [("TIFF", "a.tif"), ("JPEG2000", "a.jp2"), ("AVIF", "a.avif"), ("HEIF", "a.heic")]
)
def test_other_kinds_are_read_by_their_content(kind, name):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    image = _smooth()
    data = _encoded(kind, image, **({"quality": 95} if kind in ("AVIF", "HEIF") else {}))
    for path, expected in ((name, ()), ("a.jpg", ("named as another format; decoded by content",))):
        pixels, traits = decoding.decode_image(data, path)
        assert np.abs(pixels.astype(int) - image).mean() < 3 and traits == expected


def test_kind_that_cannot_be_read_is_named_with_its_remedy(monkeypatch):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
    formats.PIL.Image.init()
    monkeypatch.delitem(PIL.Image.OPEN, "HEIF", raising=False)  # as without the plug-in
    for data, path, message in (
        (heic, "IMG_1.jpg", "HEIC photograph, which cannot be read: pip install -e '.[heic]'"),
        (_encoded("TIFF", _smooth()), "a.dng", "camera raw photograph, which cannot be read"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "a", "camera raw photograph"),
        (b"\xff\x0a" + bytes(50), "a.jxl", "JPEG XL photograph, which cannot be read: convert"),
    ):
        with pytest.raises(decoding.UnreadableKind, match=message.replace("[", r"\[")):
            decoding.decode_image(data, path)


def test_first_page_of_several_is_used_and_that_is_said():
    pages = [PIL.Image.fromarray(_noise(8, 9, 3, seed=seed)) for seed in range(2)]
    data = _encoded("TIFF", np.asarray(pages[0]), save_all=True, append_images=pages[1:])
    pixels, traits = decoding.decode_image(data, "a.tif")
    np.testing.assert_array_equal(pixels, pages[0])
    assert traits == ("of several pages; the first is used",)
    assert decoding.decode_image(_encoded("TIFF", _noise(8, 9, 3)), "a.tif")[1] == ()


def test_pointer_instead_of_an_image_says_how_to_fetch_it():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    with pytest.raises(
        decoding.BadImage, match="pointer of Git LFS .*'git lfs pull' .* named .jpg"
    ):
        decoding.decode_image(pointer, "a.jpg")


def test_want_of_descriptors_is_no_fault_of_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(_encoded("PNG", _noise(8, 9, 3)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            decoding.load_pixels(str(tmp_path / "a.png"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _chunk(name, content):
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc32(name + content))
    )


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"Comment\0\0" + compress(bytes(3 << 20))),
        _chunk(b"iTXt", b"prompt\0\1\0\0\0" + compress(b"x" * (3 << 20))),
        _chunk(b"tEXt", b"workflow\0" + b"x" * (65 << 20)),
        _chunk(b"iCCP", b"profile\0\0" + compress(bytes(3 << 20))),
        _chunk(b"tEXt", b"Comment\0cut")[:-1] + b"?",  # a wrong checksum beside whole pixels
    ],
)
def test_texts_and_profiles_of_any_length_leave_a_whole_png_good(chunk):
    png = _encoded("PNG", _noise(8, 9, 3), exif=_exif(1))
    for place in (33, len(png) - 12):  # before and behind the pixels
        pixels, traits = decoding.decode_image(png[:place] + chunk + png[place:], "a.png")
        np.testing.assert_array_equal(pixels, _noise(8, 9, 3))
        assert traits == ()


def test_orientation_in_the_texts_of_a_png_is_applied():
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>".replace(b"'", b'"')
    raw = (
        b"Raw profile type exif\0\nexif\n    38\n"
        + (b"Exif\0\0" + _exif(6).tobytes()[6:]).hex().encode()
    )
    stored = _noise(8, 9, 3)
    for chunk in (_chunk(b"iTXt", xmp), _chunk(b"tEXt", raw)):
        png = _encoded("PNG", stored)
        pixels, traits = decoding.decode_image(png[:33] + chunk + png[33:], "a.png")
        np.testing.assert_array_equal(pixels, np.rot90(stored, -1))
        assert traits == ("rotated by EXIF; turned upright",)


def _interlaced(pixels):
    """Returns a PNG of uint8 [8, 8, 3] in the seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in (*passes, (1, 0, 2, 1))
        for row in pixels[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


# By cjpeg -arithmetic -quality 90, of 16 x 16 pixels (16 x, 16 y, 8 x + 8 y).
_ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDg"
    "sLEBYQERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPw"
    "D/ANwb0upzKlTtmHY3OEkOOn9LrpqqSpVxKNmFq4h3F6RMBegYpcTg/9k="
)


def _palette(kind, **options):
    """Returns an image of 8 bits with a table of colors, and those of its pixels."""
    places = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = PIL.Image.fromarray(places, "P")
    colors = _noise(256, 3, seed=1)
    image.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue(), colors[places]


def test_odd_kinds_of_a_format_give_the_colors_that_were_meant():
    y, x = np.mgrid[:16, :16]
    grey = _noise(8, 8)
    bit = np.asarray(PIL.Image.fromarray(grey).convert("1"))
    cases = {
        "interlaced.png": (_interlaced(_noise(8, 8, 3)), _noise(8, 8, 3), 0),
        "table.bmp": (*_palette("BMP"), 0),
        "table.png": (*_palette("PNG", transparency=3), 0),
        "table.gif": (*_palette("GIF", transparency=3), 0),
        "table.tif": (*_palette("TIFF"), 0),
        "key.png": (_encoded("PNG", _noise(8, 8, 3), transparency=(1, 2, 3)), _noise(8, 8, 3), 0),
        "bit.png": (_encoded("PNG", bit), bit * np.uint8(255), 0),
        "bit.bmp": (_encoded("BMP", bit), bit * np.uint8(255), 0),
        "grey.pgm": (_encoded("PPM", grey), grey, 0),
        "color.ppm": (_encoded("PPM", _noise(8, 8, 3)), _noise(8, 8, 3), 0),
        "deep.pgm": (b"P5 # GTSRB\n2 1\n65535\n\x12\x34\xff\0", np.uint8([[0x12, 0xFF]]), 0),
        "arithmetic.jpg": (_ARITHMETIC, np.stack([16 * x, 16 * y, 8 * x + 8 * y], 2), 16),
    }
    for name, (data, expected, most) in cases.items():
        pixels, _ = decoding.decode_image(data, name)
        expected = np.broadcast_to(expected.reshape(*pixels.shape[:2], -1), pixels.shape)
        np.testing.assert_allclose(pixels, expected.astype(int), rtol=0, atol=most, err_msg=name)


def test_print_colors_are_those_of_the_inks():
    inks = np.zeros((8, 8, 4), np.uint8)  # as Pillow writes them: inverted, with Adobe's marker
    inks[:4, :, 0] = 255  # cyan
    inks[4:, :, 3] = 255  # black
    buffer = io.BytesIO()
    PIL.Image.fromarray(inks, "CMYK").save(buffer, "JPEG", quality=100)
    pixels, _ = decoding.decode_image(buffer.getvalue(), "a.jpg")
    np.testing.assert_allclose(pixels[0, 0], [0, 255, 255], atol=2)
    np.testing.assert_allclose(pixels[7, 7], [0, 0, 0], atol=2)


def test_jpeg_that_no_decoder_here_reads_is_named():
    jpeg = _encoded("JPEG", _smooth())
    frame = jpeg.index(b"\xff\xc0")
    for data, what in (
        (jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "12-bit JPEG"),
        (jpeg[:frame] + b"\xff\xc3" + jpeg[frame + 2 :], "lossless or hierarchical JPEG"),
    ):
        with pytest.raises(decoding.BadImage, match=f"^{what}, which cannot be read: convert"):
            decoding.decode_image(data, "a.jpg")


@pytest.mark.parametrize(
    "start, path, expected",
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "a", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "a", "HEIC"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a.heic", None),  # a film
        (b"\xff\xd8\xff\xe1", "a.dng", "JPEG"),
        (b"MM\0*", "a.NEF", "camera raw"),
        (b"%PDF-1.7", "a.jpg", None),
        (b"P6\n# made by\n8 8 255\n", "a", "PNM"),
        (b"P5 is the best of them", "notes.txt", None),
        (b"BM\x10\0\0\0\1\0\2\0\x36\0\0\0\x28\0\0\0", "a", "BMP"),
        (b"BM, a German artist, was", "notes", None),
    ],
)
def test_content_decides_and_the_suffix_only_for_camera_raw(start, path, expected):
    kind = formats.kind_by_content(start + bytes(50), path)
    assert (kind and kind.name) == expected
