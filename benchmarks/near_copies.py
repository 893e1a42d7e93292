"""What of planted near-copies is found among photographs, and which groups these hold themselves.

    python benchmarks/near_copies.py --data_dir=PHOTOS --sheet=groups.png

Photographs drawn at random are changed in each of the ways below, encoded anew as JPEG and looked
for among all. The sheet shows every group of the photographs: whether one of them is of different
pictures only eyes can tell.
"""

import io
import math
import os
import time

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import program
from fault_pictures import encoded

from tl_research.data import catalog, near_copies
from tl_research.settings import setting

_TILE, _COLUMNS = 120, 12  # pixels and pictures of the sheet


class Settings(program.Settings):
    """The flags of this benchmark."""

    data_dir: str = setting("photos", "a directory with one folder per class", path="absolute")
    planted: int = setting(200, "photographs that are changed, in each way", low=1)
    seed: int = setting(0, "decides which", low=0)
    sheet: str | None = setting(None, "PNG file for all groups; None draws none")


_TABLE = """
planted copies | {change}
found | {found:.1f} %
joined to another | {others}
"""
# {name: (JPEG quality, what is changed before)}
CHANGES = {
    "encoded, quality 70": (70, {}),
    "encoded, quality 95": (95, {}),
    "resized to 90 %": (90, {"share": 0.9}),
    "resized to 50 %": (90, {"share": 0.5}),
    "cropped by 5 %, all around": (90, {"edges": (0.025, 0.025, 0.975, 0.975)}),
    "cropped by 5 %, one corner": (90, {"edges": (0, 0, 0.95, 0.95)}),
    "cropped by 10 %, all around": (90, {"edges": (0.05, 0.05, 0.95, 0.95)}),
    "brighter by 15 %": (90, {"brightness": 1.15}),
}


def _changed(path, quality, share=1.0, edges=(0, 0, 1, 1), brightness=1.0):
    """Returns a photograph cropped (left, top, right, bottom), resized, brighter, and encoded."""
    image = _opened(path)
    image = image.crop([round(edge * side) for edge, side in zip(edges, 2 * image.size)])
    size = [round(share * side) for side in image.size]
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    image = PIL.ImageEnhance.Brightness(image).enhance(brightness)
    return _opened(io.BytesIO(encoded("JPEG", image, quality=quality)))


def _opened(path):
    with PIL.Image.open(path) as image:
        return image.convert("RGB")


def _thumbnails(images):
    """Returns (thumbnails of PIL images, seconds that it took)."""
    seconds, found = 0.0, []
    for image in map(np.asarray, images):
        start = time.perf_counter()
        found.append(near_copies.thumbnail(image))
        seconds += time.perf_counter() - start
    return np.stack(found), seconds


def planted(paths, thumbnails, names, chosen, change):
    """Returns how many percent of the chosen are found in their changed copy, and how many copies
    are joined to others.

    Args:
        paths, thumbnails, names: Of all photographs, and of their groups.
        chosen: int [P], places of those that are changed.
        change: A key of `CHANGES`.
    """
    quality, options = CHANGES[change]
    copies, _ = _thumbnails(_changed(paths[i], quality, **options) for i in chosen)
    pairs = near_copies.pairs(np.concatenate([thumbnails, copies])).tolist()
    joined = [(i, chosen[j - len(paths)]) for i, j in pairs if i < len(paths) <= j]
    found = sum(i == own for i, own in joined)
    others = sum(names[i] != names[own] for i, own in joined)
    return {"change": change, "found": 100 * found / len(chosen), "others": others}


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
    print(f"\n{len(chosen)} planted\n\n{program.table(_TABLE, [])}")
    rows = (planted(paths, thumbnails, names, chosen, change) for change in CHANGES)
    program.gathered(settings, _TABLE, rows)


if __name__ == "__main__":
    program.main(Settings, measure)
