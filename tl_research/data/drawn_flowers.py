"""Five classes of flowers drawn with NumPy: what a machine that cannot reach any photographs trains
on.

Every picture is the same bytes on every machine: random numbers are `RandomState.random_sample`
only (its normal deviates call `log`), arithmetic is + - * / sqrt and comparisons, which IEEE 754
rounds in one way, angles come from a table rounded to 6 decimals, and nothing is reduced (the order
of a sum differs between machines). Everything, from petal to blade of grass, is one primitive:
`_Scene.blade`, a shape along an axis.
"""

import math
import struct

import numpy as np

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")  # the folders of tf_flowers
IMAGES_PER_CLASS = 160
IMAGE_SIZE = 192
VERSION = 1  # raise it when any picture changes: it is part of the folder's name

_TURN = 1024  # angles are integers, 1024 to a full turn
_SINE = tuple(round(math.sin(2.0 * math.pi * i / _TURN), 6) for i in range(_TURN))
_GOLDEN_ANGLE = 391.15  # of 1024: no two seeds of a disc stand in line

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


def draw(class_name, index):
    """Returns picture `index` of a class: uint8 [192, 192, 3]."""
    scene = _Scene(class_name, index)
    pick = scene.pick
    scene.background()
    scene.clutter(pick(0, 7))
    count = 1 if pick(0, 1) < 0.6 else 2 + int(pick(0, 2.5))
    size = pick(26, 80) if count == 1 else pick(20, 46)
    for _ in range(count):
        margin = 30 if count > 1 else 52
        x, y = pick(margin, IMAGE_SIZE - margin), pick(margin, IMAGE_SIZE - margin)
        _FLOWERS[class_name](scene, x, y, size * pick(0.8, 1.15))
    if pick(0, 1) < 0.45:  # something stands before the flower
        scene.clutter(1 + int(pick(0, 3)), near=True)
    return scene.develop()


