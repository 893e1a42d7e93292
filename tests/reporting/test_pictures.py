"""Pictures: sizes and colours at places worked out by hand; tables: their text."""

import importlib.util
import os
import shutil

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from tl_research.reporting import pictures

_CONFUSION = np.array([[8, 2], [0, 5]])


def _anew():
    """Returns the module once more, which has not looked for a font yet."""
    spec = importlib.util.find_spec(pictures.__name__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def of_one_font(monkeypatch):
    """The module where the system has no other fonts than matplotlib's own."""
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    return _anew()


def test_confusion_is_bluer_the_larger_the_share_of_the_row():
    picture = pictures.draw_confusion(_CONFUSION, ("ant", "bee"))
    assert picture.shape == (100 + 88, 100 + 88, 3) and picture.dtype == np.uint8
    corners = picture[102::44, 102::44]  # of the cells: beside the numbers
    np.testing.assert_array_equal(corners[0, 0], [51, 142, 193])
    np.testing.assert_array_equal(corners[0, 1], [204, 226, 239])
    np.testing.assert_array_equal(corners[1], [[255, 255, 255], [0, 114, 178]])


def test_columns_are_labelled_in_the_order_of_the_classes():
    columns = pictures.draw_confusion(_CONFUSION, ("i", "mmmmmmmm"))[:100, 100:]
    ink = (columns < 128).any(axis=2).sum(axis=0)
    assert 0 < ink[:44].sum() < ink[44:].sum()


def test_hundred_classes_have_names_and_what_is_not_0():
    confusion = np.zeros((100, 100), int)
    confusion[3, 4] = 77
    names = tuple(f"species number {i}" for i in range(100))
    picture = pictures.draw_confusion(confusion, names)
    margin = picture.shape[0] - 100 * 22
    assert margin >= 100 and (picture[margin:, : margin - 4] < 128).any(axis=(1, 2)).sum() > 500
    cells = (picture[margin:, margin:].reshape(100, 22, 100, 22, 3) != picture[-1, -1]).any((1, 3))
    assert np.argwhere(cells.any(axis=2)).tolist() == [[3, 4]]


def test_long_names_stand_whole_beside_the_matrix():
    names = ("Bellis perennis, the common daisy", "b")
    whole = pictures.draw_confusion(_CONFUSION, names)
    assert whole.shape[0] - 88 > pictures.draw_confusion(_CONFUSION, ("a", "b")).shape[0] - 88


def test_title_stands_above_and_is_not_cut():
    picture = pictures.titled(np.zeros((5, 7, 3), np.uint8), "validation: 15 images")
    assert picture.shape[0] == 5 + 22 and picture.shape[1] > 100
    assert (picture[22:, :7] == 0).all() and (picture[22:, 7:] == 255).all()
    ink = (picture[:22] < 128).any(axis=(0, 2)).nonzero()[0]
    assert ink.min() < 10 and 100 < ink.max() < picture.shape[1] - 2


@pytest.mark.parametrize("count", [101, 1000])
def test_matrix_of_many_classes_is_colours_only(count):
    picture = pictures.draw_confusion(np.eye(count, dtype=int), tuple(map(str, range(count))))
    assert picture.shape[0] == 4 + count * max(2, 880 // count)


def test_grid_shows_every_image_and_its_caption():
    images = (
        np.zeros((5, 10, 10, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None] * 40
    )
    grid = pictures.draw_grid(images, [""] * 5, 10)
    assert grid.shape == (2 * 28, 3 * 12, 3)
    for place in range(5):
        row, column = divmod(place, 3)
        assert (grid[row * 28 : row * 28 + 10, column * 12 : column * 12 + 10] == 40 * place).all()
    captioned = pictures.draw_grid(images[:1], ["a\nb"], size=20)
    assert captioned.shape == (20 + 2 * 14 + 4, 22, 3) and (captioned[20:] < 128).any()


@pytest.mark.parametrize("name", ["Ромашка", "äöüß", "μαργαρίτα", "أقحوان", "ướậ"])
def test_names_beyond_ascii_are_drawn_in_their_letters(name):
    assert pictures.short_names([name], 15) == [name]
    # each letter is another picture: boxes would be alike
    letters = {
        pictures.draw_grid(np.zeros((1, 9, 9, 3), np.uint8), [c], 20).tobytes() for c in name
    }
    assert len(letters) == len(set(name))


def test_letters_of_which_there_is_no_font_are_escaped(of_one_font):
    assert of_one_font.short_names(["花 1"], 15) == ["\\u82b1 1"]
    assert of_one_font.caption("花.jpg", "б", "花", 0.5) == "б\n> \\u82b1 0.50\n\\u82b1.jpg\n"
    grids = [
        of_one_font.draw_grid(np.zeros((1, 9, 9, 3), np.uint8), [text], 60)
        for text in ("花\nб", "\\u82b1\nб")
    ]
    np.testing.assert_array_equal(*grids)


def test_font_of_the_system_is_taken_for_letters_that_ours_lacks(monkeypatch, tmp_path):
    fonts = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    ours, other = (os.path.join(fonts, name) for name in ("DejaVuSans.ttf", "cmr10.ttf"))
    os.makedirs(tmp_path / "fonts" / "ttf")
    shutil.copy(other, tmp_path / "fonts" / "ttf" / "DejaVuSans.ttf")  # which has no Cyrillic
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [__file__, ours])
    with_other = _anew()
    assert with_other.short_names(["б"], 9) == ["б"]

    def drawn(module, text):
        return module.draw_grid(np.zeros((1, 9, 9, 3), np.uint8), [text], 20)

    np.testing.assert_array_equal(drawn(with_other, "б"), drawn(pictures, "б"))
    assert (drawn(with_other, "b") != drawn(pictures, "b")).any()


def test_wide_letters_count_twice():
    wide = "\u2648"  # Aries, which DejaVu has
    assert pictures.short_names([3 * wide], 6) == [3 * wide]
    assert pictures.short_names([4 * wide], 6) == [f"{wide}..{wide}"]


def test_no_mistake_is_an_empty_picture():
    assert (pictures.draw_grid((), [], 168) == np.full((168, 170, 3), 255)).all()


def test_caption_has_classes_probability_and_file_name():
    assert (
        pictures.caption("roses/deep/x.jpg", "roses", "tulips", 0.876)
        == "roses\n> tulips 0.88\nx.jpg\n"
    )
    true, said, *name = pictures.caption("a" * 60 + "b", "sun" * 9, "b\n", 1.0).split("\n")
    assert (true, said) == ("sunsunsun..sunsunsun", "> b\\n 1.00")
    assert name == ["a" * 26 + ".", "." + "a" * 25 + "b"]


def test_long_names_of_different_classes_stay_different():
    names = ["retriever, golden, long-haired", "retriever, golden, curly-haired", "ant"]
    assert pictures.short_names(names, 15) == ["retriev..hai..1", "retriev..hai..2", "ant"]
    assert pictures.short_names(["one name of two"] * 2, 9) == ["one ..two"] * 2


def test_tables():
    assert pictures.confusion_table(_CONFUSION, ("ant", "b|e")) == (
        "| true \\ predicted | ant | b\\|e |\n| --- | --- | --- |\n"
        "| ant | 8 | 2 |\n| b\\|e | 0 | 5 |"
    )
    many = np.zeros((40, 40), int)
    many[3, 5], many[7, 1], many[2, 2] = 4, 9, 50
    assert pictures.confusion_table(many, tuple(f"c{i}" for i in range(40))).splitlines()[2:] == [
        "| c7 | c1 | 9 |",
        "| c3 | c5 | 4 |",
    ]
