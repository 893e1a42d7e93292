"""Five classes of flowers drawn with NumPy: what a machine that cannot reach any photographs trains
on.

Every picture is the same bytes on every machine: random numbers are `RandomState.random_sample`
only (its normal deviates call `log`), arithmetic is + - * / sqrt and comparisons, which IEEE 754
rounds in one way, angles come from a table rounded to 6 decimals, and nothing is reduced (the order
of a sum differs between machines). Everything, from petal to blade of grass, is one primitive:
`_Brush.blade`, a shape along an axis.
"""

import collections.abc
import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")  # the folders of tf_flowers
IMAGES_PER_CLASS = 160
IMAGE_SIZE = 192
VERSION = 1  # raise it when any picture changes: it is part of the folder's name

_TURN = 1024  # angles are integers, 1024 to a full turn, clockwise from the right
_UP = 768
_SINE = tuple(round(math.sin(2.0 * math.pi * i / _TURN), 6) for i in range(_TURN))
_GOLDEN_ANGLE = 391.15  # of 1024: no two seeds of a disc stand in line
_PIXELS = np.arange(IMAGE_SIZE, dtype=np.float32)

# A blade's half width at t in [0, 1] along its axis is width * sqrt(polynomial), at most 1 * width.
_OUTLINES = {
    "ellipse": lambda t: 4.0 * t * (1.0 - t),
    "strap": lambda t: 1.0 - (2.0 * t - 1.0) * (2.0 * t - 1.0) * (2.0 * t - 1.0) * (2.0 * t - 1.0),
    "ovate": lambda t: 6.75 * t * (1.0 - t) * (1.0 - t),  # widest near its foot, pointed
    "obovate": lambda t: 6.75 * t * t * (1.0 - t),  # widest near its tip, rounded
    "lance": lambda t: 16.0 * t * t * (1.0 - t) * (1.0 - t),  # pointed at both ends
    "grass": lambda t: 1.0 - t,
    "stem": lambda t: 1.0 + 0.0 * t,
}


def _palette(text):
    """Returns {name: color [3, 1, 1], or colors [N, 3, 1, 1] where a line gives several}."""
    palette = {}
    for line in text.strip().splitlines():
        name, colors = line.split(":")
        rows = np.array([color.split() for color in colors.split(",")], float)
        palette[name.strip()] = rows.squeeze()[..., None, None] / 100
    return palette


# Red, green and blue in percent; where there are several, a picture chooses.
_COLORS = _palette("""
    shadow:           16 30 10,  5 12  6, 24 17 11, 45 62 84, 62 58 54,  3  3  4, 30 44 22
    sunlit:           38 52 20, 20 32 14, 46 36 25, 76 85 93, 84 81 76, 13 12 14, 68 74 48
    glow:             80 75 40
    clutter:          20 36 12, 32 48 18, 14 26 12, 42 44 20
    dry grass:        60 70 30
    twig foot, tip:   30 22 15, 40 32 22
    far flower:       90 80 20, 90 90 88, 80 20 30, 70 40 80, 95 55 20
    far heart:        70 60 20
    leaf tip:         55 70 30
    stem:             28 44 16
    daisy:            96 96 94, 94 94 90, 97 95 97, 95 72 82, 96 84 35, 80 70 92
    daisy foot:       70 75 50, 80 60 70
    daisy heart:      93 74 12, 88 62 10, 80 72 22
    daisy rim:        50 30  5
    daisy seed:       55 40 10
    sunflower:        98 78  8, 96 70  6, 98 84 25, 86 42 10
    sunflower foot:   75 35  5
    sunflower heart:  20 11  5, 30 18  7, 42 30 10, 36 34 12
    sunflower seed:   65 42 10, 15  8  3
    dandelion:        98 82  8, 97 76  5, 95 86 25, 95 62  6
    dandelion foot:   70 42  2
    dandelion tip:   100 95 50
    dandelion leaf:   24 42 14
    clock:            86 86 84
    clock stalk:      55 52 45
    clock heart:      45 36 22
    petals:           78  8 12, 90 45 55, 96 90 84, 95 80 30, 92 45 22, 62 10 35, 93 70 76
    rose light:      100 96 92
    rose dark:        12  0  3
    sepal foot, tip:  20 34 12, 34 50 20
    tulip:            55 25 62, 30  8 22
    tulip tip:       100 95 60, 100 100 100
    tulip foot:       85 80 30, 30  5 10
    tulip leaf:       30 48 26
    stamen:           12 10  5, 80 70 20
""")


