"""Augmentation in one affine resampling and one affine color step, from draws that belong to the
example.

A draw is a row of uniform numbers, one column for each operation. For repeatability the loop takes
row i of a table that depends on (seed, view or epoch) only, so an image's augmentation depends
neither on its batch nor on the step. Factors have the meaning of the Keras layer of the same name.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

COLUMNS = ("flip", "rotation", "zoom", "translation_y", "translation_x", "brightness", "contrast")


@keras.saving.register_keras_serializable(package="tl_research")
class Augmentation(keras.layers.Layer):
    """Randomly changes flip, rotation, zoom, translation, brightness and contrast of images when
    `training=True`.

    The geometric operations are composed into one transform and resampled once (bilinear, edges
    reflected), in the order flip, rotation, zoom, translation; then pixels are mapped by `contrast
    * (x - mean) + mean + brightness` and clipped to 0..255, where mean is each channel's own. With
    one operation this equals the Keras layer.

    Args:
        factors: {operation: factor}, see `tl_research.config.AUGMENTATIONS`.
        seed: Seed of the draws when Keras calls the layer.
        to_load: Note in saved models, for people.
    """

    def __init__(
        self, factors: dict[str, float], seed: int = 0, to_load: Any = None, **kwargs: Any
    ):
        super().__init__(dtype="float32", **kwargs)
        self.factors, self.seed = dict(factors), seed
        self._seeds = keras.random.SeedGenerator(seed)
        # XLA also on a CPU, although it slows down convolutions there: gathering and mixing pixels
        # becomes one loop, 2 to 5 times as fast as TensorFlow's ImageProjectiveTransformV3.
        self._compiled = tf.function(self._apply, jit_compile=True, autograph=False)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        # Keras shows this if it does not know the class, which the first layer of a model has.
        note = "import tl_research.models before keras.saving.load_model"
        return {**config, "factors": dict(self.factors), "seed": self.seed, "to_load": note}

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or not self.factors:
            return images
        return self.apply_draws(
            images, keras.random.uniform((tf.shape(images)[0], len(COLUMNS)), seed=self._seeds)
        )

    def apply_draws(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Returns augmented images.

        Args:
            images: float32 or uint8 [B, H, W, 3] in 0..255.
            draws: float32 [B, len(COLUMNS)], uniform in [0, 1).

        Returns:
            float32 [B, H, W, 3] in 0..255.
        """
        return self._compiled(images, draws)

    def _apply(self, images, draws):
        if {"flip", "rotation", "zoom", "translation"} & set(self.factors):
            images = resample(images, self.transforms(draws, images.shape[1], images.shape[2]))
        images = tf.cast(images, tf.float32)
        if {"brightness", "contrast"} & set(self.factors):
            mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
            contrast = 1.0 + self._symmetric(draws, "contrast")[:, None, None, None]
            brightness = 255.0 * self._symmetric(draws, "brightness")[:, None, None, None]
            images = tf.clip_by_value(contrast * (images - mean) + mean + brightness, 0.0, 255.0)
        return images

    def _symmetric(self, draws, column):
        """Returns float32 [B], uniform in [-factor, factor); 0 if the operation is off."""
        factor = self.factors.get(column.partition("_")[0], 0.0)
        return (2.0 * draws[:, COLUMNS.index(column)] - 1.0) * factor

    def transforms(self, draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
        """Returns float32 [B, 6]: the rows of the matrices that map an output pixel (x, y, 1) to
        its source.

        Args:
            draws: As for `apply_draws`.
            height, width: Of the images, in pixels.
        """
        flipped = 0.5 if "flip" in self.factors else 0.0
        mirror = tf.where(draws[:, COLUMNS.index("flip")] < flipped, -1.0, 1.0)
        angle = 2.0 * math.pi * self._symmetric(draws, "rotation")
        zoom = 1.0 + self._symmetric(draws, "zoom")
        shift_x = width * self._symmetric(draws, "translation_x")
        shift_y = height * self._symmetric(draws, "translation_y")
        # About the center c: p_in = F R Z (p_out - shift - c) + c; F mirrors x, R rotates, Z
        # scales.
        a, b = mirror * tf.cos(angle) * zoom, -mirror * tf.sin(angle) * zoom
        c, d = tf.sin(angle) * zoom, tf.cos(angle) * zoom
        center_x, center_y = (width - 1) / 2, (height - 1) / 2
        left, top = -shift_x - center_x, -shift_y - center_y
        return tf.stack(
            [a, b, a * left + b * top + center_x, c, d, c * left + d * top + center_y], axis=1
        )


class Operation(NamedTuple):
    """An extension's operation, named in `--augment`."""

    name: str
    columns: int  # number of draws per image
    function: Callable  # (images, draws, factor) -> images, as for `apply_operations`
    factor: float


def apply_operations(
    operations: Sequence[Operation], images: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """Returns images after applying operations one after the other.

    They are not compiled with the layer: its results stay the same without them, and they may use
    all of TensorFlow.

    Args:
        operations: In order of application.
        images: float32 [B, H, W, 3] in 0..255.
        draws: float32 [B, columns of all operations], uniform in [0, 1).

    Returns:
        float32 [B, H, W, 3] in 0..255.
    """
    for _, columns, function, factor in operations:
        own, draws = draws[:, :columns], draws[:, columns:]
        images = tf.ensure_shape(
            tf.convert_to_tensor(function(images, own, factor), tf.float32), images.shape
        )
    return images


def resample(images: tf.Tensor, transforms: tf.Tensor) -> tf.Tensor:
    """Returns images resampled bilinearly by affine transforms, with edges reflected (d c b a | a b
    c d | d c b a).

    Args:
        images: [B, H, W, C], any type, H and W known.
        transforms: float32 [B, 6], the rows of the matrices that map an output pixel (x, y, 1) to
            its source.

    Returns:
        float32 [B, H, W, C].
    """
    height, width, channels = images.shape[1:]
    xs, ys = tf.range(width, dtype=tf.float32), tf.range(height, dtype=tf.float32)[:, None]
    a, b, c, d, e, f = (column[:, None, None] for column in tf.unstack(transforms, axis=1))
    pixels = tf.reshape(images, [-1, channels])
    first = tf.range(tf.shape(images)[0])[:, None, None] * (height * width)
    left, right, x = _neighbors(a * xs + b * ys + c, width)
    top, bottom, y = _neighbors(d * xs + e * ys + f, height)

    def row(y: tf.Tensor) -> tf.Tensor:
        """Returns values interpolated within one row of pixels."""
        one, other = (
            tf.cast(tf.gather(pixels, first + y * width + x), tf.float32) for x in (left, right)
        )
        return one + (other - one) * x[..., None]

    upper = row(top)
    return upper + (row(bottom) - upper) * y[..., None]


def _neighbors(coordinates, size):
    """Returns the pixels before and after each reflected coordinate, int32, and its distance from
    the first, in pixels.
    """
    period = tf.math.floormod(coordinates + 0.5, 2.0 * size)  # of size pixels and their reflection
    inside = tf.clip_by_value(tf.minimum(period, 2.0 * size - period) - 0.5, 0.0, size - 1.0)
    before = tf.floor(inside)
    index = tf.cast(before, tf.int32)
    return index, tf.minimum(index + 1, size - 1), inside - before
