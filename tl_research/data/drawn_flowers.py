"""Five classes of flowers drawn with NumPy, to train on where no photographs can be downloaded.

Every picture has the same bytes on every machine: random numbers come from
`RandomState.random_sample` only (its normal deviates call `log`), the arithmetic is + - * / sqrt
and comparisons, whose rounding IEEE 754 defines, directions are rounded to 6 decimals, and there
are no reductions (the order of a sum differs between machines).

Everything, from petals to blades of grass, is a piece along an axis. A part of a plant is a spiral
of pieces, each 137.5 degrees after the previous one, as in most plants. Three tables describe the
plants: their parts, the pieces of each part, and the colors.
"""

import collections.abc
import math
import types
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tl_research.config import FLOWERS

CLASSES = FLOWERS
IMAGES_PER_CLASS = 160
IMAGE_SIZE = 192
VERSION = 2  # part of the folder's name; increase it when any picture changes

_GOLDEN_ANGLE = 137.508  # degrees
_PIXELS = np.arange(IMAGE_SIZE, dtype=np.float32)


def _table(text):
    """Returns {name: list of options, each a list of words} from lines `name: option, ...`."""
    table = {}
    for line in text.strip().splitlines():
        name, options = line.split(":", 1)
        table.setdefault(name.strip(), []).extend(map(str.split, options.split(",")))
    return table


# The parts of a plant from back to front; of several forms, one is chosen at random.
_PLANTS = _table("""
    light:      light
    clutter:    grass, grass, grass, leaf, leaf, twig, far-petal far-heart
    daisy:      stem leaf leaf daisy daisy daisy-heart daisy-seed
    sunflowers: stem leaf leaf sunflower sunflower sunflower-heart sunflower-seed
    dandelion:  stem toothed dandelion dandelion-heart
    dandelion:  stem dandelion dandelion-heart
    dandelion:  stem clock clock-stalk clock-tuft clock-heart
    roses:      stem leaf leaf leaf rose, stem leaf leaf rose, stem leaf bud sepal
    tulips:     stem blade blade cup, stem blade cup, stem cup, stem leaf open-tulip stamen
""")