def draw(class_name: str, index: int) -> np.ndarray:
    """Returns picture `index` of a class: uint8 [192, 192, 3]."""
    species = CLASSES.index(class_name)
    random = np.random.RandomState(1_000_003 * VERSION + 10_007 * species + index)
    brush = _Brush(random.random_sample, np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.float32))
    _background(brush)
    _clutter(brush, brush.count(0, 7))
    count, margin, sizes = 1, 52, (26, 80)
    if not brush.chance(0.6):
        count, margin, sizes = brush.count(2, 4.5), 30, (20, 46)
    size = brush.pick(*sizes)
    for _ in range(count):
        flower = brush.within(margin, IMAGE_SIZE - margin)
        _PAINTERS[species](flower, size * brush.pick(0.8, 1.15))
    if brush.chance(0.45):  # something stands before the flower
        _clutter(brush, brush.count(1, 4), top=60, most=5)
    return _photograph(brush)


def write_bmp(path: str, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as a 24-bit BMP, whose every byte the tests pin."""
    Image.fromarray(image).save(path, "BMP", dpi=(72, 72))


def _direction(angle):
    return _SINE[(int(angle) + _TURN // 4) % _TURN], _SINE[int(angle) % _TURN]


def _mix(a, b, share):
    return a + (b - a) * share


@dataclasses.dataclass(frozen=True)
class _Dice:
    """All that chance decides."""

    random: collections.abc.Callable  # as `RandomState.random_sample`

    def pick(self, low: float, high: float, shape: Any = None) -> Any:
        """Returns a float, or floats, in [low, high)."""
        return low + (high - low) * self.random(shape)

    def sway(self, most: float, shape: Any = None) -> Any:
        return self.pick(-most, most, shape)

    def count(self, low: float, high: float) -> int:
        return int(self.pick(low, high))

    def chance(self, share: float) -> bool:
        return self.random() < share

    def choose(self, *options: Any) -> Any:
        return options[self.count(0, len(options))]

    def color(self, name: str, *more: np.ndarray) -> np.ndarray:
        return self.choose(*_COLORS[name], *more)

    def vary(self, color: np.ndarray, amount: float) -> np.ndarray:
        """Returns the color moved by up to `amount` in brightness, half of it in each channel."""
        return color + self.sway(amount) + self.sway(amount, color.shape) / 2

    def field(self, cells: int) -> np.ndarray:
        """Returns smooth random numbers [H, W] in 0..1: a random grid, interpolated."""
        grid = self.random((cells + 2, cells + 2)).astype(np.float32)
        at = _PIXELS * (cells / IMAGE_SIZE)
        low = at.astype(int)
        part = (at - low)[:, None]
        for _ in range(2):  # down, then across
            grid = _mix(grid[low], grid[low + 1], part * part * (3.0 - 2.0 * part)).T
        return grid


@dataclasses.dataclass(frozen=True)
class _Brush(_Dice):
    """Paints a picture, float32 [3, H, W] in 0..1, on a plane in it: where that stands, how it is
    turned, and how much it leans away from the viewer.
    """

    image: np.ndarray
    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    lean: float = 1.0
    lean_angle: float = 0.0

    def at(self, *plane: float) -> "_Brush":
        """Returns a brush for another plane."""
        return _Brush(self.random, self.image, *plane)

    def within(self, low: float, high: float) -> "_Brush":
        return self.at(self.pick(low, high), self.pick(low, high))

    def tilted(self, least: float = 0.45) -> "_Brush":
        pick = self.pick
        return self.at(self.x, self.y, pick(0, _TURN), pick(least, 1.0), pick(0, _TURN))

    def moved(self, angle: float, along: float, aside: float = 0.0) -> "_Brush":
        cos, sin = _direction(angle)
        return self.at(self.x + cos * along - sin * aside, self.y + sin * along + cos * aside)

    def axis(self, angle: float) -> tuple[tuple[float, float], tuple[float, float], float]:
        """Returns the directions along and across an axis as the viewer sees them, shorter where
        they lean away, and by how much areas are smaller.
        """
        x, y = _direction(angle + self.turn)
        cos, sin = _direction(self.lean_angle)
        squash = self.lean - 1.0
        xx, xy, yy = 1.0 + squash * cos * cos, squash * sin * cos, 1.0 + squash * sin * sin
        along, across = (xx * x + xy * y, xy * x + yy * y), (xy * x - xx * y, yy * x - xy * y)
        return along, across, xx * yy - xy * xy

    def blade(
        self,
        angle: float,
        start: float,
        length: float,
        width: float,
        outline: str,
        foot: np.ndarray,
        tip: np.ndarray | None = None,
        *,
        bend: float = 0.0,
        edge: float = 0.3,
        veins: float = 0.0,
        light: float = 0.0,
        softness: float = 1.2,
        opacity: float = 1.0,
    ) -> None:
        """Paints one shape along an axis that leaves the origin of the plane at `angle`.

        Args:
            angle: Direction of the axis.
            start: Where on the axis the shape begins, in pixels.
            length, width: Length and largest half width, in pixels.
            outline: A key of `_OUTLINES`.
            foot, tip: Colors at both ends; one is enough.
            bend: How far the tip is moved sideways, as a fraction of the length.
            edge, veins, light: Darkening of the rim, of lines along the axis, and from one side to
                the other.
            softness: Width of the rim's blur in pixels.
            opacity: 1 hides what is behind.
        """
        (ax, ay), (bx, by), area = self.axis(angle)
        margin = width + abs(bend * length) + 2 * softness
        rows, columns = (
            slice(*(max(0, int(end)) for end in (min(ends) - margin, max(ends) + margin + 1)))
            for ends in (
                (self.y + ay * start, self.y + ay * (start + length)),
                (self.x + ax * start, self.x + ax * (start + length)),
            )
        )
        # From pixels to t along (0 to 1) and s across (-1 to 1).
        dx = _PIXELS[columns] + (0.5 - self.x)
        dy = (_PIXELS[rows] + (0.5 - self.y))[:, None]
        t = (by / area * dx - start) / length - bx / area / length * dy
        s = ax / area / width * dy - ay / area * dx / width - bend * length / width * t * t
        inside = np.clip(t, 0.0, 1.0)
        reach = np.sqrt(np.maximum(_OUTLINES[outline](inside), 0.0))
        # Distance to the rim in pixels, across the axis and beyond its ends, makes a smooth edge.
        distance = np.minimum(
            (reach - np.abs(s)) * width, np.minimum(t, 1.0 - t) * length + 0.5 * softness
        )
        cover = np.clip(distance / softness + 0.5 * (reach > 0), 0.0, 1.0) * opacity
        shade = 1.0 - edge * (s * s) / (reach * reach + 0.05) + light * s
        shade -= veins * np.abs(s * 2.5 - np.floor(s * 2.5) - 0.5)
        ends = np.float32(foot), np.float32(foot if tip is None else tip)
        box = self.image[:, rows, columns]
        box += (_mix(*ends, inside) * np.clip(shade, 0.2, 1.4) - box) * cover


def _disc(brush, radius, *colors, **options):
    brush.blade(0, -radius, 2 * radius, radius, "ellipse", *colors, **options)


def _ring(brush, count, start, length, width, outline, foot, tip, jitter=1.0, turn=None, **options):
    """Paints `count` petals around the brush, none like its neighbor; the first in the direction
    `turn`, None for any.
    """
    turn = brush.pick(0, _TURN) if turn is None else turn
    for i in range(count):
        angle = turn + (i + jitter * brush.sway(0.28)) * _TURN / count
        shade = brush.pick(-0.07, 0.05)
        brush.blade(
            angle,
            start,
            length * brush.pick(0.86, 1.08),
            width * brush.pick(0.85, 1.12),
            outline,
            foot + shade,
            tip + shade,
            bend=brush.sway(0.1) * jitter,
            light=brush.sway(0.12),
            **options,
        )


def _seeds(brush, radius, count, size, dark, bright):
    """Paints a disc of `count` seeds in a spiral."""
    for i in range(count):
        share = math.sqrt((i + 0.5) / count)
        start, color = radius * share - size, _mix(dark, bright, share)
        foot = brush.vary(color, 0.08)
        brush.blade(i * _GOLDEN_ANGLE, start, 2 * size, size, "ellipse", foot, color, edge=0.5)


def _leaf(brush, angle, length, share, green, **options):
    bend, tip = brush.sway(0.25), brush.vary(_mix(green, _COLORS["leaf tip"], 0.3), 0.05)
    half = dict(bend=bend, veins=0.12, light=brush.sway(0.2))
    brush.blade(angle, 0, length, length * share, "lance", green, tip, **half, **options)
    brush.blade(angle, 0, length * 0.9, 1.0, "grass", tip, bend=bend * 0.9, **options)


def _stem(brush, width, leaves):
    """Paints a stem from a flower down and out of the picture, with leaves."""
    green = brush.vary(_COLORS["stem"], 0.07)
    angle, bend = brush.pick(206, 306), brush.sway(0.15)
    foot = brush.vary(green, 0.04)
    brush.blade(angle, 0, 230, width, "stem", green, foot, bend=bend, light=0.25)
    for _ in range(leaves):
        down = brush.pick(30, 110)
        _leaf(
            brush.moved(angle, down, bend * down * down / 230),
            brush.choose(900, 640) + brush.sway(70),
            brush.pick(28, 75),
            brush.pick(0.16, 0.4),
            brush.vary(green, 0.04),
        )


def _background(brush):
    """Fills the picture: meadow, hedge, earth, sky, wall or dusk, smooth or busy."""
    dark, bright = brush.choose(*zip(_COLORS["shadow"], _COLORS["sunlit"]))
    dark, bright = brush.vary(dark, 0.06), brush.vary(bright, 0.08)
    smooth = brush.field(brush.choose(2, 3, 5))
    busy = brush.field(brush.choose(9, 16, 30))
    brush.image[:] = _mix(dark, bright, smooth * 0.7 + busy * brush.pick(0.05, 0.45))
    for _ in range(brush.count(3, 12) if brush.chance(0.5) else 0):  # lights out of focus
        radius = brush.pick(5, 22)
        place = brush.within(0, IMAGE_SIZE)
        color = brush.vary(brush.choose(dark, bright, _COLORS["glow"]), 0.12)
        opacity = brush.pick(0.2, 0.7)
        _disc(place, radius, color, softness=radius * 0.6, opacity=opacity, edge=0.0)


def _clutter(brush, amount, top=0, most=9):
    """Paints grass (below `most` blades at a time), leaves, twigs and flowers out of focus."""
    for _ in range(amount):
        green = brush.vary(brush.color("clutter"), 0.08)
        kind, softness = brush.pick(0, 1), brush.pick(1.0, 6.0)
        place = brush.at(brush.pick(0, IMAGE_SIZE), brush.pick(top, IMAGE_SIZE))
        paint = next(paint for share, paint in _CLUTTER.items() if kind < share)
        paint(place, green, softness, most)


def _grass(brush, green, softness, most):
    for _ in range(brush.count(2, most)):
        brush.at(brush.x + brush.sway(50), IMAGE_SIZE + 4).blade(
            _UP + brush.sway(110),
            0,
            brush.pick(60, 190),
            brush.pick(1.5, 5),
            "grass",
            green,
            brush.vary(_mix(green, _COLORS["dry grass"], 0.4), 0.05),
            bend=brush.sway(0.3),
            softness=softness,
        )


def _loose_leaf(brush, green, softness, _):
    pick = brush.pick
    _leaf(brush, pick(0, _TURN), pick(40, 90), pick(0.15, 0.42), green, softness=softness)


def _twig(brush, green, softness, _):
    angle, length, width = brush.pick(0, _TURN), brush.pick(60, 180), brush.pick(1, 3)
    look = dict(bend=brush.sway(0.2), softness=softness)
    brush.blade(angle, 0, length, width, "stem", *_COLORS["twig foot, tip"], **look)


def _far_flower(brush, green, softness, _):
    color = brush.vary(brush.color("far flower"), 0.08)
    for angle in range(40, _TURN, 205):
        length, width = brush.pick(9, 16), brush.pick(4, 7)
        brush.blade(angle, 1, length, width, "obovate", color, softness=softness + 1.5)
    _disc(brush, 4, _COLORS["far heart"], softness=softness + 1)


_CLUTTER = {0.45: _grass, 0.75: _loose_leaf, 0.85: _twig, 1.0: _far_flower}  # upper ends of shares


def _photograph(brush):
    """Returns the picture under some light, through some lens, with some noise: uint8 [H, W, 3]."""
    image = brush.image
    gain = brush.pick(0.62, 1.25) * (1.0 + brush.sway(0.5) * (brush.field(2) - 0.5))
    haze = brush.pick(0.0, 0.16) if brush.chance(0.5) else 0.0
    image[:] = image * (gain * brush.pick(0.9, 1.1, (3, 1, 1))) * (1.0 - haze) + haze
    for _ in range(brush.count(0, 2.6)):  # blur: each pixel with its neighbors, both ways
        for view in (image, image.swapaxes(1, 2)):
            view[:, 1:-1] = (view[:, :-2] + 2.0 * view[:, 1:-1] + view[:, 2:]) * 0.25
    image = image + np.float32(brush.random(image.shape)) * brush.pick(0.01, 0.12)
    return np.uint8(np.clip(image, 0.0, 1.0) * 255.0 + 0.5).transpose(1, 2, 0)


def _daisy(brush, size):
    petal = brush.color("daisy")
    foot = _mix(petal, brush.color("daisy foot", petal), 0.35)
    _stem(brush, size * 0.04 + 1, brush.count(0, 3))
    brush = brush.tilted()
    count, heart = brush.count(11, 25), size * brush.pick(0.18, 0.34)
    start, width = heart * 0.6, size * brush.pick(2.2, 3.4) / count
    for layer in range(brush.choose(1, 2, 2)):
        length = size * (1 - layer * 0.1) - start
        outline = brush.choose("strap", "obovate", "ellipse")
        _ring(brush, count, start, length, width, outline, foot, petal, edge=0.22, veins=0.10)
    yellow = brush.color("daisy heart")
    _disc(brush, heart, yellow, _mix(yellow, _COLORS["daisy rim"], 0.3), edge=0.45)
    dark = _mix(yellow, _COLORS["daisy seed"], 0.4)
    _seeds(brush, heart * 0.85, 16 + int(heart), heart * 0.12 + 0.6, dark, yellow)


def _sunflower(brush, size):
    petal = brush.color("sunflower")
    foot = _mix(petal, _COLORS["sunflower foot"], brush.pick(0.1, 0.6))
    _stem(brush, size * 0.07 + 1.5, brush.count(0, 3))
    brush = brush.tilted()
    count, heart = brush.count(15, 32), size * brush.pick(0.28, 0.54)
    start = heart * 0.75
    for layer in range(2):
        length, width = size * (1 - layer * 0.09) - start, size * brush.pick(2.4, 3.6) / count
        outline = brush.choose("lance", "ellipse", "ovate")
        _ring(brush, count, start, length, width, outline, foot, petal, edge=0.25, veins=0.16)
    dark = brush.color("sunflower heart")
    rim = _mix(dark, brush.color("sunflower seed"), 0.5)
    _disc(brush, heart, dark, edge=-0.1)
    _seeds(brush, heart * 0.92, brush.count(45, 80), heart * 0.08 + 0.6, dark, rim)


def _dandelion(brush, size):
    _stem(brush, size * 0.04 + 1, 0)
    green = brush.vary(_COLORS["dandelion leaf"], 0.05)
    if brush.chance(0.35):
        return _clock(brush, size)
    yellow = brush.color("dandelion")
    foot = _mix(yellow, _COLORS["dandelion foot"], 0.55)
    flower = brush.tilted(0.35)
    for _ in range(brush.count(0, 4)):
        _toothed_leaf(brush, brush.pick(0, _TURN), size * brush.pick(1.1, 1.7), green)
    layers = brush.count(4, 7)
    for layer in range(layers):
        share = 1 - layer / (layers + 0.6)
        tip = _mix(yellow, _COLORS["dandelion tip"], brush.pick(0, 0.3))
        count, width = int(12 + 14 * share), size * 0.045 + 0.9
        _ring(flower, count, size * 0.04, size * share, width, "strap", foot, tip, jitter=1.6)
    _seeds(flower, size * 0.2, 14, size * 0.04 + 0.6, foot, yellow)


def _toothed_leaf(brush, angle, length, green):
    for tooth in range(5):
        start = length * (0.15 + 0.16 * tooth)
        for side in (-31.5, 31.5):
            brush.blade(angle + side, start, length * 0.22, length * 0.07, "ovate", green)
    _leaf(brush, angle, length, 0.1, green)


def _clock(brush, size):
    """A ball of seeds with parachutes."""
    grey = brush.vary(_COLORS["clock"], 0.06)
    _disc(brush, size * 0.8, grey, softness=size * 0.4, opacity=0.35, edge=0.0)
    for i in range(brush.count(45, 75)):
        angle, length = i * _GOLDEN_ANGLE, size * 0.9 * math.sqrt(brush.pick(0.02, 1))
        brush.blade(angle, 0, length, 0.7, "stem", _COLORS["clock stalk"], grey, opacity=0.6)
        for side in (-130, 0, 130):
            tip = brush.moved(angle, length)
            tip.blade(angle + side, 0, size * 0.17, 0.6, "stem", grey, opacity=0.75)
    _disc(brush, size * 0.13, _COLORS["clock heart"])


def _rose(brush, size):
    color = brush.color("petals")
    light = _mix(color, _COLORS["rose light"], brush.pick(0.1, 0.4))
    dark = _mix(color, _COLORS["rose dark"], brush.pick(0.4, 0.6))
    _stem(brush, size * 0.05 + 1.5, brush.count(1, 5))
    if brush.chance(0.3):
        return _bud(brush, size, dark, light)
    brush = brush.tilted(0.55)
    layers = brush.count(3, 6)
    for layer in range(layers):
        length = size * (1 - layer / (layers + 0.3))
        count, start, width = 5 if layer < 3 else 3, -0.08 * length, length * brush.pick(0.46, 0.62)
        _ring(brush, count, start, length, width, "obovate", dark, light, edge=0.34, veins=0.05)
    for i in range(7):  # the heart: a spiral of rims
        start, tip = size * (0.02 + 0.017 * i), _mix(color, light, 0.5)
        brush.blade(i * 190, start, size * 0.14, size * 0.07, "ellipse", dark, tip, edge=0.5)


def _bud(brush, size, dark, light):
    """A rose from the side, much like a tulip."""
    brush = brush.at(brush.x, brush.y + size * 0.5, brush.sway(80))
    for side, share in ((-70, 0.95), (70, 0.95), (0, 1.0), (-45, 0.8), (50, 0.74), (5, 0.6)):
        angle, width = _UP + side * brush.pick(0.7, 1.2), size * brush.pick(0.42, 0.52)
        look = dict(bend=-side * 0.0018, edge=0.4, light=brush.sway(0.2))
        brush.blade(angle, -size * 0.1, size * 1.2 * share, width, "obovate", dark, light, **look)
    for side in (-150, -60, 20, 110):
        colors = _COLORS["sepal foot, tip"]
        brush.blade(_UP + side, -2, size * 0.5, size * 0.09, "lance", *colors, bend=0.1)


def _tulip(brush, size):
    color = brush.color("petals", *_COLORS["tulip"])
    tip = _mix(color, brush.color("tulip tip", color), brush.pick(0.0, 0.5))
    foot = _mix(color, brush.color("tulip foot", color), brush.pick(0.1, 0.6))
    green = brush.vary(_COLORS["tulip leaf"], 0.06)
    outline = brush.choose("ovate", "ellipse", "ellipse")
    if brush.chance(0.22):
        return _open_tulip(brush, size, outline, foot, tip)
    brush = brush.at(brush.x, brush.y + size * 0.7)
    _stem(brush, size * 0.05 + 1.5, 0)
    for _ in range(brush.count(0, 3.5)):
        _leaf(
            brush.at(brush.x + brush.sway(12), brush.y + size * 1.6),
            _UP + brush.sway(130),
            size * brush.pick(1.6, 2.6),
            brush.pick(0.1, 0.2),
            green,
        )
    _cup(brush, size, outline, foot, tip)


def _open_tulip(brush, size, outline, foot, tip):
    """A tulip from above."""
    _stem(brush, size * 0.05 + 2, 1)
    brush = brush.tilted(0.6)
    for length, turn in ((size, 0), (size * 0.92, 171)):
        look = dict(jitter=0.4, turn=turn, edge=0.35, veins=0.12)
        _ring(brush, 3, 0, length, size * 0.42, outline, foot, tip, **look)
    _seeds(brush, size * 0.12, 7, size * 0.04 + 0.7, *_COLORS["stamen"])


def _cup(brush, size, outline, foot, tip):
    """A tulip from the side."""
    pick = brush.pick
    brush = brush.at(brush.x, brush.y, brush.sway(90), pick(0.8, 1.0), pick(0, _TURN))
    spread, length, width = pick(25, 95), size * pick(1.3, 1.7), size * pick(0.4, 0.56)
    for side, share, dim in (
        (-0.6, 0.97, 0.75),
        (0.6, 0.97, 0.75),
        (0.1, 1.0, 0.8),
        (-1, 0.96, 0.92),
        (1, 0.96, 0.92),
        (0, 0.9, 1.0),
    ):
        brush.blade(
            _UP + (side + brush.sway(0.12)) * spread,
            -size * 0.06,
            length * share * pick(0.94, 1.05),
            width,
            outline,
            foot * dim,
            tip * dim,
            bend=-0.14 * side * pick(0.3, 1.4),
            edge=0.38,
            veins=0.1,
            light=brush.sway(0.15),
        )


_PAINTERS = (_daisy, _dandelion, _rose, _sunflower, _tulip)  # in the order of `CLASSES`
