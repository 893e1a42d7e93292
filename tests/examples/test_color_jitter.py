"""examples/color_jitter.py: its numbers are Pillow's, it changes none of others, and every way to
train with it is the same.
"""

import dataclasses
import os

import keras
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import tensorflow as tf

from tl_research import extension
from tl_research.config import Config
from tl_research.models.augmentation import COLUMNS, Augmentation
from tl_research.models.classifier import Classifier
from tl_research.trained import TrainedRun
from tl_research.training import features

EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "color_jitter.py")


def _images(count=4):
    return np.random.RandomState(0).randint(0, 256, (count, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "column, enhance",
    [
        (0, PIL.ImageEnhance.Brightness),
        (1, PIL.ImageEnhance.Contrast),
        (2, PIL.ImageEnhance.Color),
    ],
)
def test_each_column_is_an_enhancement_of_pillow(column, enhance):
    columns, jitter = extension.load(EXAMPLE).augmentations["jitter"]
    draws = np.full((4, columns), 0.5, np.float32)
    draws[:, column] = [0.0, 0.2, 0.7, 0.99]
    received = jitter(tf.constant(_images(), tf.float32), tf.constant(draws), 0.4)
    for image, draw, pixels in zip(_images(), draws[:, column], received.numpy()):
        expected = enhance(PIL.Image.fromarray(image)).enhance(1 + 0.4 * (2 * draw - 1))
        np.testing.assert_allclose(pixels, np.array(expected), atol=1.5)  # Pillow's whole numbers


def test_it_changes_no_number_of_the_others(tiny_backbone, make_examples):
    """Flipped images are the same to the bit where the jitter is as good as none."""
    own = extension.load(EXAMPLE).augmentations
    read = {}
    for augment in ("flip,rotation=0.1", "flip,rotation=0.1,jitter=1e-9"):
        config = Config(
            backbone="Tiny", weights="none", augment=augment, image_size=16, extension=EXAMPLE
        )
        views = features.make_views(config, own)
        classifier = Classifier(config, 3)
        source = features.LiveSource(classifier, make_examples(9), classifier.boundary(), views)
        draws = source.of_view(1)
        pixels = source.lookup(tf.range(9), draws)
        read[augment] = draws, source.read(tf.range(9), tf.constant(draws), pixels).numpy()
    (plain, expected), (more, received) = read.values()
    assert plain.shape == (9, len(COLUMNS)) and more.shape == (9, len(COLUMNS) + 3)
    np.testing.assert_array_equal(more[:, : len(COLUMNS)], plain)
    np.testing.assert_allclose(received, expected, atol=1e-3)
    flipped = Augmentation({"flip": 1.0, "rotation": 0.1})
    built_in = flipped.apply_draws(make_examples(9).pixels, tf.constant(plain))
    np.testing.assert_array_equal(expected, built_in)


def test_operations_follow_in_the_order_of_the_flag_and_keep_their_draws():
    own = {
        "double": (1, lambda images, draws, factor: 2.0 * images),
        "shift": (2, lambda images, draws, factor: images + factor + draws[:, 1:, None, None]),
    }
    read = {}
    for augment in ("double=1,shift=3", "shift=3,double=1"):
        config = Config(augment=augment, image_size=16, extension="Python")
        views = features.make_views(config, own)
        draws = views.draws(0, 5)[:, len(COLUMNS) :]
        images = features.apply_operations(views.operations, tf.ones([5, 2, 2, 3]), draws)
        read[augment] = {operation.name: operation for operation in views.operations}, draws, images
    (_, first, doubled), (_, second, shifted) = read.values()
    np.testing.assert_array_equal(first, second[:, [2, 0, 1]])  # each has the stream of its name
    np.testing.assert_array_equal(doubled[:, 0, 0, 0], 2.0 + 3.0 + first[:, 2])
    np.testing.assert_array_equal(shifted[:, 0, 0, 0], 2.0 * (1.0 + 3.0 + first[:, 2]))


@pytest.fixture
def read(tiny_backbone, make_examples, tmp_path):
    """A function of `Examples` that gives their live source of flipped and jittered images."""
    config = Config(
        backbone="Tiny",
        weights="none",
        augment="flip,jitter=0.4",
        image_size=16,
        extension=EXAMPLE,
    )
    views = features.make_views(config, extension.load(EXAMPLE).augmentations)
    classifier = Classifier(config, 3)
    return lambda examples: features.LiveSource(classifier, examples, ("block2_relu",), views)


def test_what_is_cached_is_what_live_steps_compute_from_memory_or_file(read, make_examples):
    examples = make_examples(9)
    arrays = tuple(examples.pixels.numpy())
    live, streamed = read(examples), read(dataclasses.replace(examples, paths=arrays, pixels=None))
    cached = features.compute_features(live, 4)
    for view in (0, 1):
        rows = np.array([[7, 2, 2, 8]], np.int32)
        draws = tf.constant(live.of_view(view))
        row = tf.constant(rows[0])
        images = live.read(row, draws, live.lookup(row, draws))
        received = streamed.read(row, draws, next(streamed.stream(rows, view)))
        np.testing.assert_array_equal(received, images)
        (expected,) = live.compute(images)
        of_view = cached.of_view(view)
        kept = cached.read(row, of_view, cached.lookup(row, of_view))[0]
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-5)
        moved = np.abs(images.numpy() - examples.pixels.numpy()[rows[0]]).max()
        assert moved > 10 if view else moved == 0  # the first view is the images as they are


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_cache": "memory", "crashes": (3,)},
        {"feature_cache": "off", "precision": "mixed_float16", "crashes": (14,)},
    ],
)
def test_run_is_resumed_bit_for_bit_and_its_model_needs_no_file(
    assert_resumes, tmp_path, capsys, settings
):
    assert_resumes(
        "color_jitter.py", augment="flip,jitter=0.4", augment_views=2, verbose=True, **settings
    )
    assert "augmentation: jitter 0.4 of the extension, after" in capsys.readouterr().out
    path = tmp_path / "broken" / "export" / "model.keras"
    model = keras.saving.load_model(path, compile=False)
    assert model.get_layer("augmentation").factors == {"flip": 1.0}
    trained = TrainedRun(str(tmp_path / "broken"))
    assert trained.config.augment_factors == {"flip": 1.0, "jitter": 0.4}
    assert len(trained.load_data().train) > 10
