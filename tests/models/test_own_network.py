"""Backbones and heads of one's own: what they may be, and what is refused before training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tl_research import artefacts
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.extension import Extension
from tl_research.models.classifier import Classifier, folded_logits, what_differs


def _classifier(make_backbone, make_head=None, **settings):
    settings = {"weights": "none", "image_size": 16, "augment": "none", "dropout": 0.0, **settings}
    parts = Extension(make_backbone=lambda config: make_backbone(), make_head=make_head, sha256="")
    return Classifier(Config(**settings), 3, parts)


def _model(function, shape=(16, 16, 3)):
    """Returns a function that makes a functional model of a function of its input."""

    def make():
        inputs = keras.Input(shape)
        return keras.Model(inputs, function(inputs), name="mine")

    return make


def _flat(x):
    return layers.Flatten()(layers.Conv2D(4, 3, name="conv")(x))


def _images(seed=0):
    return tf.constant(np.random.RandomState(seed).uniform(0, 255, (4, 16, 16, 3)), tf.float32)


def _logits(classifier, **kwargs):
    boundary = classifier.boundary()
    return classifier.logits(boundary, classifier.frozen_part(boundary)(_images()), **kwargs)


@keras.saving.register_keras_serializable(package="mine")
class Registered(layers.Dense):
    pass


class Unregistered(layers.Dense):
    pass


class Subclassed(keras.Model):
    def call(self, images):
        return images


def _twice(x):
    conv = layers.Conv2D(3, 1, name="again")
    return conv(conv(x))


def _two_inputs():
    inputs = [keras.Input((16, 16, 3)), keras.Input((16, 16, 3))]
    return keras.Model(inputs, layers.Add()(inputs), name="mine")


def _shared():
    inner = layers.Conv2D(3, 1)
    x = inputs = keras.Input((16, 16, 3))
    for name in ("first", "second"):
        x = keras.Sequential([inner], name=name)(x)
    return keras.Model(inputs, x)


REFUSED = {
    "subclassed": (Subclassed, "returned subclassed.*, which is subclassed or not built"),
    "no model": (lambda: 3, "returned 3; expected a functional Keras model"),
    "two inputs": (_two_inputs, "mine, which has 2 inputs, 1 outputs"),
    "size": (_model(_flat, (9, 9, 3)), r"mine, from \[9, 9, 3\] to \[196\]"),
    "any size": (_model(layers.ReLU(), (None, None, 3)), r"mine, from \[None, None, 3\]"),
    "called twice": (_model(_twice), "two tensors of mine are named again"),
    "shared weights": (_shared, "share none"),
    "option": (lambda: (_model(_flat)(), {"block": "x"}), "unexpected keyword argument 'block'"),
    "pattern": (lambda: (_model(_flat)(), {"blocks": "("}), "missing \\)"),
    "preprocessing": (lambda: (_model(_flat)(), {"preprocessing": "bgr"}), "'bgr'; expected one"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_backbone_that_cannot_be_used_is_refused_in_one_line(kind):
    make, message = REFUSED[kind]
    with pytest.raises(UserError, match=message) as caught:
        _classifier(make)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2,), (5, 3), (4, 4, 3)])
def test_the_default_head_pools_by_rank(shape):
    size = int(np.prod(shape))
    classifier = _classifier(
        _model(lambda x: layers.Reshape(shape)(layers.Dense(size)(layers.Flatten()(x))))
    )
    (features,) = classifier.frozen_part(("reshape",))(_images())
    assert features.shape == (4, *shape)
    kernel = np.array(classifier.variables["head/kernel"])
    pooled = np.reshape(features, (4, -1, shape[-1])).mean(axis=1)
    np.testing.assert_allclose(_logits(classifier), pooled @ kernel, rtol=1e-5, atol=1e-5)
    assert classifier.backbone_blocks == [
        ("backbone", ("input_layer", "flatten", "dense", "reshape"))
    ]


def test_sequential_with_dict_of_options():
    def make():
        model = keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                layers.Conv2D(2, 1, name="a_1"),
                layers.Conv2D(2, 1, name="b_1"),
            ]
        )
        return model, {"preprocessing": "tf", "blocks": "(?P<block>[ab])_"}

    classifier = _classifier(make)
    assert [name for name, _ in classifier.backbone_blocks] == ["a", "b"]
    classifier.unfreeze("b")
    assert list(classifier.trainable_variables()) == [
        "backbone/b_1/kernel",
        "backbone/b_1/bias",
        "head/kernel",
        "head/bias",
    ]
    (pixels,) = classifier.frozen_part((classifier.graph.input,))(_images())
    np.testing.assert_allclose(pixels, _images() / 127.5 - 1.0, rtol=1e-6)


def test_weights_and_names_depend_on_the_seed_alone():
    def values(seed):
        layers.Conv2D(1, 1)  # numbers go on
        classifier = _classifier(
            _model(lambda x: layers.Conv2D(4, 3)(x)),
            lambda x, k: layers.Dense(k)(layers.Flatten()(x)),
            seed=seed,
        )
        return {path: variable.numpy() for path, variable in classifier.variables.items()}

    first, again, other = values(1), values(1), values(2)
    assert list(first) == [
        "backbone/conv2d/kernel",
        "backbone/conv2d/bias",
        "head/dense/kernel",
        "head/dense/bias",
    ]
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
    assert np.abs(first["head/dense/kernel"] - other["head/dense/kernel"]).max() > 0


def _two_dropouts(features, num_classes):
    x = layers.Dropout(0.25, name="first")(layers.Flatten()(features))
    return layers.Dense(num_classes)(layers.Dropout(0.5, name="second")(x))


def test_each_dropout_of_a_head_has_masks_of_its_own_which_depend_on_seed_and_step():
    classifier = _classifier(_model(_flat), _two_dropouts)
    masks = classifier.dropout_mask(tf.constant(3, tf.int64), 200)
    assert {name: mask.shape for name, mask in masks.items()} == {
        "head/first": (200, 784),
        "head/second": (200, 784),
    }
    first, second = (np.array(mask) for mask in masks.values())
    assert abs(first.mean() - 0.75) < 0.01
    assert abs(second.mean() - 0.5) < 0.01
    assert 0.3 < (second & first).mean() < 0.45  # independent: 0.375; of one draw it were 0.5
    again = classifier.dropout_mask(tf.constant(3, tf.int64), 200)
    other = classifier.dropout_mask(tf.constant(4, tf.int64), 200)
    for name in masks:
        np.testing.assert_array_equal(masks[name], again[name])
        assert np.any(masks[name] != other[name])

    masks = {name: mask.numpy()[:4] for name, mask in masks.items()}
    (features,) = classifier.frozen_part(classifier.head_boundary)(_images())
    kernel, bias = classifier.head.get_weights()
    kept = np.where(masks["head/first"], features / 0.75, 0) * masks["head/second"] / 0.5
    np.testing.assert_allclose(
        _logits(classifier, dropout_mask=masks), kept @ kernel + bias, rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(_logits(classifier), features @ kernel + bias, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, k: x,
        lambda x, k: layers.Dense(k + 1)(layers.Flatten()(x)),
        lambda x, k: layers.Dense(k, dtype="float16")(layers.Flatten()(x)),
        lambda x, k: None,
    ],
)
def test_a_head_that_gives_no_logits_is_refused(make):
    with pytest.raises(UserError, match=r"float32 logits \[B, 3\], computed from the features"):
        _classifier(_model(_flat), make)


def test_a_head_computes_in_float32_whatever_the_backbone_does():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        classifier = _classifier(_model(_flat), _two_dropouts)
        assert classifier.compute_dtype == "float16"
        assert {layer.compute_dtype for layer in classifier.head.layers[1:]} == {"float32"}
        assert _logits(classifier).dtype == tf.float32
        assert classifier.in_float32().compute_dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_model_from_a_file_computes_in_its_own_precision(tmp_path):
    def backbone(x):
        return keras.Sequential([layers.Conv2D(2, 1, name="conv")], name="pair")(x)

    _model(backbone)().save(tmp_path / "mine.keras")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = _classifier(lambda: keras.saving.load_model(tmp_path / "mine.keras"))
        assert list(what_differs(classifier)) == [
            "backbone: computes in float32, the dtype of its layers"
        ]
        assert classifier.in_float32() is classifier
        # Sums of three products of pixels: bfloat16 would be off by 1e-3 or more.
        (maps,) = classifier.frozen_part(("pair",))(_images())
        kernel = np.array(classifier.variables["backbone/pair/conv/kernel"])[0, 0]
        np.testing.assert_allclose(maps, _images().numpy() @ kernel, rtol=1e-5, atol=1e-4)
        artefacts.try_saving(classifier)
    finally:
        keras.config.set_dtype_policy("float32")


def test_an_export_of_the_layers_side_by_side_as_older_runs_wrote_it_is_read(tmp_path):
    classifier = _classifier(_model(layers.Conv2D(4, 3, name="conv")))
    flat = {layer.name: layer for layer in classifier.model.layers}
    x = inputs = keras.Input((16, 16, 3))
    for name in ("augmentation", "preprocessing", "backbone"):
        x = flat[name](x)
    x = layers.Dropout(0.2, name="dropout")(layers.GlobalAveragePooling2D(name="pooling")(x))
    head = layers.Dense(3, name="head")
    keras.Model(inputs, head(x)).save(tmp_path / "older.keras")
    older = keras.saving.load_model(tmp_path / "older.keras")
    older.get_layer("head").set_weights(classifier.head.get_weights())
    np.testing.assert_allclose(
        folded_logits(older)(_images()), _logits(classifier), rtol=1e-5, atol=1e-5
    )


def test_what_its_maker_may_not_expect_is_said():
    def head(features, num_classes):
        x = layers.GaussianNoise(0.1, name="noise")(layers.Flatten()(features))
        return Registered(num_classes)(layers.Dropout(0.1)(x))

    def backbone(x):
        return keras.Sequential([layers.Conv2D(2, 1), layers.BatchNormalization()])(x)

    assert list(what_differs(_classifier(_model(backbone), head))) == [
        "backbone: 1 BatchNorm layers inside other layers are not folded",
        "head: does nothing in training: noise",
        "export: to load it, import what defines mine>Registered",
    ]
    assert not list(what_differs(_classifier(_model(_flat))))


@pytest.mark.parametrize(
    "layer, message",
    [
        (Registered(2), None),
        (Unregistered(2), "Could not locate class 'Unregistered'"),
        (layers.Lambda(lambda x: 2.0 * x), "lambda"),
    ],
)
def test_what_cannot_be_saved_and_loaded_is_refused_before_training(layer, message):
    classifier = _classifier(_model(lambda x: layer(layers.Flatten()(x))))
    if message is None:
        return artefacts.try_saving(classifier)
    with pytest.raises(UserError, match=message) as caught:
        artefacts.try_saving(classifier)
    assert "\n" not in str(caught.value)


def test_a_model_that_answers_otherwise_once_it_is_loaded_is_refused():
    @keras.saving.register_keras_serializable(package="mine")
    class Forgetful(layers.Layer):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def get_config(self):
            return {"name": self.name}

        def call(self, x):
            return self.factor * x

    classifier = _classifier(_model(lambda x: Forgetful(3.0)(_flat(x))))
    with pytest.raises(UserError, match="its logits then differ by .* relative"):
        artefacts.try_saving(classifier)