# For each part, the differences from `any`, then the colors of a piece's foot and tip. For low:high
# a number in between is drawn for each plant.
#   count     number of pieces
#   turn      degrees from the stem's direction to the middle of the pieces
#   spread    degrees over which the pieces are spread
#   begin     start of a piece on its axis, as a share of its length
#   length    in radii of the flower
#   width     half the width, as a share of the length
#   shape     two digits: how pointed foot and tip are
#   shrink    share by which the square of the length decreases until the last piece
#   bend      how far the tips of outer pieces bend to the middle, as a share of the length
#   lines     darkness of the lines along a piece
#   blur      of its edge, in pixels
#   opacity   1 hides what is behind
#   down      distance down the stem, in radii
#   flat      1 if the pieces do not lean with the flower
#   blend     share of the foot's color at the foot
_PARTS = _table("""
    any: count=1 turn=180 spread=360 begin=0 length=1 width=.5 shape=21 shrink=0 bend=0 lines=0
    any: blur=1.2 opacity=1 down=0 flat=0 blend=1
    stem: turn=0 spread=1 length=9 width=.005:.008 shape=00 flat=1 leaf leaf
    leaf: count=0:2 spread=200 length=.9:1.6 width=.16:.36 shape=22 lines=.12 down=.7:2.5 flat=1
    leaf: leaf leaf-tip
    blade: count=0:3 spread=60 length=1.6:2.6 width=.07:.14 shape=22 lines=.1 bend=.2 down=1.8
    blade: flat=1 leaf leaf-tip
    toothed: count=2:6 length=1.1:1.7 width=.06:.14 lines=.3 flat=1 leaf leaf-tip
    grass: count=1:6 spread=70 begin=-.6 length=4:6 width=.01 shape=01 blur=1:6 flat=1 clutter dry
    twig: turn=0:360 spread=1 length=1.5:4 width=.01:.02 shape=00 blur=1:5 flat=1 twig twig-tip
    far-petal: count=5 begin=.1 length=.3:.4 width=.4 blur=2:6 flat=1 far far
    far-heart: begin=-.5 length=.2 shape=11 blur=2:6 flat=1 dry dry
    light: begin=-.5 length=.2:.9 shape=11 blur=4:12 opacity=.2:.7 flat=1 glow glow
    daisy: count=11:25 begin=.2:.35 length=.6:.8 width=.13:.26 lines=.1 blend=.1:.5 daisy-foot daisy
    daisy-heart: begin=-.5 length=.35:.7 shape=11 daisy-rim heart
    daisy-seed: count=16:30 begin=2.4 length=.1 shape=11 shrink=1 opacity=.7 seed heart
    sunflower: count=15:32 begin=.4:.6 length=.5:.7 width=.12:.24 shape=22 lines=.2 blend=.1:.6
    sunflower: rust sunflower
    sunflower-heart: begin=-.5 length=.5:1.1 shape=11 dark dark
    sunflower-seed: count=45:80 begin=4:5 length=.1 shape=11 shrink=1 opacity=.7 dark sunflower-seed
    dandelion: count=50:99 length=.9:1.1 width=.04:.06 shrink=.95 blend=.5 rust dandelion
    dandelion-heart: count=14 begin=1 length=.1 shape=11 shrink=1 blend=.5 rust dandelion
    clock: begin=-.5 length=1.6 shape=11 blur=9:30 opacity=.35 clock clock
    clock-stalk: count=45:75 length=.9 width=.005 shape=00 shrink=1 opacity=.6 stalk clock
    clock-tuft: count=45:75 begin=4.4 length=.18 width=.3 shrink=1 lines=.6 opacity=.5 clock clock
    clock-heart: begin=-.5 length=.25 shape=11 stalk stalk
    rose: count=12:25 begin=-.1 width=.4:.6 shrink=.95 lines=.05 blend=.4:.8 rose-dark petals
    bud: count=6:9 spread=30:70 begin=-.1 length=1.1:1.3 width=.4 shrink=.5 bend=.3 blend=.4:.8
    bud: flat=1 rose-dark petals
    sepal: count=4 spread=170 begin=-.1 length=.5 width=.15 shape=22 flat=1 leaf leaf-tip
    cup: count=6:8 spread=30:70 begin=-.1 length=1.3:1.7 width=.26:.36 shape=12 bend=.3 lines=.1
    cup: blend=.1:.6 flat=1 tulip-foot petals
    open-tulip: count=6 length=.9:1.1 width=.4 shape=12 shrink=.2 lines=.1 blend=.1:.6
    open-tulip: tulip-foot petals
    stamen: count=7 begin=.5 length=.15 width=.3 shape=11 shrink=.5 stamen stamen
""")

# Red, green and blue in percent; of several colors, one is chosen for each plant.
_COLORS = _table("""
    shadow:         16 30 10,  5 12  6, 24 17 11, 45 62 84, 62 58 54,  3  3  4, 30 44 22
    sunlit:         38 52 20, 20 32 14, 46 36 25, 76 85 93, 84 81 76, 13 12 14, 68 74 48
    glow:           80 75 40, 38 52 20, 76 85 93, 16 30 10
    clutter:        20 36 12, 32 48 18, 14 26 12, 42 44 20
    dry:            50 60 26, 60 70 30
    twig:           30 22 15
    twig-tip:       40 32 22
    far:            90 80 20, 90 90 88, 80 20 30, 70 40 80, 95 55 20
    leaf:           28 44 16
    leaf-tip:       45 60 26
    daisy:          96 96 94, 94 94 90, 97 95 97, 95 72 82, 96 84 35, 80 70 92, 98 70 20
    daisy-foot:     70 75 50, 80 60 70, 95 95 90
    heart:          93 74 12, 88 62 10, 80 72 22
    daisy-rim:      70 50 10
    seed:           55 40 10
    sunflower:      98 78  8, 96 70  6, 98 84 25, 86 42 10
    rust:           75 38  4
    dark:           20 11  5, 30 18  7, 42 30 10, 46 40 14
    sunflower-seed: 65 42 10, 15  8  3
    dandelion:      98 82  8, 97 76  5, 95 86 25, 95 62  6
    clock:          86 86 84
    stalk:          50 43 34
    petals:         78  8 12, 90 45 55, 96 90 84, 95 80 30, 92 45 22, 62 10 35, 93 70 76, 55 25 62
    rose-dark:      30  4  6
    tulip-foot:     85 80 30, 30  5 10
    stamen:         12 10  5, 80 70 20
""")


