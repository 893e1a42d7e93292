"""What a picture claims is bounded before it is decoded, in memory and time; honest large ones are
read.
"""

import io
import re
import resource
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from crafted_pictures import (
    encoded,
    gif_of,
    gif_of_frames,
    jpeg_claiming,
    jpeg_with_scans,
    tiff_with_tile,
    webp_claiming,
)

from tl_research.data import decoding, decoding_limits

MIB = 1024  # in units of ru_maxrss


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


_PROGRESSIVE = encoded("JPEG", PIL.Image.new("RGB", (64, 64), (9, 90, 200)), progressive=True)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.jpg", jpeg_claiming(_PROGRESSIVE, 65000, 65000), "4,225,000,000 pixels in 10 scans"),
        ("a.jpg", jpeg_claiming(_PROGRESSIVE, 16000, 12000), "192,000,000 pixels in 10 scans"),
        (
            "a.jpg",
            jpeg_claiming(encoded("JPEG", PIL.Image.new("L", (8, 8))), 65000, 65000),
            "in 1 scans",
        ),
        ("a.jpg", jpeg_with_scans(jpeg_claiming(_PROGRESSIVE, 6000, 4000), 8000), "in 8,010 scans"),
        ("a.jpg", b"\xff\xd8" + b"\xff\xfe\0\2" * 70_000 + _PROGRESSIVE[2:], "65,536 segments"),
        ("a.webp", webp_claiming(65536, 65536), "65536 x 65536 pixels"),
        ("a.tif", tiff_with_tile(40000, 40000), "40000 x 40000 pixels"),
        (
            "a.gif",
            gif_of((9, 9))[:6] + struct.pack("<HH", 65535, 65535) + gif_of((9, 9))[10:],
            "65535",
        ),
        ("a.gif", gif_of_frames(8000, 8000, 1), "8000 x 8000 pixels in 47,8"),
        (
            "a.bmp",
            b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 60000, 60000, 1, 8) + bytes(40),
            "pixels",
        ),
        ("a.pgm", b"P5\n60000 60000 255\n", "60000 x 60000 pixels"),
        (
            "a.j2k",
            encoded("JPEG2000", PIL.Image.new("L", (8, 8)), no_jp2=True)[:8]
            + struct.pack(">8I", 60000, 60000, 0, 0, 60000, 60000, 0, 0)
            + encoded("JPEG2000", PIL.Image.new("L", (8, 8)), no_jp2=True)[40:],
            "60000 x 60000 pixels",
        ),
    ],
)
def test_claim_is_refused_before_it_is_believed(name, content, reason):
    before, began = peak(), time.monotonic()
    with pytest.raises(decoding.BadImage, match=reason):
        decoding.decode_image(content, name)
    assert time.monotonic() - began < 1 and peak() - before < 50 * MIB


def test_frames_of_a_gif_do_not_add_up():
    before = peak()
    pixels, _ = decoding.decode_image(gif_of((65535, 1), (1, 65535)), "a.gif")
    assert pixels.shape == (1, 65535, 3) and peak() - before < 50 * MIB


def test_few_scans_of_a_small_picture_are_no_bomb():
    data = jpeg_with_scans(_PROGRESSIVE, 90)
    assert decoding.decode_image(data, "a.jpg")[0].shape == (64, 64, 3)


def test_thumbnail_and_second_picture_are_no_scans():
    lossless = _PROGRESSIVE.replace(b"\xff\xc2", b"\xff\xc3")  # which is refused
    photo = encoded("JPEG", PIL.Image.new("RGB", (40, 30)), exif=b"Exif\0\0" + lossless)
    decoding_limits.check_headers("JPEG", photo + lossless, 0)
    large = jpeg_claiming(photo, 50_000, 50_000) + lossless
    with pytest.raises(decoding.BadImage, match="^JPEG of 2,500,000,000 pixels in 1 scans; "):
        decoding_limits.check_headers("JPEG", large, 0)
    with pytest.raises(decoding.BadImage, match="^lossless"):
        decoding_limits.check_headers("JPEG", lossless, 0)
    decoding_limits.check_headers("JPEG", b"\xff\xd8\xff\xe0", 0)  # no frame


