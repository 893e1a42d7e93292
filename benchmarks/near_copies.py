"""What of planted near-copies is found among photographs, and which groups these hold themselves.

    python benchmarks/near_copies.py --data_dir=PHOTOS --sheet=groups.png

Photographs drawn at random are changed in each of the ways below, encoded anew as JPEG and looked
for among all. The sheet shows every group of the photographs: whether one of them is of different
pictures only eyes can tell.
"""

import dataclasses
import io
import math
import os
import time

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance

from tl_research import cli
from tl_research.data import catalog, near_copies
from tl_research.settings import setting

_TILE, _COLUMNS = 120, 12  # pixels and pictures of the sheet


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    data_dir: str = setting("photos", "a directory with one folder per class", path="absolute")
    planted: int = setting(200, "photographs that are changed, in each way", low=1)
    seed: int = setting(0, "decides which", low=0)
    sheet: str | None = setting(None, "PNG file for all groups; None draws none")


def _resized(image, share):
    size = [round(share * side) for side in image.size]
    return image.resize(size, PIL.Image.Resampling.BICUBIC)


def _cropped(image, left, top, right, bottom):
    """Returns an image without these shares of it at its edges."""
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop([round(edge) for edge in box])


# name: (change, JPEG quality)
CHANGES = {
    "encoded, quality 70": (lambda image: image, 70),
    "encoded, quality 95": (lambda image: image, 95),
    "resized to 90 %": (lambda image: _resized(image, 0.9), 90),
    "resized to 50 %": (lambda image: _resized(image, 0.5), 90),
    "cropped by 5 %, all around": (lambda image: _cropped(image, *[0.025] * 4), 90),
    "cropped by 5 %, one corner": (lambda image: _cropped(image, 0, 0, 0.05, 0.05), 90),
    "cropped by 10 %, all around": (lambda image: _cropped(image, *[0.05] * 4), 90),
    "brighter by 15 %": (lambda image: PIL.ImageEnhance.Brightness(image).enhance(1.15), 90),
}


def _opened(path):
    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def _encoded(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return PIL.Image.open(buffer).convert("RGB")


def _thumbnails(images):
    """Returns (thumbnails of PIL images, seconds that it took)."""
    seconds, found = 0.0, []
    for image in map(np.asarray, images):
        start = time.perf_counter()
        found.append(near_copies.thumbnail(image))
        seconds += time.perf_counter() - start
    return np.stack(found), seconds


def planted(paths, thumbnails, names, chosen, change, quality):
    """Returns (share of the chosen that is found in its changed copy, copies joined to others).

    Args:
        paths, thumbnails, names: Of all photographs, and of their groups.
        chosen: int [P], places of those that are changed.
        change: A function of a PIL image.
        quality: Of its encoding.
    """
    copies, _ = _thumbnails(_encoded(change(_opened(paths[i])), quality) for i in chosen)
    pairs = near_copies.pairs(np.concatenate([thumbnails, copies])).tolist()
    joined = [(i, chosen[j - len(paths)]) for i, j in pairs if i < len(paths) <= j]
    found = sum(i == own for i, own in joined)
    return found / len(chosen), sum(names[i] != names[own] for i, own in joined)


def draw(groups, path):
    """Draws a row of pictures for each list of paths, as many rows side by side as fit."""
    tiles = sum(len(group) + 1 for group in groups)
    size = (_COLUMNS * _TILE, (math.ceil(tiles / _COLUMNS) + len(groups)) * (_TILE + 12))
    sheet, place = PIL.Image.new("RGB", size, "white"), 0
    text = PIL.ImageDraw.Draw(sheet)
    for group in groups:
        if place % _COLUMNS + len(group) > _COLUMNS:
            place += -place % _COLUMNS
        for file in group:
            x, y = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + 12)
            sheet.paste(_opened(file).resize((_TILE, _TILE)), (x, y))
            folder, name = os.path.split(file)
            text.text((x, y + _TILE), f"{os.path.basename(folder)[:8]} {name[:9]}", fill="black")
            place += 1
        place += 1
    sheet.crop((0, 0, size[0], (place // _COLUMNS + 1) * (_TILE + 12))).save(path)


def measure(settings):
    """Prints the groups among the photographs, then what is found of planted copies."""
    files = catalog.find_images("directory", data_dir=settings.data_dir, download_dir=".").files
    paths = [file.path for file in files]
    thumbnails, seconds = _thumbnails(map(_opened, paths))
    print(f"{len(paths)} photographs, {1e3 * seconds / len(paths):.2f} ms for a thumbnail")
    start = time.perf_counter()
    names = near_copies.groups(thumbnails, paths)
    seconds, groups = time.perf_counter() - start, {}
    for name, path in zip(names, paths):
        groups.setdefault(name, []).append(path)
    groups = [found for found in groups.values() if len(found) > 1]
    print(f"{len(groups)} groups of {sum(map(len, groups))} photographs in {seconds:.2f} s")
    if settings.sheet:
        draw(groups, settings.sheet)
    random = np.random.default_rng(settings.seed)
    chosen = random.choice(len(paths), min(settings.planted, len(paths)), replace=False)
    print(f"\n| {len(chosen)} planted | found | joined to another |\n|---|---|---|")
    for name, (change, quality) in CHANGES.items():
        share, others = planted(paths, thumbnails, names, chosen, change, quality)
        print(f"| {name} | {100 * share:.1f} % | {others} |", flush=True)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(lambda: measure(cli.config_from_flags(Settings)))