def draw(class_name: str, index: int) -> np.ndarray:
    """Returns picture `index` of a class, uint8 [192, 192, 3]."""
    seed = 1_000_003 * VERSION + 10_007 * CLASSES.index(class_name) + index
    image = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    brush = _Brush(np.random.RandomState(seed).random_sample, image)
    pick = brush.pick
    ground = 0.7 * brush.field(pick(2, 6)) + pick(0.05, 0.45) * brush.field(pick(9, 31))
    image[:] = _mix(brush.color("shadow"), brush.color("sunlit"), ground)
    flowers = (1, pick(26, 76), 46) if pick(0, 1) < 0.6 else (pick(2, 4.5), pick(19, 45), 26)
    for name, count, size, margin in (
        ("light", pick(-10, 12), 50, 0),
        ("clutter", pick(0, 7), 50, 0),
        (class_name, *flowers),
        ("clutter", pick(-4, 5), 50, 0),  # in front of the flowers
    ):
        for _ in range(int(count)):
            place = pick(margin, IMAGE_SIZE - margin), pick(margin, IMAGE_SIZE - margin)
            brush.grow(brush.choose(_PLANTS[name]), size * pick(0.8, 1.15), *place)
    return brush.photograph()


def write_bmp(path: str, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as a 24-bit BMP; the tests pin every byte."""
    Image.fromarray(image).save(path, "BMP", dpi=(72, 72))


def _direction(degrees):
    return (round(f(math.radians(degrees)), 6) for f in (math.cos, math.sin))


def _mix(a, b, share):
    return a + (b - a) * share


class _Brush(NamedTuple):
    """Paints a random picture, float32 [3, H, W] in 0..1."""

    random: collections.abc.Callable  # `RandomState.random_sample`
    image: np.ndarray

    def pick(self, low: float, high: float, shape: Any = None) -> Any:
        """Returns random numbers.

        Args:
            low, high: They are in [low, high).
            shape: Shape of the array to return; None: a float.
        """
        return low + (high - low) * self.random(shape)

    def choose(self, options: list) -> Any:
        return options[int(self.pick(0, len(options)))]

    def color(self, name: str) -> np.ndarray:
        """Returns one of the colors with this name, slightly varied, [3, 1, 1]."""
        color = np.array(self.choose(_COLORS[name]), float)[:, None, None] / 100
        return color + self.pick(-0.06, 0.06) + self.pick(-0.03, 0.03, color.shape)

    def field(self, cells: float) -> np.ndarray:
        """Returns smooth random numbers [H, W] in 0..1: a random grid, interpolated."""
        grid = self.random((int(cells) + 2, int(cells) + 2)).astype(np.float32)
        at = _PIXELS * (int(cells) / IMAGE_SIZE)
        low = at.astype(int)
        part = (at - low)[:, None]
        for _ in range(2):  # down, then across
            grid = _mix(grid[low], grid[low + 1], part * part * (3.0 - 2.0 * part)).T
        return grid

    def grow(self, parts: list[str], size: float, x: float, y: float) -> None:
        """Paints a plant.

        Args:
            parts: Names of its parts in `_PARTS`, from back to front.
            size: Radius of its flower, in pixels.
            x, y: Position of the flower, in pixels.
        """
        colors = {name: self.color(name) for name in _COLORS}
        stem, lean, shear = self.pick(65, 115), self.pick(0.45, 1.0), self.pick(-0.5, 0.5)
        cos, sin = _direction(stem)
        for name in parts:
            *cells, foot, tip = sum(_PARTS["any"] + _PARTS[name], [])
            look = types.SimpleNamespace()
            for column, ends in (cell.split("=") for cell in cells):
                low, _, high = ends.partition(":")
                setattr(look, column, self.pick(float(low), float(high or low)))
            look.x, look.y = x + cos * look.down * size, y + sin * look.down * size
            look.lean, look.shear = (1.0, 0.0) if look.flat else (lean, shear)
            for i in range(int(look.count)):
                aside = (i * _GOLDEN_ANGLE) % look.spread / look.spread - 0.5
                shade, jitter = self.pick(-0.07, 0.05), self.pick(-0.2, 0.2) / look.count
                self.paint(
                    look,
                    stem + look.turn + (aside + jitter) * look.spread,
                    size * look.length * math.sqrt(1.0 - look.shrink * i / look.count),
                    self.pick(-0.1, 0.1) - look.bend * aside,
                    _mix(colors[tip], colors[foot], look.blend) + shade,
                    colors[tip] + shade,
                )

    def paint(
        self, look: Any, angle: float, length: float, bend: float, foot: np.ndarray, tip: np.ndarray
    ) -> None:
        """Paints a piece.

        Args:
            look: Numbers from `_PARTS`, and the origin and slant of its plane.
            angle: Direction of its axis, in degrees.
            length: In pixels.
            bend: Sideways displacement of the tip, as a share of the length.
            foot, tip: Colors of both ends.
        """
        cos, sin = _direction(angle)
        start, width = length * look.begin, length * look.width + 0.6
        margin = (width + abs(bend * length)) * (1.0 + abs(look.shear)) + 2.0 * look.blur
        rows, columns = (
            slice(max(0, int(min(ends) - margin)), max(0, int(max(ends) + margin + 1)))
            for ends in (
                [look.y + look.lean * sin * at for at in (start, start + length)],
                [look.x + (cos - look.shear * sin) * at for at in (start, start + length)],
            )
        )
        # From pixels to t along the axis (0 to 1) and s across it (-1 to 1).
        dy = (_PIXELS[rows, None] + (0.5 - look.y)) / look.lean
        dx = _PIXELS[columns] + (0.5 - look.x) + look.shear * dy
        t = (cos * dx + sin * dy - start) / length
        s = (cos * dy - sin * dx) / width - bend * length / width * t * t
        inside = np.clip(t, 0.0, 1.0)
        # The half width is the root of t^a (1 - t)^b, scaled to a maximum of 1.
        a, b = divmod(int(look.shape), 10)
        peak = (a + b) ** (a + b) / (a**a * b**b)
        half = np.sqrt(math.prod([inside] * a + [1.0 - inside] * b, start=peak))
        # The distance to the edge in pixels, across the axis and past its ends, smooths the edge.
        distance = np.minimum(
            (half - np.abs(s)) * width, np.minimum(t, 1.0 - t) * length + 0.5 * look.blur
        )
        cover = np.clip(distance / look.blur + 0.5 * (half > 0), 0.0, 1.0) * look.opacity
        shade = 1.0 - 0.3 * (s * s) / (half * half + 0.05)
        shade -= look.lines * np.abs(s * 2.5 - np.floor(s * 2.5) - 0.5)
        box = self.image[:, rows, columns]
        color = _mix(np.float32(foot), np.float32(tip), inside)
        box += (color * np.clip(shade, 0.2, 1.4) - box) * cover

    def photograph(self) -> np.ndarray:
        """Returns the picture with lighting, blur and noise, uint8 [H, W, 3]."""
        image, pick = self.image, self.pick
        haze = max(0.0, pick(-0.16, 0.16))
        light = pick(0.62, 1.25) * pick(0.9, 1.1, (3, 1, 1))
        image[:] = _mix(image * light * (1.0 + pick(-0.5, 0.5) * (self.field(2) - 0.5)), 1.0, haze)
        for _ in range(int(pick(0, 2.6))):  # blur: each pixel with its neighbors, both ways
            for view in (image, image.swapaxes(1, 2)):
                view[:, 1:-1] = (view[:, :-2] + 2.0 * view[:, 1:-1] + view[:, 2:]) * 0.25
        image = image + np.float32(self.random(image.shape)) * pick(0.01, 0.12)
        return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0)
