"""Every kind of photograph is read in one way, upright, and by its content."""

import glob
import io
import os

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


@pytest.mark.parametrize(
    "start, path, expected",
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "a", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "a", "HEIC"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a.heic", None),  # a film
        (b"\xff\xd8\xff\xe1", "a.dng", "JPEG"),
        (b"MM\0*", "a.NEF", "camera raw"),
        (b"%PDF-1.7", "a.jpg", None),
    ],
)
def test_content_decides_and_the_suffix_only_for_camera_raw(start, path, expected):
    kind = formats.kind_by_content(start + bytes(50), path)
    assert (kind and kind.name) == expected
