"""One resample equals the Keras layer of the same operation with the same draw."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.models.augmentation import COLUMNS, Augmentation, apply_operations, resample
from tl_research.training import features

SIZE = 24


def _images(seed=0):
    return tf.constant(
        np.random.RandomState(seed).uniform(0, 255, (3, SIZE, SIZE, 3)).astype(np.float32)
    )


def _draws(**values):
    draws = np.full((3, len(COLUMNS)), 0.5, np.float32)
    for name, column in values.items():
        draws[:, COLUMNS.index(name)] = column
    return tf.constant(draws)


def _same(images, draws, factor):
    """Not a pair."""
    return images


def test_flip_mirrors_where_the_draw_is_below_one_half():
    images = _images()
    result = Augmentation({"flip": 1.0}).apply_draws(images, _draws(flip=[0.1, 0.9, 0.49]))
    expected = np.stack([images[0, :, ::-1], images[1], images[2, :, ::-1]])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-3)


def test_rotation_equals_the_keras_layer():
    draws = [0.1, 0.5, 0.95]
    angles = [(2 * draw - 1) * 0.1 * 360 for draw in draws]
    layer = keras.layers.RandomRotation(0.1)
    matrix = layer._compute_affine_matrix(
        center_x=0.5,
        center_y=0.5,
        angle=tf.constant(angles, tf.float32),
        translate_x=tf.zeros([3]),
        translate_y=tf.zeros([3]),
        scale=tf.ones([3]),
        shear_x=tf.zeros([3]),
        shear_y=tf.zeros([3]),
        height=SIZE,
        width=SIZE,
    )
    expected = layer.transform_images(_images(), {"rotation_matrix": matrix})
    result = Augmentation({"rotation": 0.1}).apply_draws(_images(), _draws(rotation=draws))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=0.05)
    assert np.abs(result[0] - _images()[0]).max() > 10


def test_zoom_equals_the_keras_layer():
    draws = [0.0, 0.5, 0.9]
    zooms = tf.constant([[1 + (2 * draw - 1) * 0.3] for draw in draws], tf.float32)
    layer = keras.layers.RandomZoom(0.3)
    expected = layer.transform_images(_images(), {"height_zoom": zooms, "width_zoom": zooms})
    result = Augmentation({"zoom": 0.3}).apply_draws(_images(), _draws(zoom=draws))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=0.05)


def test_translation_equals_the_keras_layer():
    across, down = [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]
    shifts = tf.constant(
        [[SIZE * (2 * x - 1) * 0.2, SIZE * (2 * y - 1) * 0.2] for x, y in zip(across, down)],
        tf.float32,
    )
    layer = keras.layers.RandomTranslation(0.2, 0.2)
    expected = layer.transform_images(_images(), {"translations": shifts})
    result = Augmentation({"translation": 0.2}).apply_draws(
        _images(), _draws(translation_x=across, translation_y=down)
    )
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=0.05)


def test_brightness_and_contrast_equal_the_keras_layers():
    draws = [0.0, 0.5, 1.0]
    delta = tf.constant([255 * (2 * draw - 1) * 0.2 for draw in draws], tf.float32)[
        :, None, None, None
    ]
    expected = keras.layers.RandomBrightness(0.2).transform_images(_images(), {"rgb_delta": delta})
    np.testing.assert_allclose(
        Augmentation({"brightness": 0.2}).apply_draws(_images(), _draws(brightness=draws)),
        expected,
        rtol=1e-6,
        atol=1e-3,
    )
    factor = tf.constant([1 + (2 * draw - 1) * 0.4 for draw in draws], tf.float32)[
        :, None, None, None
    ]
    expected = keras.layers.RandomContrast(0.4).transform_images(
        _images(), {"contrast_factor": factor}
    )
    np.testing.assert_allclose(
        Augmentation({"contrast": 0.4}).apply_draws(_images(), _draws(contrast=draws)),
        expected,
        rtol=1e-6,
        atol=1e-3,
    )


def test_composition_reads_where_the_three_maps_in_a_row_would():
    """Flip, then a quarter turn, then zoom 2: the corner (0, 0) is read where it is worked out
    by hand.
    """
    layer = Augmentation({"flip": 1.0, "rotation": 0.5, "zoom": 1.0})
    draws = _draws(flip=[0.0] * 3, rotation=[0.75] * 3, zoom=[0.75] * 3)  # mirrored, +pi/2, 1.5
    a, b, c, d, e, f = layer.transforms(draws, 3, 3)[0].numpy()
    # p - centre = (-1, -1); zoom 1.5 -> (-1.5, -1.5); turn by pi/2 -> (1.5, -1.5); mirror ->
    # (-1.5, -1.5).
    np.testing.assert_allclose([c, f], [1 - 1.5, 1 - 1.5], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose([a, b, d, e], [0, 1.5, 1.5, 0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_resampling_is_that_of_tensorflows_kernel_also_far_outside(dtype):
    random = np.random.RandomState(4)
    images = tf.constant(random.uniform(0, 255, (6, SIZE, SIZE - 5, 2)).astype(dtype))
    transforms = tf.constant(
        random.uniform(-2, 2, (6, 6)) * [1, 1, 3 * SIZE, 1, 1, 3 * SIZE], tf.float32
    )
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.pad(transforms, [(0, 0), (0, 2)]),
        fill_value=0.0,
        output_shape=images.shape[1:3],
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    np.testing.assert_allclose(resample(images, transforms), expected, rtol=1e-6, atol=0.05)


def test_a_draw_belongs_to_its_image_whatever_the_batch():
    layer = Augmentation({"flip": 1.0, "rotation": 0.1, "zoom": 0.1, "brightness": 0.2})
    draws = tf.constant(np.random.RandomState(1).rand(3, len(COLUMNS)).astype(np.float32))
    alone = layer.apply_draws(_images()[1:2], draws[1:2])
    np.testing.assert_array_equal(layer.apply_draws(_images(), draws)[1:2], alone)


def test_inert_at_inference_and_random_in_training():
    layer = Augmentation({"rotation": 0.1}, seed=3)
    np.testing.assert_array_equal(layer(_images()), _images())
    assert not np.allclose(layer(_images(), training=True), _images(), rtol=1e-6, atol=1e-6)
    assert Augmentation.from_config(layer.get_config()).factors == {"rotation": 0.1}


@pytest.mark.parametrize(
    "augment, more, message",
    [
        ("flop=1", {}, "--augment has 'flop'; expected any of flip, .*, jitter; did you mean flip"),
        ("jiter=1", {}, "did you mean jitter?"),
        ("jitter=1", {"flip": (1, _same)}, "augmentations has flip, which is built in"),
        ("bad=1", {"bad": (1, lambda images, draws, factor: images[:, 1:])}, "bad fails .*shape"),
        ("bad=1", {"bad": (1, lambda images, draws, factor: images > 0)}, "bad fails .*bool"),
        ("bad=1", {"bad": (1, lambda images: images)}, "bad fails .*takes 1 positional argument"),
        ("bad=1", {"bad": (1, lambda images, draws, factor: images[0, 0])}, "bad fails .*shape"),
        ("bad=1", {"bad": _same.__doc__}, "bad fails .*expected .columns, function"),
    ],
)
def test_what_is_no_operation_of_an_extension_is_one_line(augment, more, message):
    config = Config(augment=augment, image_size=16, extension="mine.py")
    with pytest.raises(UserError, match=message) as caught:
        features.make_views(config, {"jitter": (2, _same), **more})
    assert "\n" not in str(caught.value)


def test_operation_of_an_extension_need_not_be_tensorflows():
    def mirror(images, draws, factor):
        return tf.numpy_function(lambda of_all: of_all[:, :, ::-1], [images], tf.float32)

    config = Config(augment="mirror=1", image_size=SIZE, extension="mine.py")
    views = features.make_views(config, {"mirror": (0, mirror)})
    assert (views.augmented, views.draws(0, 3).shape) == (True, (3, len(COLUMNS)))
    received = tf.function(apply_operations)(views.operations, _images(), tf.zeros([3, 0]))
    np.testing.assert_array_equal(received, _images()[:, :, ::-1])
    assert not features.make_views(Config(augment="none"), {"x": mirror}).augmented