def test_coefficients_of_all_components_are_counted():
    third = [found.start() for found in re.finditer(rb"\xff\xda", _PROGRESSIVE)][2]
    two_scans = _PROGRESSIVE[:third] + b"\xff\xd9"
    decoding_limits.check_headers("JPEG", jpeg_claiming(two_scans, 13_000, 13_000), 0)
    said = "^JPEG of 182,000,000 pixels in 2 scans, of 3 components; at most 2 x "
    with pytest.raises(decoding.BadImage, match=said):
        decoding_limits.check_headers("JPEG", jpeg_claiming(two_scans, 14_000, 13_000), 0)


def page(width, height):
    """Returns a page of text in black and white."""
    image = PIL.Image.new("1", (width, height), 1)
    draw = PIL.ImageDraw.Draw(image)
    for top in range(300, height - 300, 220):
        draw.text((300, top), "The quick brown fox jumps over the lazy dog", 0, font_size=100)
    return image


@pytest.mark.parametrize("kind, options", [("TIFF", {"compression": "group4"}), ("PNG", {})])
def test_page_of_text_at_600_dots_per_inch_is_read(kind, options):
    image = page(4960, 7016)
    data = encoded(kind, image, **options)
    assert len(data) < image.width * image.height / 200  # what once was the limit
    pixels, _ = decoding.decode_image(data, f"a.{kind.lower()}")
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(image) * np.uint8(255))


_LARGE_JPEG = """
import io, resource, sys
import numpy as np, PIL.Image
from tl_research.data import decoding
tile = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
small = PIL.Image.fromarray(tile).resize((1200, 900), PIL.Image.Resampling.BILINEAR)
buffer = io.BytesIO()
small.resize((12000, 9000), PIL.Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=90)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels, traits = decoding.decode_image(buffer.getvalue(), "a.jpg")
assert pixels.shape == (4500, 6000, 3), pixels.shape
assert traits == ("of more than --max_image_pixels; decoded at a reduced scale",)
wrong = np.abs(np.asarray(small.resize((6000, 4500), PIL.Image.Resampling.BILINEAR)).astype(int)
               - pixels).mean()
assert wrong < 1.5, wrong
"""


def test_jpeg_of_108_megapixels_is_read_at_half_its_scale():
    subprocess.run([sys.executable, "-c", _LARGE_JPEG], check=True, timeout=60)


def test_flag_says_how_many_pixels_an_image_may_have():
    square = PIL.Image.new("RGB", (100, 100), (9, 90, 200))
    with pytest.raises(
        decoding.BadImage, match="100 x 100 pixels; at most --max_image_pixels, 9,999"
    ):
        decoding.decode_image(encoded("PNG", square), "a.png", 9_999)
    pixels, traits = decoding.decode_image(encoded("JPEG", square, quality=95), "a.jpg", 2_499)
    assert pixels.shape == (25, 25, 3) and len(traits) == 1
    np.testing.assert_allclose(pixels, np.broadcast_to([9, 90, 200], (25, 25, 3)), atol=2)
    for width, height, most, shape in (
        (101, 101, 2601, (51, 51)),
        (101, 101, 2600, (26, 26)),
    ):
        data = encoded("JPEG", PIL.Image.new("L", (width, height)))
        assert decoding.decode_image(data, "a.jpg", most)[0].shape == (*shape, 3)
    with pytest.raises(
        decoding.BadImage, match="100 x 100 pixels; at most --max_image_pixels, 100"
    ):
        decoding.decode_image(encoded("JPEG", square), "a.jpg", 100)
    flat = encoded("GIF", PIL.Image.new("L", (8000, 8000)))
    with pytest.raises(decoding.BadImage, match="unless --max_image_pixels is set"):
        decoding.decode_image(flat, "a.gif")
    decoding_limits.reduced(PIL.Image.open(io.BytesIO(flat)), "GIF", len(flat), 64_000_000)


def test_room_is_never_taken_twice():
    room, taken, most = decoding_limits.Room(10), [], []

    def take(part):
        with room.taken(part):
            taken.append(min(part, 10))
            most.append(sum(taken))
            time.sleep(0.001)
            taken.remove(min(part, 10))

    threads = [threading.Thread(target=take, args=(part,)) for part in [3, 4, 5, 20, 1] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 40 and max(most) == 10
