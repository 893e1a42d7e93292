"""Every file is looked at once: good ones give Keras' pixels, bad ones are named, nothing hangs or
eats the memory.
"""

import csv
import hashlib
import io
import os
import random
import resource
import threading

import crafted_pictures
import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research.data import catalog as catalog_lib
from tl_research.data import image_check
from tl_research.files import csv_text


def _pixels(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def _bytes(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or PIL.Image.fromarray(_pixels(40, 30))).save(buffer, kind, **options)
    return buffer.getvalue()


def _check(paths, image_size=16, keep=1 << 30, refused=(), **kwargs):
    files = tuple(
        catalog_lib.ImageFile(str(path), os.path.basename(path), 0, None) for path in paths
    )
    catalog = catalog_lib.Catalog(("a",), files, {}, tuple(refused), ())
    return image_check.check_images(catalog, image_size, keep_pixels_bytes=keep, **kwargs)


def _write(directory, **contents):
    paths = []
    for name, content in contents.items():
        paths.append(directory / name.replace("__", "."))
        paths[-1].write_bytes(content)
    return paths


def test_pixels_equal_those_of_keras_within_rounding(tmp_path):
    for label, sizes in enumerate([[(40, 30), (16, 16), (300, 20)], [(7, 90), (1, 1), (224, 224)]]):
        (tmp_path / f"class{label}").mkdir()
        for i, (height, width) in enumerate(sizes):
            image = PIL.Image.fromarray(_pixels(height, width, i))
            kind = ("png", "bmp", "gif")[(i + label) % 3]
            image.save(tmp_path / f"class{label}" / f"{i}.{kind}")
    theirs = keras.utils.image_dataset_from_directory(
        tmp_path,
        image_size=(24, 24),
        batch_size=None,
        shuffle=False,
        interpolation="bilinear",
        verbose=0,
    )
    theirs = np.stack([image for image, _ in theirs.as_numpy_iterator()])
    catalog = catalog_lib.of_folders([(str(tmp_path), None, "--data_dir")])
    checked = image_check.check_images(catalog, 24, keep_pixels_bytes=1 << 30)
    assert checked.bad == [] and checked.pixels.dtype == np.uint8
    np.testing.assert_allclose(checked.pixels, theirs, rtol=0, atol=0.501)
    assert np.ptp(theirs) > 200


def test_each_bad_kind_is_named_with_its_reason(tmp_path):
    jpeg = _bytes("JPEG")
    png = _bytes("PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    bad = {
        "empty__jpg": (b"", "empty file"),
        "random__jpg": (
            np.random.RandomState(0).bytes(500),
            "not in a known image format, named .jpg",
        ),
        "page__jpg": (b"\n<!DOCTYPE html><html></html>", "HTML or XML text, named .jpg"),
        "drawing__png": (b'<svg xmlns="x"></svg>', "SVG text, named .png"),
        "phone__jpg": (b"\0\0\0\x18ftypheic" + bytes(50), "damaged HEIC image"),
        "range__tif": (_bytes("TIFF", PIL.Image.new("F", (8, 8))), "32-bit samples of unknown"),
        "half__jpg": (jpeg[: len(jpeg) // 2], "truncated JPEG"),
        "tail__jpg": (jpeg[:-2], "truncated JPEG"),
        "cut__png": (png[: len(png) // 2], "truncated PNG"),
        "crc__png": (bytes(flipped), "cannot be decoded: broken PNG file (bad header checksum"),
        "cut__gif": (_bytes("GIF")[:-400], "truncated GIF"),
        "cut__bmp": (_bytes("BMP")[:500], "truncated BMP"),
        "cut__tif": (_bytes("TIFF")[:500], "truncated TIFF"),
        "cut__webp": (_bytes("WEBP")[:100], "cannot be decoded: could not create decoder"),
        "cut__avif": (_bytes("AVIF")[:-100], "truncated AVIF"),
        "header__gif": (_bytes("GIF")[:9], "damaged GIF image"),
        "header__jpg": (jpeg[:20], "JPEG"),
        "sound__webp": (
            b"RIFF\0\0\0\0WAVEfmt " + bytes(50),
            "not in a known image format, named .webp",
        ),
        "car__bmp": (b"BMW 320i, of 1985", "not in a known image format, named .bmp"),
        "huge__png": (crafted_pictures.png_claiming(20000, 20000), "pixels"),
        "large__gif": (crafted_pictures.gif_claiming(12000, 12000), "12000 x 12000 pixels"),
    }
    good = {"good__png": png, "good__jpg": jpeg}
    paths = _write(tmp_path, **{name: content for name, (content, _) in bad.items()}, **good)
    os.mkdir(tmp_path / "folder.jpg")
    checked = _check(
        [*paths, tmp_path / "folder.jpg", tmp_path / "gone.jpg"],
        refused=[("link.jpg", "dangling link to x")],
    )
    reasons = dict(checked.bad)
    assert list(reasons) == sorted(reasons)
    assert set(reasons) == {name.replace("__", ".") for name in bad} | {
        "folder.jpg",
        "gone.jpg",
        "link.jpg",
    }
    for name, (_, reason) in bad.items():
        assert reason in reasons[name.replace("__", ".")]
        assert "\n" not in reasons[name.replace("__", ".")]
    assert (
        reasons["folder.jpg"] == "not a regular file"
        and reasons["gone.jpg"] == "No such file or directory"
    )
    assert checked.good.tolist() == [len(bad), len(bad) + 1]
    # The rows that are left belong to the files that are left.
    expected = image_check.resized(_pixels(40, 30), 16)
    np.testing.assert_array_equal(checked.pixels[0], expected)
    assert (
        checked.sha256s[0] == hashlib.sha256(png).hexdigest()
        and len(checked.pixels) == len(checked.thumbnails) == 2
    )


def _damaged(content, random):
    """Returns bytes changed at random, and how."""
    content, kind = bytearray(content), random.choice(["cut", "bits", "zeros", "empty", "longer"])
    place = random.randrange(len(content))
    if kind == "cut":
        del content[place:]
    elif kind == "bits":
        for _ in range(random.randint(1, 20)):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif kind == "zeros":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == "empty":
        content.clear()
    else:
        content += bytes(64)
    return bytes(content), kind


def test_images_damaged_at_random_are_used_or_named(tmp_path, times):
    draw, paths, kinds = random.Random(0), [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(240 * times):
        suffix = ("jpg", "png", "gif", "bmp", "webp", "tif")[number % 6]
        pixels = _pixels(draw.randint(20, 90), draw.randint(20, 90), number)
        paths.append(tmp_path / f"{number}.{suffix}")
        PIL.Image.fromarray(pixels).save(paths[-1])
        content, kind = _damaged(paths[-1].read_bytes(), draw)
        paths[-1].write_bytes(content)
        kinds.append(kind)
    checked = _check(paths)
    named = dict(checked.bad)
    used = {paths[place].name for place in checked.good}
    assert len(checked.pixels) == len(used) and not used & named.keys()
    assert used | named.keys() == {path.name for path in paths}
    assert all(path.name in named for path, kind in zip(paths, kinds) if kind == "empty")
    assert len(used) > 60 and len(named) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_unusual_but_whole_images_are_good(tmp_path):
    image = PIL.Image.fromarray(_pixels(20, 20))
    frames = [PIL.Image.fromarray(_pixels(20, 20, i)) for i in range(3)]
    turned, upright = PIL.Image.Exif(), PIL.Image.Exif()
    turned[0x0112], upright[0x0112] = 6, 0  # by a camera that does not know
    deep = PIL.Image.fromarray(
        np.random.RandomState(0).randint(0, 65536, (20, 20)).astype(np.uint16)
    )
    paths = _write(
        tmp_path,
        trailing__jpg=_bytes("JPEG", image) + b"more",
        grey__png=_bytes("PNG", image.convert("L")),
        alpha__png=_bytes("PNG", image.convert("RGBA")),
        palette__png=_bytes("PNG", image.convert("P")),
        bit__png=_bytes("PNG", image.convert("1")),
        deep__png=_bytes("PNG", deep),
        deep_rgb__png=tf.io.encode_png(np.zeros((20, 20, 3), np.uint16)).numpy(),
        cmyk__jpg=_bytes("JPEG", image.convert("CMYK")),
        animation__gif=_bytes("GIF", frames[0], save_all=True, append_images=frames[1:]),
        webp__webp=_bytes("WEBP", image, lossless=True),
        dot__png=_bytes("PNG", PIL.Image.new("RGB", (1, 1), (9, 8, 7))),
        line__png=_bytes("PNG", PIL.Image.new("RGB", (1, 5000))),
        bitmap__jpg=_bytes("BMP", image),
        gif__png=_bytes("GIF", image),
        turned__jpg=_bytes("JPEG", image, exif=turned),
        upright__jpg=_bytes("JPEG", image, exif=upright),
        grey__pgm=_bytes("PPM", image.convert("L")),
        table__bmp=_bytes("BMP", image.quantize(64)),
        frames__gif=crafted_pictures.gif_of_frames(500, 500, 40),
    )
    checked = _check(paths)
    assert checked.bad == []
    assert checked.traits == {
        # bitmap.jpg and gif.png
        "animated; the first frame is used": 2,
        "named as another format; decoded by content": 2,
        "not in 8-bit RGB; converted, without alpha": 12,  # with the three GIFs
        "rotated by EXIF; turned upright": 1,
    }
    assert checked.smallest == (1, 1)
    names = [path.name for path in paths]
    assert (checked.pixels[names.index("dot.png")] == [9, 8, 7]).all()
    np.testing.assert_array_equal(
        checked.pixels[names.index("webp.webp")], checked.pixels[names.index("bitmap.jpg")]
    )


def test_name_that_is_not_utf8_is_read_and_reported(tmp_path):
    good, bad = os.fsencode(tmp_path) + b"/\xff.png", os.fsencode(tmp_path) + b"/\xfe\n.png"
    for path, content in ((good, _bytes("PNG")), (bad, b"x")):
        with open(path, "wb") as file:
            file.write(content)
    checked = _check([os.fsdecode(good), os.fsdecode(bad)])
    assert checked.good.tolist() == [0]
    text = csv_text(
        ("path", "reason"), [{"path": name, "reason": reason} for name, reason in checked.bad]
    )
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [["path", "reason"], ["\\xfe\n.png", "not in a known image format, named .png"]]


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    results = []
    thread = threading.Thread(
        target=lambda: results.append(_check([tmp_path / "pipe.jpg"])), daemon=True
    )
    thread.start()
    thread.join(10)
    assert results and results[0].bad == [("pipe.jpg", "not a regular file")]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.gif", crafted_pictures.gif_claiming(60000, 60000)),
        ("a.png", crafted_pictures.png_claiming(30000, 30000)),
        ("a.gif", crafted_pictures.gif_of_frames(8000, 8000, 1)),
    ],
)
def test_huge_header_is_refused_before_anything_is_allocated(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    _check(_write(tmp_path, warm__png=_bytes("PNG")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checked = _check([tmp_path / name])
    assert len(checked.bad) == 1 and "pixels" in checked.bad[0][1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_limit_is_on_the_number_of_pixels(tmp_path):
    paths = _write(
        tmp_path,
        fits__png=_bytes("PNG", PIL.Image.new("RGB", (40, 30))),
        larger__png=_bytes("PNG", PIL.Image.new("RGB", (41, 30))),
    )
    assert _check(paths, max_pixels=1200).bad == [
        ("larger.png", "41 x 30 pixels; at most --max_image_pixels, 1,200")
    ]


def test_pixels_that_do_not_fit_are_not_kept(tmp_path):
    paths = _write(tmp_path, a__png=_bytes("PNG"), b__png=b"x")
    size = 2 * 16 * 16 * 3
    assert _check(paths, keep=size).pixels.shape == (1, 16, 16, 3)
    checked = _check(paths, keep=size - 1)
    # checked all the same
    assert checked.pixels is None and checked.good.tolist() == [0] and len(checked.bad) == 1


def test_progress_reaches_the_number_of_files(tmp_path):
    seen = []
    _check(
        _write(tmp_path, **{f"{i}__png": _bytes("PNG") for i in range(300)}),
        progress=lambda *counts: seen.append(counts),
    )
    assert seen == [(256, 300), (300, 300)]
