"""Pictures and tables for people: drawn in milliseconds, since an epoch on cached features takes no
longer.
"""

import functools
import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from tl_research import metrics

_MOST_NUMBERS, _MOST_NAMES = 30, 100  # classes with all their numbers; with names
_THUMBNAIL, _LETTERS = 168, 27  # pixels of a mistake's side, and what fits below it in a line
_TITLE, _LETTERS_OF_CLASS = 22, 40  # pixels; letters beside a matrix


_FONT = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@functools.cache
def _letters_of(path):
    """Returns the code points that the font at `path` has."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # no font
        return frozenset()


@functools.cache
def _font_with(letters):
    """Returns matplotlib's own font, or the first of the system that has these code points if that
    has not; None if there is none.
    """
    if letters <= _letters_of(_FONT):
        return PIL.ImageFont.truetype(_FONT, 10)
    paths = sorted(font_manager.findSystemFonts())
    found = next((path for path in paths if letters <= _letters_of(path)), None)
    return found and PIL.ImageFont.truetype(found, 10)


def _font(text):
    """Returns a font with all letters of a text, or None."""
    return _font_with(frozenset(map(ord, text)) - {ord("\n")})


def _drawable(text):
    """Returns a text with escapes for the letters of which there is no font."""
    if _font(text):
        return text
    known = _letters_of(_FONT) | {ord("\n")}
    return "".join(letter if ord(letter) in known else ascii(letter)[1:-1] for letter in text)


def numbered(classes: Sequence[str]) -> list[str]:
    """Returns the classes as pictures name them: one of which there is no font as `#` and its
    place, from 1; `draw_confusion` has the key.
    """
    return [name if _font(name) else f"#{place}" for place, name in enumerate(classes, 1)]


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """Returns uint8 [H, W, 3], a picture below a line of text."""
    font, (height, width) = _font(title), picture.shape[:2]
    width = max(width, int(font.getlength(title)) + 8)
    below = PIL.Image.new("RGB", (width, height + _TITLE), "white")
    below.paste(PIL.Image.fromarray(picture), (0, _TITLE))
    PIL.ImageDraw.Draw(below).text((4, 4), title, "black", font)
    return np.asarray(below)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Returns uint8 [H, W, 3], a confusion matrix: rows are true classes, blue by their share,
    columns what was said.

    Args:
        confusion: int [K, K].
        classes: K names.
    """
    count = len(classes)
    labelled = count <= _MOST_NAMES
    cell, margin = max(2, 880 // count), 4
    if labelled:
        shorts = short_names(numbered(classes), _LETTERS_OF_CLASS)
        widest = max(_font(short).getlength(short) for short in shorts)
        cell, margin = 44 if count <= _MOST_NUMBERS else 22, max(100, int(widest) + 12)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    colours = (255 - share[..., None] * (255, 141, 77)).astype(np.uint8)  # to #0072B2
    cells = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    picture = PIL.Image.new("RGB", (margin + cells.shape[1], margin + cells.shape[0]), "white")
    picture.paste(PIL.Image.fromarray(cells), (margin, margin))
    if labelled:
        _label(picture, shorts, cell, margin)
        shown = np.argwhere((confusion > 0) | (count <= _MOST_NUMBERS))
        _number(picture, shown, confusion, share, cell, margin)
    key = [f"{n} {_drawable(name)}" for n, name in zip(numbered(classes), classes) if n != name]
    return _below(np.asarray(picture), key) if labelled and key else np.asarray(picture)


def _below(picture, lines):
    """Returns a picture above lines of text."""
    strip = draw_grid(picture[None], ["\n".join(lines)], picture.shape[1])
    height, width = picture.shape[:2]
    return np.concatenate([picture, strip[width:, :width]])


def _number(picture, places, confusion, share, cell, margin):
    """Writes the numbers of these places [N, 2] into a matrix."""
    draw = PIL.ImageDraw.Draw(picture)
    for row, column in places:
        middle = (margin + column * cell + cell // 2, margin + row * cell + cell // 2)
        ink = "white" if share[row, column] > 0.5 else "black"
        draw.text(middle, str(confusion[row, column]), ink, _font(""), anchor="mm")


def _label(picture, shorts, cell, margin):
    """Writes names beside the rows and, turned, above the columns of a matrix."""
    draw = PIL.ImageDraw.Draw(picture)
    columns = PIL.Image.new("RGB", (margin, len(shorts) * cell), "white")  # as rows, then turned
    turned = PIL.ImageDraw.Draw(columns)
    for row, short in enumerate(shorts):
        middle = row * cell + cell // 2
        draw.text((margin - 4, margin + middle), short, "black", _font(short), anchor="rm")
        turned.text((4, middle), short, "black", _font(short), anchor="lm")
    picture.paste(columns.transpose(PIL.Image.Transpose.ROTATE_90), (margin, 0))
    draw.text((4, margin - 4), "true \\ said", "gray", _font(""), anchor="ls")


def draw_grid(
    images: Any, captions: Sequence[str] | None = None, size: int | None = None
) -> np.ndarray:
    """Returns uint8 [H, W, 3]: images in rows of about a square, with a few lines of text below
    each.

    Args:
        images: uint8 [N, h, w, 3].
        captions: N texts, or None.
        size: Side of each in pixels; None keeps theirs.
    """
    size = size or images.shape[1]
    lines = max((text.count("\n") + 1 for text in captions), default=0) if captions else 0
    columns = max(1, round(len(images) ** 0.5 + 0.49))
    height = size + 14 * lines + 4 * bool(lines)
    picture = PIL.Image.new(
        "RGB", (columns * (size + 2), -(-len(images) // columns) * height), "white"
    )
    draw = PIL.ImageDraw.Draw(picture)
    for place, image in enumerate(images):
        left, top = place % columns * (size + 2), place // columns * height
        image = PIL.Image.fromarray(np.asarray(image))
        picture.paste(image if image.width == size else image.resize((size, size)), (left, top))
        if captions:
            text = _drawable(captions[place])
            draw.multiline_text((left, top + size + 1), text, "black", _font(text), spacing=2)
    return np.asarray(picture)


def png(picture: np.ndarray) -> bytes:
    """Returns the bytes of a picture as PNG, quickly rather than small."""
    content = io.BytesIO()
    PIL.Image.fromarray(picture).save(content, "PNG", compress_level=1)
    return content.getvalue()


def draw_thumbnails(images: Any, captions: Sequence[str]) -> np.ndarray:
    """Returns `draw_grid` of thumbnails, or a white square where there is none."""
    if not len(images):
        return np.full((_THUMBNAIL, _THUMBNAIL, 3), 255, np.uint8)
    return draw_grid(images, captions, _THUMBNAIL)


def caption(name: str, true: str, predicted: str, number: float) -> str:
    """Returns the lines below a mistake: what it is, what it was taken for, and the file."""
    name = _short(os.path.basename(name), 2 * _LETTERS)
    true, predicted = short_names([str(true), str(predicted)], _LETTERS - len(f"> {number:.2f} "))
    return f"{true}\n> {predicted} {number:.2f}\n{name[:_LETTERS]}\n{name[_LETTERS:]}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Returns a text of at most `length` letters for each name, of different ones different texts.

    Long names are cut in the middle, and numbered where that leaves them equal.
    """
    texts = [_short(name, length) for name in names]

    def numbered(place: int, text: str) -> str:
        if len({name for name, other in zip(names, texts) if other == text}) == 1:
            return text
        number = f"..{place + 1}"
        return text[: length - len(number)] + number

    return [numbered(place, text) for place, text in enumerate(texts)]


def _short(text, length):
    """Returns a text as it can be drawn, cut in the middle if it is wider than `length` letters."""
    text = _drawable(text if text.isprintable() else ascii(text)[1:-1])
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if sum(widths) <= length:
        return text
    end = (length - 2) // 2
    first = sum(width <= length - 2 - end for width in itertools.accumulate(widths))
    last = sum(width <= end for width in itertools.accumulate(reversed(widths)))
    return f"{text[:first]}..{text[len(text) - last :]}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Returns the numbers of a confusion matrix as Markdown.

    Of many classes the most frequent mistakes.
    """
    if len(classes) <= _MOST_NUMBERS:
        return markdown_table(
            ["true \\ said", *classes],
            [[name, *row] for name, row in zip(classes, confusion.tolist())],
        )
    return markdown_table(
        ["true", "said", "images"],
        [
            [classes[i], classes[j], count]
            for count, i, j in metrics.most_confused(confusion, _MOST_NUMBERS)
        ],
    )
