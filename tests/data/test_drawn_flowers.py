"""The drawn flowers are the same bytes everywhere, and varied."""

import hashlib
import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from tl_research.data import drawn_flowers

PINNED = {  # a change here needs a new `VERSION`
    "daisy": "01dbd5d3a248809ac1979d925fb674de8bdd5b082d27c53699e0696bc8cee176",
    "dandelion": "eb740c6688e6a50a4fbe2de9c588edb3926107793320a4e78bc0353c6b545d96",
    "roses": "94a1a0ff8e9c73e0c9b01fdf9945c6d65aaf377b4b6ad10e9d9f21507f24ca62",
    "sunflowers": "9e064bad4f24f133212ab2f95cc283ddb1be1f2defc2a4b18feaa989fc2ef789",
    "tulips": "c458935aa4697a2bf89acbd2d5a4e47811413dcd9ff5eebdab0d2009f4ca7e34",
}


@pytest.mark.parametrize("class_name", drawn_flowers.CLASSES)
def test_picture_is_the_same_bytes_on_every_machine(class_name):
    image = drawn_flowers.draw(class_name, 7)
    assert image.shape == (192, 192, 3) and image.dtype == np.uint8
    assert hashlib.sha256(image.tobytes()).hexdigest() == PINNED[class_name]


def test_drawing_needs_only_what_ieee_fixes():
    """Nothing whose rounding or order another machine may choose is called while drawing."""
    with open(drawn_flowers.__file__) as file:
        source = file.read()
    names = [
        "np.sum",
        ".sum(",
        ".mean(",
        "np.dot",
        "matmul",
        "einsum",
        " @ ",
        "np.exp",
        "np.sin",
        "np.cos",
        "np.power",
        "**2",
        "randn",
        "normal(",
        "np.log",
        "arctan",
        "hypot",
        "np.linalg",
    ]
    assert [name for name in names if name in source] == []


def test_order_of_drawing_does_not_matter_and_pictures_differ():
    first = drawn_flowers.draw("tulips", 3)
    other = drawn_flowers.draw("tulips", 4)
    assert np.array_equal(drawn_flowers.draw("tulips", 3), first)
    assert np.abs(first.astype(int) - other).mean() > 10


def test_pictures_have_detail_and_neither_black_nor_white_out():
    for class_name in drawn_flowers.CLASSES:
        for index in range(4):
            image = drawn_flowers.draw(class_name, index).astype(float)
            assert image.std() > 12
            assert 20 < image.mean() < 240


def test_bmp_is_read_back_by_pillow(tmp_path):
    # rows of 15 bytes need one byte of padding
    image = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(3, 5, 3)
    drawn_flowers.write_bmp(tmp_path / "a.bmp", image)
    data = (tmp_path / "a.bmp").read_bytes()
    assert len(data) == 54 + 3 * 16 and data[:2] == b"BM"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)


def test_bmp_is_the_same_bytes_whatever_library_writes_it(tmp_path):
    """The split goes by the bytes of the files: a change here moves pictures to another side."""
    drawn_flowers.write_bmp(tmp_path / "a.bmp", np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    header = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 90, 0, 0, 54, 40, 3, 3, 1, 24, 0, 36, 2835, 2835, 0, 0
    )
    rows = [bytes([20, 19, 18, 23, 22, 21, 26, 25, 24, 0, 0, 0])]  # bottom row and blue first
    rows += [bytes([11, 10, 9, 14, 13, 12, 17, 16, 15, 0, 0, 0])]
    rows += [bytes([2, 1, 0, 5, 4, 3, 8, 7, 6, 0, 0, 0])]
    assert (tmp_path / "a.bmp").read_bytes() == header + b"".join(rows)


def test_a_picture_is_drawn_in_milliseconds():
    began = time.process_time()
    for class_name in drawn_flowers.CLASSES:
        for index in range(4):
            drawn_flowers.draw(class_name, index)
    assert time.process_time() - began < 20 * 0.05  # 15 ms each on one quiet core: 12 s for all 800
