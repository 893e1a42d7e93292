"""Pictures and tables for people, drawn in milliseconds: an epoch on cached features takes no
longer.
"""

import collections
import functools
import io
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from tl_research import metrics
from tl_research.reporting.terminal import markdown_table

_MOST_NUMBERS, _MOST_NAMES = 30, 100  # largest number of classes shown with all counts; with names
THUMBNAIL, _LETTERS = 168, 27  # side in pixels, and letters of a caption below it
_TITLE, _LETTERS_OF_CLASS = 22, 40  # height in pixels; letters of a name beside a matrix

_FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _letters_of(path):
    """Returns the code points of the font at `path`."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # no font
        return frozenset()


@functools.cache
def _font_with(letters):
    """Returns the first font with these code points, matplotlib's own or one of the system, or
    None.
    """
    if letters <= _letters_of(_FONT):  # quicker than a search
        return PIL.ImageFont.truetype(_FONT, 10)
    for path in sorted(font_manager.findSystemFonts()):
        if letters <= _letters_of(path):
            return PIL.ImageFont.truetype(path, 10)
    return None


def _font(text):
    """Returns a font with all letters of a text, or None."""
    return _font_with(frozenset(map(ord, text)) - {ord("\n")})


def _drawable(text):
    """Returns a text in which letters without a font are escaped."""
    if _font(text):
        return text
    known = _letters_of(_FONT) | {ord("\n")}
    return "".join(letter if ord(letter) in known else ascii(letter)[1:-1] for letter in text)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """Returns a picture with a line of text above it, uint8 [H, W, 3]."""
    font, (height, width) = _font(title), picture.shape[:2]
    width = max(width, int(font.getlength(title)) + 8)
    below = PIL.Image.new("RGB", (width, height + _TITLE), "white")
    below.paste(PIL.Image.fromarray(picture), (0, _TITLE))
    PIL.ImageDraw.Draw(below).text((4, 4), title, "black", font)
    return np.asarray(below)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Returns a picture of a confusion matrix, uint8 [H, W, 3]: rows are true classes, columns
    predicted ones; the larger the share of the row, the bluer the cell.

    Args:
        confusion: int [K, K].
        classes: K names.
    """
    count = len(classes)
    cell, margin = max(2, 880 // count), 4
    if count <= _MOST_NAMES:
        shorts = short_names(classes, _LETTERS_OF_CLASS)
        widest = max(_font(short).getlength(short) for short in shorts)
        cell, margin = 44 if count <= _MOST_NUMBERS else 22, max(100, int(widest) + 12)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    colours = (255 - share[..., None] * (255, 141, 77)).astype(np.uint8)  # to #0072B2
    cells = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    picture = PIL.Image.new("RGB", (margin + cells.shape[1], margin + cells.shape[0]), "white")
    picture.paste(PIL.Image.fromarray(cells), (margin, margin))
    if count <= _MOST_NAMES:
        _label(picture, shorts, cell, margin)
        draw = PIL.ImageDraw.Draw(picture)
        for row, column in np.argwhere((confusion > 0) | (count <= _MOST_NUMBERS)):
            left, top = (margin + place * cell + cell // 2 for place in (column, row))
            ink = "white" if share[row, column] > 0.5 else "black"
            draw.text((left, top), str(confusion[row, column]), ink, _font(""), anchor="mm")
    return np.asarray(picture)


def _label(picture, shorts, cell, margin):
    """Writes names beside the rows and, rotated, above the columns of a matrix."""
    draw = PIL.ImageDraw.Draw(picture)
    columns = PIL.Image.new("RGB", (margin, len(shorts) * cell), "white")  # as rows, then turned
    turned = PIL.ImageDraw.Draw(columns)
    for row, short in enumerate(shorts):
        middle = row * cell + cell // 2
        draw.text((margin - 4, margin + middle), short, "black", _font(short), anchor="rm")
        turned.text((4, middle), short, "black", _font(short), anchor="lm")
    picture.paste(columns.transpose(PIL.Image.Transpose.ROTATE_90), (margin, 0))
    draw.text((4, margin - 4), "true \\ predicted", "gray", _font(""), anchor="ls")


def draw_grid(images: Any, captions: Sequence[str], size: int) -> np.ndarray:
    """Returns a picture of images in a roughly square grid, uint8 [H, W, 3]; blank without images.

    Args:
        images: uint8 [N, h, w, 3].
        captions: N texts of a few lines to write below the images.
        size: Side of each image in pixels.
    """
    lines = max((text.count("\n") + 1 for text in captions), default=0)
    columns = max(1, round(len(images) ** 0.5 + 0.49))
    rows, height = max(1, -(-len(images) // columns)), size + 14 * lines + 4 * bool(lines)
    picture = PIL.Image.new("RGB", (columns * (size + 2), rows * height), "white")
    draw = PIL.ImageDraw.Draw(picture)
    for place, image in enumerate(images):
        left, top = place % columns * (size + 2), place // columns * height
        image = PIL.Image.fromarray(np.asarray(image))
        picture.paste(image if image.width == size else image.resize((size, size)), (left, top))
        text = _drawable(captions[place])
        draw.multiline_text((left, top + size + 1), text, "black", _font(text), spacing=2)
    return np.asarray(picture)


def png(picture: np.ndarray) -> bytes:
    """Returns a picture as the bytes of a PNG file, compressed for speed, not for size."""
    content = io.BytesIO()
    PIL.Image.fromarray(picture).save(content, "PNG", compress_level=1)
    return content.getvalue()


def save(path: str, picture: np.ndarray) -> None:
    """Writes a picture to a PNG file."""
    pathlib.Path(path).write_bytes(png(picture))


def caption(name: str, true: str, predicted: str, number: float) -> str:
    """Returns the lines below a mistake.

    Args:
        name: The file's name.
        true: The label.
        predicted: The answer.
        number: A number to show after the answer, such as its probability.
    """
    name = _short(os.path.basename(name), 2 * _LETTERS)
    true, predicted = short_names([str(true), str(predicted)], _LETTERS - len(f"> {number:.2f} "))
    return f"{true}\n> {predicted} {number:.2f}\n{name[:_LETTERS]}\n{name[_LETTERS:]}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Returns a text of at most `length` letters for each name, unique for each distinct name.

    Long names are cut in the middle, and numbered if that makes them equal.
    """
    texts = [_short(name, length) for name in names]
    distinct = collections.Counter(dict(zip(names, texts)).values())
    return [
        text if distinct[text] == 1 else text[: length - len(number)] + number
        for text, number in zip(texts, (f"..{place}" for place in itertools.count(1)))
    ]


def _short(text, length):
    """Returns a drawable text, cut in the middle if it is wider than `length` letters."""
    text = _drawable(text if text.isprintable() else ascii(text)[1:-1])
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if sum(widths) <= length:
        return text
    end = (length - 2) // 2
    first = sum(width <= length - 2 - end for width in itertools.accumulate(widths))
    last = sum(width <= end for width in itertools.accumulate(reversed(widths)))
    return f"{text[:first]}..{text[len(text) - last :]}"


def confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Returns a confusion matrix as a Markdown table; for many classes, the most frequent mistakes
    only.
    """
    if len(classes) <= _MOST_NUMBERS:
        rows = [[name, *row] for name, row in zip(classes, confusion.tolist())]
        return markdown_table(["true \\ predicted", *classes], rows)
    common = metrics.most_confused(confusion, _MOST_NUMBERS)
    rows = [[classes[true], classes[predicted], count] for count, true, predicted in common]
    return markdown_table(["true", "predicted", "images"], rows)