def write_bmp(path, image):
    """Writes uint8 [H, W, 3] as a 24-bit BMP.

    By hand, so that the bytes do not depend on a library's version.
    """
    height, width, _ = image.shape
    # rows end at multiples of 4 bytes
    padded = np.zeros((height, -(-width * 3 // 4) * 4), np.uint8)
    # bottom row first, blue first
    padded[:, : width * 3] = image[::-1, :, ::-1].reshape(height, width * 3)
    header = struct.pack(
        "<2sIHHIIiiHHIIiiII",
        b"BM",
        54 + padded.size,
        0,
        0,
        54,
        40,
        width,
        height,
        1,
        24,
        0,
        padded.size,
        2835,
        2835,
        0,
        0,
    )
    with open(path, "wb") as file:
        file.write(header + padded.tobytes())


def _sin_cos(angle):
    return _SINE[int(angle) % _TURN], _SINE[(int(angle) + _TURN // 4) % _TURN]


def _mix(a, b, share):
    return tuple(u + (v - u) * share for u, v in zip(a, b))


class _Pose:
    """A flower's own plane: where it stands, how it is turned, and how much it leans away from the
    viewer.
    """

    def __init__(self, x, y, turn=0.0, lean=1.0, lean_angle=0.0):
        self.x, self.y, self.turn = x, y, turn
        sin, cos = _sin_cos(lean_angle)
        squash = lean - 1.0  # identity + squash along one direction: foreshortening
        self.xx, self.xy, self.yy = (
            1.0 + squash * cos * cos,
            squash * sin * cos,
            1.0 + squash * sin * sin,
        )

    def to_image(self, u, v):
        return self.x + self.xx * u + self.xy * v, self.y + self.xy * u + self.yy * v


class _Scene:
    """One picture being painted, float32 [3, H, W] in 0..1, and its random numbers."""

    def __init__(self, class_name, index):
        self._random = np.random.RandomState(
            1_000_003 * VERSION + 10_007 * CLASSES.index(class_name) + index
        )
        self.image = np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        self.softness = 1.2

    def pick(self, low, high):
        """Returns a float in [low, high)."""
        return low + (high - low) * self._random.random_sample()

    def choose(self, *options):
        return options[int(self.pick(0, len(options)))]

    def vary(self, colour, amount):
        """Returns the colour moved by up to `amount` in brightness, half of it in each channel."""
        level = self.pick(-amount, amount)
        return tuple(c + level + self.pick(-amount, amount) / 2 for c in colour)

    def blade(
        self,
        pose,
        angle,
        start,
        length,
        width,
        outline,
        foot,
        tip,
        *,
        across=0.0,
        bend=0.0,
        edge=0.3,
        veins=0.0,
        light=0.0,
        softness=None,
        opacity=1.0,
    ):
        """Paints one shape along an axis that leaves `pose` at `angle`.

        Args:
            pose: The plane it lies in.
            angle: Direction of the axis, 1024 to a turn, clockwise from the right.
            start, across: Where the axis begins, in pixels along and across its direction.
            length, width: Length and largest half width, in pixels.
            outline: A key of `_OUTLINES`.
            foot, tip: Colours (red, green, blue in 0..1) at both ends.
            bend: How far the tip is moved sideways, as a fraction of the length.
            edge, veins, light: Darkening of the rim, of lines along the axis, and from one side to
                the other.
            softness: Width of the rim's blur in pixels; None for the scene's own.
            opacity: 1 hides what is behind.
        """
        softness = softness or self.softness
        sin, cos = _sin_cos(angle + pose.turn)
        # The box in the image that holds the shape's four corners.
        half, sideways = width + softness, bend * length
        corners = [
            pose.to_image(cos * u - sin * v, sin * u + cos * v)
            for u in (start - softness, start + length + softness)
            for v in (across - half + min(0.0, sideways), across + half + max(0.0, sideways))
        ]
        (x0, x1), (y0, y1) = [
            (max(0, int(min(values))), min(IMAGE_SIZE, int(max(values)) + 1))
            for values in zip(*corners)
        ]
        if x1 <= x0 or y1 <= y0:
            return
        # From pixels to t along (0 to 1) and s across (-1 to 1), through the inverse of the pose
        # and the rotation.
        scale = 1.0 / (pose.xx * pose.yy - pose.xy * pose.xy)
        xx, xy, yy = pose.yy * scale, -pose.xy * scale, pose.xx * scale
        dx = (np.arange(x0, x1, dtype=np.float32) + (0.5 - pose.x))[None, :]
        dy = (np.arange(y0, y1, dtype=np.float32) + (0.5 - pose.y))[:, None]
        t = ((cos * xx + sin * xy) * dx - start) / length + (cos * xy + sin * yy) / length * dy
        s = ((cos * xy - sin * xx) * dx - across) / width + (cos * yy - sin * xy) / width * dy
        if bend:
            s -= bend * length / width * t * t
        inside = np.minimum(np.maximum(t, 0.0), 1.0)
        reach = np.sqrt(np.maximum(_OUTLINES[outline](inside), 0.0))
        # Distance to the rim in pixels, across the axis and beyond its ends, makes a smooth edge.
        distance = np.minimum(
            (reach - np.abs(s)) * width, np.minimum(t, 1.0 - t) * length + 0.5 * softness
        )
        cover = np.minimum(np.maximum(distance / softness + 0.5 * (reach > 0), 0.0), 1.0) * opacity
        shade = 1.0 - edge * (s * s) / (reach * reach + 0.05)
        if light:
            shade += light * s
        if veins:
            wave = s * 2.5
            shade -= veins * np.abs(wave - np.floor(wave) - 0.5)
        shade = np.minimum(np.maximum(shade, 0.2), 1.4)
        foot, tip = (np.array(colour, np.float32)[:, None, None] for colour in (foot, tip))
        box = self.image[:, y0:y1, x0:x1]
        box += ((foot + (tip - foot) * inside) * shade - box) * cover

    def spot(self, x, y, radius, colour, centre=None, **options):
        """Paints a disc of the image plane."""
        self.blade(
            _Pose(x, y),
            0,
            -radius,
            2 * radius,
            radius,
            "ellipse",
            centre or colour,
            colour,
            **options,
        )

    def field(self, cells):
        """Returns smooth random float32 [H, W] in 0..1: a random grid, interpolated."""
        grid = self._random.random_sample((cells + 2, cells + 2)).astype(np.float32)
        at = np.arange(IMAGE_SIZE, dtype=np.float32) * (cells / IMAGE_SIZE)
        low = at.astype(np.int64)
        part = at - low
        part = part * part * (3.0 - 2.0 * part)
        rows = grid[low] + (grid[low + 1] - grid[low]) * part[:, None]
        return rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part[None, :]

    def background(self):
        """Fills the picture: meadow, hedge, earth, sky, wall or dusk, smooth or busy."""
        places = (
            ((0.16, 0.30, 0.10), (0.38, 0.52, 0.20)),
            ((0.05, 0.12, 0.06), (0.20, 0.32, 0.14)),
            ((0.24, 0.17, 0.11), (0.46, 0.36, 0.25)),
            ((0.45, 0.62, 0.84), (0.76, 0.85, 0.93)),
            ((0.62, 0.58, 0.54), (0.84, 0.81, 0.76)),
            ((0.03, 0.03, 0.04), (0.13, 0.12, 0.14)),
            ((0.30, 0.44, 0.22), (0.68, 0.74, 0.48)),
        )
        dark, bright = self.choose(*places)
        dark, bright = self.vary(dark, 0.06), self.vary(bright, 0.08)
        mask = self.field(self.choose(2, 3, 5)) * 0.7 + self.field(
            self.choose(9, 16, 30)
        ) * self.pick(0.05, 0.45)
        for channel in range(3):
            self.image[channel] = dark[channel] + (bright[channel] - dark[channel]) * mask
        if self.pick(0, 1) < 0.5:  # lights out of focus
            for _ in range(int(self.pick(3, 12))):
                radius = self.pick(5, 22)
                self.spot(
                    self.pick(0, 192),
                    self.pick(0, 192),
                    radius,
                    self.vary(self.choose(dark, bright, (0.8, 0.75, 0.4)), 0.12),
                    softness=radius * 0.6,
                    opacity=self.pick(0.2, 0.7),
                    edge=0.0,
                )

    def clutter(self, amount, near=False):
        """Paints grass, leaves, twigs and flowers out of focus.

        `near`: across the picture, before everything.
        """
        for _ in range(int(amount)):
            green = self.vary(
                self.choose(
                    (0.20, 0.36, 0.12), (0.32, 0.48, 0.18), (0.14, 0.26, 0.12), (0.42, 0.44, 0.2)
                ),
                0.08,
            )
            kind = self.pick(0, 1)
            soft = self.pick(1.0, 6.0)
            pose = _Pose(self.pick(0, 192), self.pick(60, 192) if near else self.pick(0, 192))
            if kind < 0.45:
                for _ in range(int(self.pick(2, 5 if near else 9))):
                    blade = _Pose(pose.x + self.pick(-50, 50), 196)
                    self.blade(
                        blade,
                        768 + self.pick(-110, 110),
                        0,
                        self.pick(60, 190),
                        self.pick(1.5, 5),
                        "grass",
                        green,
                        self.vary(_mix(green, (0.6, 0.7, 0.3), 0.4), 0.05),
                        bend=self.pick(-0.3, 0.3),
                        softness=soft,
                    )
            elif kind < 0.75:
                self.leaf(
                    pose,
                    self.pick(0, 1024),
                    self.pick(40, 90),
                    self.pick(0.15, 0.42),
                    green,
                    softness=soft,
                )
            elif kind < 0.85:
                self.blade(
                    pose,
                    self.pick(0, 1024),
                    0,
                    self.pick(60, 180),
                    self.pick(1, 3),
                    "stem",
                    (0.3, 0.22, 0.15),
                    (0.4, 0.32, 0.22),
                    bend=self.pick(-0.2, 0.2),
                    softness=soft,
                )
            else:
                colour = self.vary(
                    self.choose(
                        (0.9, 0.8, 0.2),
                        (0.9, 0.9, 0.88),
                        (0.8, 0.2, 0.3),
                        (0.7, 0.4, 0.8),
                        (0.95, 0.55, 0.2),
                    ),
                    0.08,
                )
                for step in range(5):
                    self.blade(
                        pose,
                        step * 205 + 40,
                        1,
                        self.pick(9, 16),
                        self.pick(4, 7),
                        "obovate",
                        colour,
                        colour,
                        softness=soft + 1.5,
                    )
                self.spot(pose.x, pose.y, 4, (0.7, 0.6, 0.2), softness=soft + 1)

    def leaf(self, pose, angle, length, share, green, **options):
        bend, tip = self.pick(-0.25, 0.25), self.vary(_mix(green, (0.55, 0.7, 0.3), 0.3), 0.05)
        self.blade(
            pose,
            angle,
            0,
            length,
            length * share,
            "lance",
            green,
            tip,
            bend=bend,
            veins=0.12,
            light=self.pick(-0.2, 0.2),
            **options,
        )
        self.blade(pose, angle, 0, length * 0.9, 1.0, "grass", tip, tip, bend=bend * 0.9, **options)

    def stem(self, x, y, width, leaves):
        """Paints a stem from a flower at (x, y) down and out of the picture, with leaves."""
        green = self.vary((0.28, 0.44, 0.16), 0.07)
        angle, bend = 256 + self.pick(-50, 50), self.pick(-0.15, 0.15)
        self.blade(
            _Pose(x, y),
            angle,
            0,
            230,
            width,
            "stem",
            green,
            self.vary(green, 0.04),
            bend=bend,
            light=0.25,
        )
        sin, cos = _sin_cos(angle)
        for _ in range(leaves):
            down = self.pick(30, 110)
            side = bend * down * down / 230
            self.leaf(
                _Pose(x + cos * down - sin * side, y + sin * down + cos * side),
                self.choose(900, 640) + self.pick(-70, 70),
                self.pick(28, 75),
                self.pick(0.16, 0.4),
                self.vary(green, 0.04),
            )

    def seeds(self, pose, radius, count, size, dark, bright):
        """Paints a disc of `count` seeds in a spiral."""
        for i in range(count):
            share = math.sqrt((i + 0.5) / count)
            self.blade(
                pose,
                i * _GOLDEN_ANGLE,
                radius * share - size,
                2 * size,
                size,
                "ellipse",
                self.vary(_mix(dark, bright, share), 0.08),
                _mix(dark, bright, share),
                edge=0.5,
            )

    def develop(self):
        """Returns the picture under some light, through some lens, with some noise: uint8 [H, W,
        3].
        """
        image = self.image
        gain = self.pick(0.62, 1.25) * (1.0 + self.pick(-0.5, 0.5) * (self.field(2) - 0.5))
        haze = self.pick(0.0, 0.16) if self.pick(0, 1) < 0.5 else 0.0
        for channel in range(3):
            image[channel] = image[channel] * (gain * self.pick(0.9, 1.1)) * (1.0 - haze) + haze
        for _ in range(int(self.pick(0, 2.6))):  # blur: each pixel with its neighbours, both ways
            image[:, 1:-1] = (image[:, :-2] + 2.0 * image[:, 1:-1] + image[:, 2:]) * 0.25
            image[:, :, 1:-1] = (
                image[:, :, :-2] + 2.0 * image[:, :, 1:-1] + image[:, :, 2:]
            ) * 0.25
        image = image + self._random.random_sample(image.shape).astype(np.float32) * self.pick(
            0.01, 0.12
        )
        levels = np.floor(np.minimum(np.maximum(image, 0.0), 1.0) * 255.0 + 0.5).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _tilted(scene, x, y, least=0.45):
    return _Pose(x, y, scene.pick(0, 1024), scene.pick(least, 1.0), scene.pick(0, 1024))


def _ring(
    scene, pose, count, start, length, width, outline, foot, tip, jitter=1.0, turn=None, **options
):
    """Paints `count` petals around `pose`, none like its neighbour.

    `turn`: direction of the first, None for any.
    """
    turn = scene.pick(0, 1024) if turn is None else turn
    for i in range(count):
        angle = turn + (i + jitter * scene.pick(-0.28, 0.28)) * _TURN / count
        shade = scene.pick(-0.07, 0.05)
        scene.blade(
            pose,
            angle,
            start,
            length * scene.pick(0.86, 1.08),
            width * scene.pick(0.85, 1.12),
            outline,
            tuple(c + shade for c in foot),
            tuple(c + shade for c in tip),
            bend=scene.pick(-0.1, 0.1) * jitter,
            light=scene.pick(-0.12, 0.12),
            **options,
        )


def _daisy(scene, x, y, size):
    white = scene.choose(
        (0.96, 0.96, 0.94),
        (0.94, 0.94, 0.90),
        (0.97, 0.95, 0.97),
        (0.95, 0.72, 0.82),
        (0.96, 0.84, 0.35),
        (0.80, 0.70, 0.92),
    )
    foot = _mix(white, scene.choose((0.7, 0.75, 0.5), (0.8, 0.6, 0.7), white), 0.35)
    scene.stem(x, y, size * 0.04 + 1, int(scene.pick(0, 3)))
    pose = _tilted(scene, x, y)
    count, heart = int(scene.pick(11, 25)), size * scene.pick(0.18, 0.34)
    width = size * scene.pick(2.2, 3.4) / count
    for layer in range(scene.choose(1, 2, 2)):
        _ring(
            scene,
            pose,
            count,
            heart * 0.6,
            size * (1 - layer * 0.1) - heart * 0.6,
            width,
            scene.choose("strap", "obovate", "ellipse"),
            foot,
            white,
            edge=0.22,
            veins=0.10,
        )
    yellow = scene.choose((0.93, 0.74, 0.12), (0.88, 0.62, 0.10), (0.80, 0.72, 0.22))
    scene.blade(
        pose,
        0,
        -heart,
        2 * heart,
        heart,
        "ellipse",
        yellow,
        _mix(yellow, (0.5, 0.3, 0.05), 0.3),
        edge=0.45,
    )
    scene.seeds(
        pose,
        heart * 0.85,
        16 + int(heart),
        heart * 0.12 + 0.6,
        _mix(yellow, (0.55, 0.4, 0.1), 0.4),
        yellow,
    )


def _sunflower(scene, x, y, size):
    yellow = scene.choose(
        (0.98, 0.78, 0.08), (0.96, 0.70, 0.06), (0.98, 0.84, 0.25), (0.86, 0.42, 0.10)
    )
    foot = _mix(yellow, (0.75, 0.35, 0.05), scene.pick(0.1, 0.6))
    scene.stem(x, y, size * 0.07 + 1.5, int(scene.pick(0, 3)))
    pose = _tilted(scene, x, y)
    count, heart = int(scene.pick(15, 32)), size * scene.pick(0.28, 0.54)
    for layer in range(2):
        _ring(
            scene,
            pose,
            count,
            heart * 0.75,
            size * (1 - layer * 0.09) - heart * 0.75,
            size * scene.pick(2.4, 3.6) / count,
            scene.choose("lance", "ellipse", "ovate"),
            foot,
            yellow,
            edge=0.25,
            veins=0.16,
        )
    dark = scene.choose(
        (0.20, 0.11, 0.05), (0.30, 0.18, 0.07), (0.42, 0.30, 0.10), (0.36, 0.34, 0.12)
    )
    rim = _mix(dark, scene.choose((0.65, 0.42, 0.1), (0.15, 0.08, 0.03)), 0.5)
    scene.blade(pose, 0, -heart, 2 * heart, heart, "ellipse", dark, dark, edge=-0.1)
    scene.seeds(pose, heart * 0.92, int(scene.pick(45, 80)), heart * 0.08 + 0.6, dark, rim)


def _dandelion(scene, x, y, size):
    scene.stem(x, y, size * 0.04 + 1, 0)
    green = scene.vary((0.24, 0.42, 0.14), 0.05)
    if scene.pick(0, 1) < 0.35:  # the clock: a ball of seeds with parachutes
        grey = scene.vary((0.86, 0.86, 0.84), 0.06)
        scene.spot(x, y, size * 0.8, grey, softness=size * 0.4, opacity=0.35, edge=0.0)
        for i in range(int(scene.pick(45, 75))):
            pose = _Pose(x, y)
            depth = math.sqrt(scene.pick(0.02, 1))
            angle, length = i * _GOLDEN_ANGLE, size * 0.9 * depth
            scene.blade(pose, angle, 0, length, 0.7, "stem", (0.55, 0.52, 0.45), grey, opacity=0.6)
            sin, cos = _sin_cos(angle)
            tip = _Pose(x + cos * length, y + sin * length)
            for hair in (-130, 0, 130):
                scene.blade(
                    tip, angle + hair, 0, size * 0.17, 0.6, "stem", grey, grey, opacity=0.75
                )
        scene.spot(x, y, size * 0.13, (0.45, 0.36, 0.22))
        return
    yellow = scene.choose(
        (0.98, 0.82, 0.08), (0.97, 0.76, 0.05), (0.95, 0.86, 0.25), (0.95, 0.62, 0.06)
    )
    foot = _mix(yellow, (0.70, 0.42, 0.02), 0.55)
    pose = _tilted(scene, x, y, 0.35)
    for _ in range(int(scene.pick(0, 4))):  # toothed leaves
        pointing, reach = scene.pick(0, 1024), size * scene.pick(1.1, 1.7)
        for tooth in range(5):
            for side in (-90, 90):
                scene.blade(
                    _Pose(x, y),
                    pointing + side * 0.35,
                    reach * (0.15 + 0.16 * tooth),
                    reach * 0.22,
                    reach * 0.07,
                    "ovate",
                    green,
                    green,
                )
        scene.leaf(_Pose(x, y), pointing, reach, 0.1, green)
    layers = 4 + int(scene.pick(0, 3))
    for layer in range(layers):
        share = 1 - layer / (layers + 0.6)
        _ring(
            scene,
            pose,
            int(12 + 14 * share),
            size * 0.04,
            size * share,
            size * 0.045 + 0.9,
            "strap",
            foot,
            _mix(yellow, (1, 0.95, 0.5), scene.pick(0, 0.3)),
            jitter=1.6,
            edge=0.3,
        )
    scene.seeds(pose, size * 0.2, 14, size * 0.04 + 0.6, foot, yellow)


_PETALS = (
    (0.78, 0.08, 0.12),
    (0.90, 0.45, 0.55),
    (0.96, 0.90, 0.84),
    (0.95, 0.80, 0.30),
    (0.92, 0.45, 0.22),
    (0.62, 0.10, 0.35),
    (0.93, 0.70, 0.76),
)


def _rose(scene, x, y, size):
    colour = scene.choose(*_PETALS)
    light = _mix(colour, (1, 0.96, 0.92), scene.pick(0.1, 0.4))
    dark = _mix(colour, (0.12, 0.0, 0.03), scene.pick(0.4, 0.6))
    scene.stem(x, y, size * 0.05 + 1.5, int(scene.pick(1, 5)))
    if scene.pick(0, 1) < 0.3:  # a bud from the side, much like a tulip
        pose = _Pose(x, y + size * 0.5, scene.pick(-80, 80))
        for angle, share in ((-70, 0.95), (70, 0.95), (0, 1.0), (-45, 0.8), (50, 0.74), (5, 0.6)):
            scene.blade(
                pose,
                768 + angle * scene.pick(0.7, 1.2),
                -size * 0.1,
                size * 1.2 * share,
                size * scene.pick(0.42, 0.52),
                "obovate",
                dark,
                light,
                bend=-angle * 0.0018,
                edge=0.4,
                light=scene.pick(-0.2, 0.2),
            )
        for angle in (-150, -60, 20, 110):
            scene.blade(
                pose,
                768 + angle,
                -2,
                size * 0.5,
                size * 0.09,
                "lance",
                (0.2, 0.34, 0.12),
                (0.34, 0.5, 0.2),
                bend=0.1,
            )
        return
    pose = _tilted(scene, x, y, 0.55)
    layers = int(scene.pick(3, 6))
    for layer in range(layers):
        share = 1 - layer / (layers + 0.3)
        _ring(
            scene,
            pose,
            5 if layer < 3 else 3,
            -size * 0.08 * share,
            size * share,
            size * share * scene.pick(0.46, 0.62),
            "obovate",
            dark,
            light,
            edge=0.34,
            veins=0.05,
        )
    for i in range(7):  # the heart: a spiral of rims
        scene.blade(
            pose,
            i * 190,
            size * (0.02 + 0.017 * i),
            size * 0.14,
            size * 0.07,
            "ellipse",
            dark,
            _mix(colour, light, 0.5),
            edge=0.5,
        )


def _tulip(scene, x, y, size):
    colour = scene.choose(*_PETALS, (0.55, 0.25, 0.62), (0.30, 0.08, 0.22))
    tip = _mix(colour, scene.choose((1, 0.95, 0.6), (1, 1, 1), colour), scene.pick(0.0, 0.5))
    foot = _mix(
        colour, scene.choose((0.85, 0.8, 0.3), (0.3, 0.05, 0.1), colour), scene.pick(0.1, 0.6)
    )
    green = scene.vary((0.30, 0.48, 0.26), 0.06)
    outline = scene.choose("ovate", "ellipse", "ellipse")
    if scene.pick(0, 1) < 0.22:  # seen from above
        scene.stem(x, y, size * 0.05 + 2, 1)
        pose = _tilted(scene, x, y, 0.6)
        for layer in range(2):
            _ring(
                scene,
                pose,
                3,
                0,
                size * (1 - 0.08 * layer),
                size * 0.42,
                outline,
                foot,
                tip,
                jitter=0.4,
                turn=171 * layer,
                edge=0.35,
                veins=0.12,
            )
        scene.seeds(pose, size * 0.12, 7, size * 0.04 + 0.7, (0.12, 0.1, 0.05), (0.8, 0.7, 0.2))
        return
    base_y = y + size * 0.7
    scene.stem(x, base_y, size * 0.05 + 1.5, 0)
    for _ in range(int(scene.pick(0, 3.5))):
        scene.leaf(
            _Pose(x + scene.pick(-12, 12), base_y + size * 1.6),
            768 + scene.pick(-130, 130),
            size * scene.pick(1.6, 2.6),
            scene.pick(0.1, 0.2),
            green,
        )
    pose = _Pose(x, base_y, scene.pick(-90, 90), scene.pick(0.8, 1.0), scene.pick(0, 1024))
    spread, length, width = (
        scene.pick(25, 95),
        size * scene.pick(1.3, 1.7),
        size * scene.pick(0.4, 0.56),
    )
    for angle, share, dim in (
        (-0.6, 0.97, 0.75),
        (0.6, 0.97, 0.75),
        (0.1, 1.0, 0.8),
        (-1, 0.96, 0.92),
        (1, 0.96, 0.92),
        (0, 0.9, 1.0),
    ):
        shift = scene.pick(-0.12, 0.12)
        scene.blade(
            pose,
            768 + (angle + shift) * spread,
            -size * 0.06,
            length * share * scene.pick(0.94, 1.05),
            width,
            outline,
            tuple(c * dim for c in foot),
            tuple(c * dim for c in tip),
            bend=-0.14 * angle * scene.pick(0.3, 1.4),
            edge=0.38,
            veins=0.1,
            light=scene.pick(-0.15, 0.15),
        )


_FLOWERS = {
    "daisy": _daisy,
    "dandelion": _dandelion,
    "roses": _rose,
    "sunflowers": _sunflower,
    "tulips": _tulip,
}
