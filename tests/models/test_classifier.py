"""The classifier is its parts computed by hand, and holds BatchNorm statistics however it is run.

`TL_RESEARCH_ALL_BACKBONES=1 python -m pytest tests/models/test_classifier.py` checks every
backbone; without it, the smallest member of each family. Each is built once, most of the time here,
so one test checks its values, folding and boundaries together.
"""

import functools
import importlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.models import backbones
from tl_research.models import classifier as classifier_lib
from tl_research.models.classifier import Classifier

# The smallest member of each family: image size, folded pairs (convolutions whose only reader is a
# BatchNorm), layers.
SMALLEST = {
    "MobileNetV2": (64, 52, 154),
    "MobileNetV3Small": (64, 34, 157),
    "EfficientNetB0": (64, 49, 238),
    "EfficientNetV2B0": (64, 59, 270),
    "EfficientNetLite0": (64, 49, 141),
    "ResNet50": (64, 53, 175),
    "ResNet50V2": (64, 32, 190),
    "VGG16": (64, 0, 19),
    "ConvNeXtTiny": (64, 0, 133),
    "DenseNet121": (64, 59, 427),
    "InceptionV3": (75, 94, 311),
    "Xception": (71, 40, 132),
    "NASNetMobile": (64, 188, 769),
}
NAMES = list(backbones.BACKBONES) if os.environ.get("TL_RESEARCH_ALL_BACKBONES") else list(SMALLEST)
# worked out from the architectures, and measured before this code existed (design.md, section 2.2)
CUTS_AT_30_PERCENT = {
    "MobileNetV2": {"block_11_add"},
    "EfficientNetV2B0": {"block6b_add", "block6c_project_conv"},
    # `add_11` is an operator, no layer
    "ConvNeXtTiny": {"convnext_tiny_stage_2_block_6_gelu", "add_11"},
}


def _pictures(count, size, seed=0):
    """float32 [count, size, size, 3] in 0..255, smooth and unlike each other (noise looks all the
    same to a network).
    """
    coarse = np.random.RandomState(seed).uniform(0, 255, (count, 4, 4, 3))
    return np.asarray(tf.image.resize(coarse, (size, size)), np.float32)


def _layers_below(model):
    """Yields the layers of a model, and those inside them."""
    for layer in model.layers:
        yield layer
        yield from _layers_below(layer) if hasattr(layer, "layers") else ()


def _batchnorms(backbone):
    return [
        layer
        for layer in _layers_below(backbone)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def _randomize(classifier, num_pictures=4):
    """Gives an untrained backbone weights at which a mistake anywhere shows in the logits.

    Kernels keep the signal's size (Keras' initial depthwise kernels lose it, then every image has
    the same features), gamma and beta are drawn, and statistics are those of some pictures (random
    ones make a deep network magnify rounding). A batch of other pictures, or of fewer, has other
    statistics.
    """
    random = np.random.default_rng(0)
    classifier.unfreeze("all")  # a frozen BatchNorm never takes the statistics of a batch
    for layer in _layers_below(classifier.backbone):
        for variable in () if hasattr(layer, "layers") else layer.trainable_variables:
            shape = variable.shape
            if "kernel" in variable.name:
                depthwise = "depthwise" in variable.name or isinstance(
                    layer, keras.layers.DepthwiseConv2D
                )
                fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
                variable.assign(random.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in))
            elif variable.name == "gamma":
                variable.assign(random.uniform(0.5, 1.5, shape))
            else:  # beta, bias
                variable.assign(random.normal(0, 0.3, shape))
    layers = _batchnorms(classifier.backbone)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    if layers:
        pictures = classifier.preprocessing(_pictures(num_pictures, classifier.image_size))
        classifier.graph.run(
            {classifier.graph.input: pictures},
            classifier.head_boundary,
            batchnorm_in_training=layers,
        )
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    classifier.unfreeze("0%")
    return classifier


def _untrained(backbone, image_size, num_classes=3, **settings):
    """Returns a classifier, with random weights unless others are given."""
    plain = {"weights": "none", "augment": "none", "dropout": 0.0}
    config = Config(backbone=backbone, image_size=image_size, **{**plain, **settings})
    return Classifier(config, num_classes)


def _mobilenet(**kwargs):
    return _randomize(_untrained("MobileNetV2", 32, **kwargs), num_pictures=16)


def _values(variables):
    """{path: array}, copied."""
    return {path: np.array(variable) for path, variable in variables.items()}


def _changed(before, variables):
    return {
        path
        for path, variable in variables.items()
        if not np.array_equal(before[path], np.array(variable))
    }


def _fit(model, images, labels):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)  # XLA takes seconds
    model.fit(images, labels, batch_size=4, epochs=1, verbose=0, shuffle=False)


def _assert_near(a, b, tolerance, msg=None):
    """Norm of the difference over norm of the reference `b`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), msg


@pytest.fixture
def in_float64():
    """Makes float64 the type of weights, and returns a function that does so."""
    yield lambda: (keras.config.set_floatx("float64"), keras.config.set_dtype_policy("float64"))
    keras.config.set_floatx("float32")


# Every family.


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_run_it_equals_its_parts_by_hand(in_float64, name):
    # Float64 shows what float32 hides, but takes minutes in the grouped convolutions of
    # ConvNeXt (which has no BatchNorm).
    exact = not name.startswith("ConvNeXt")
    if exact:
        in_float64()
    output_tolerance, gradient_tolerance = (1e-5, 1e-6) if exact else (1e-5, 1e-4)
    spec = backbones.get_spec(name)
    size, num_folded, num_layers = SMALLEST.get(name, (max(64, spec.min_image_size), None, None))
    classifier = _randomize(_untrained(name, size))
    if num_layers:
        assert classifier.graph.num_folded == num_folded
        assert len(classifier.backbone.layers) == num_layers
    opened = classifier.unfreeze("30%")
    assert len(opened) == len(classifier.backbone.layers) - int(
        len(classifier.backbone.layers) * 0.7
    )
    variables = classifier.trainable_variables()
    values = [variable.value for variable in variables.values()]
    statistics = {path: classifier.variables[path] for path in classifier.batchnorm_statistics()}
    before = _values(statistics)
    pixels = _pictures(2, size)
    weighting = np.random.RandomState(5).normal(size=(2, 3))

    # By hand: the module's own preprocessing, Keras' backbone, the mean over height and width,
    # one product.
    prepared = (
        (pixels - 127) / 128
        if spec.family == "efficientnet_lite"
        else importlib.import_module(f"keras.applications.{spec.family}").preprocess_input(
            pixels.copy()
        )
    )
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        features = classifier.backbone(prepared, training=False)
        by_hand = tf.reduce_mean(features, axis=(1, 2)) @ tf.cast(
            classifier.variables["head/kernel"], features.dtype
        ) + tf.cast(classifier.variables["head/bias"], features.dtype)
        loss = tf.reduce_sum(by_hand * weighting)
    by_hand_gradients = tape.gradient(loss, values)
    with_numpy = np.mean(features, axis=(1, 2)) @ np.array(
        classifier.variables["head/kernel"]
    ) + np.array(classifier.variables["head/bias"])
    _assert_near(by_hand, with_numpy, output_tolerance)
    # it sees
    assert np.linalg.norm(with_numpy[0] - with_numpy[1]) > 0.05 * np.linalg.norm(with_numpy)

    # neither dropout nor augmentation was asked for
    logits = classifier.model(pixels, training=True)
    assert logits.dtype == tf.float32
    _assert_near(logits, with_numpy, output_tolerance)

    boundary = classifier.boundary()
    if name in CUTS_AT_30_PERCENT:
        assert set(boundary) == CUTS_AT_30_PERCENT[name]
    with tf.GradientTape() as tape:
        tensors = classifier.frozen_part(boundary)(pixels)
    assert not {id(v) for v in tape.watched_variables()} & {id(v) for v in values}
    # watches all it meets: it meets what trains and nothing else
    with tf.GradientTape() as tape:
        logits = classifier.logits(boundary, tensors)
        loss = tf.reduce_sum(logits * weighting)
    assert sorted([id(v) for v in tape.watched_variables()]) == sorted([id(v) for v in values])
    assert logits.dtype == tf.float32
    _assert_near(logits, with_numpy, output_tolerance)
    for path, got, expected in zip(
        variables, tape.gradient(loss, values), by_hand_gradients, strict=True
    ):
        assert np.linalg.norm(expected) > 1e-6, path
        _assert_near(got, expected, gradient_tolerance, path)

    early = classifier.graph.cheapest_boundary(boundary)
    assert classifier.graph.bytes_per_image(early) <= classifier.graph.bytes_per_image(boundary)
    if early != boundary:
        deeper = classifier.frozen_part(boundary, early)(classifier.frozen_part(early)(pixels))
        for got, expected in zip(deeper, tensors, strict=True):
            _assert_near(got, expected, output_tolerance)
    assert not _changed(before, statistics)


# What is open.


@pytest.mark.parametrize("num_classes, parameters", [(1, 1_862_721), (2, 1_864_002)])
def test_mobilenet_from_layer_100_up(num_classes, parameters):
    classifier = _untrained("MobileNetV2", 160, num_classes)
    assert len(classifier.backbone.layers) == 154
    name = classifier.backbone.layers[100].name
    opened = classifier.unfreeze(name)
    assert name == "block_11_expand_relu"
    assert len(opened) == 54
    assert sum(np.prod(v.shape) for v in classifier.trainable_variables().values()) == parameters
    assert sum(np.prod(v.shape) for v in classifier.model.trainable_variables) == parameters


@pytest.fixture(scope="module")
def classifier():
    return _mobilenet()


@pytest.mark.parametrize(
    "what, first",
    [
        ("0%", 154),
        ("30%", 107),
        ("10%", 138),
        ("12.5%", 134),
        ("100%", 0),
        ("all", 0),
        ("block_16", 143),
        ("top", 151),
        ("stem", 0),
        ("block_16_depthwise", 146),
        ("Conv_1_bn", 152),
    ],
)
def test_what_is_open(classifier, what, first):
    opened = classifier.unfreeze(what)
    layers = classifier.backbone.layers
    assert [layer.name for layer in opened] == [layer.name for layer in layers[first:]]
    assert [layer.trainable for layer in layers] == [index >= first for index in range(154)]
    expected = [
        f"backbone/{layer.name}/{v.name}"
        for layer in layers[first:]
        for v in layer.trainable_variables
    ]
    assert list(classifier.trainable_variables()) == expected + ["head/kernel", "head/bias"]
    assert sorted([id(v) for v in classifier.model.trainable_variables]) == sorted(
        [id(v) for v in classifier.trainable_variables().values()]
    )
    assert not set(classifier.trainable_variables()) & classifier.batchnorm_statistics()


def test_statistics_are_the_mean_and_variance_of_every_batchnorm(classifier):
    assert len(classifier.batchnorm_statistics()) == 104
    assert {path.rpartition("/")[2] for path in classifier.batchnorm_statistics()} == {
        "moving_mean",
        "moving_variance",
    }


def test_frozen_backbone_is_parted_behind_the_pooling(classifier):
    classifier.unfreeze("0%")
    boundary = classifier.boundary()
    assert classifier.graph.shape(boundary[0]) == (1280,)
    assert len(boundary) == 1


def test_open_backbone_is_parted_before_its_first_layer(classifier):
    classifier.unfreeze("all")
    assert classifier.boundary() == (classifier.graph.input,)
    pixels = _pictures(2, 32)
    np.testing.assert_allclose(
        classifier.logits(
            classifier.boundary(),
            classifier.frozen_part(classifier.boundary())(pixels),
        ),
        classifier.model(pixels),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "what, message",
    [
        (
            "blok_16",
            r"--unfreeze=blok_16 is neither a layer nor a block of MobileNetV2; expected N%, all, "
            r"or a name such as stem, block_8, top; did you mean block_16\?",
        ),
        ("block_16_depthwize", r"did you mean block_16_depthwise\?"),
        ("xyz", "a name such as stem, block_8, top$"),
        ("", "neither a layer nor a block"),
        ("30", "expected N%"),
    ],
)
def test_name_that_is_none_gets_the_nearest(classifier, what, message):
    with pytest.raises(UserError, match=message):
        classifier.unfreeze(what)


def test_share_is_exact(classifier):
    """Of 154 layers; a product of floats opens one too many of 20 % and of 40 % of 175."""
    for count in (154, 175):
        for tenths in range(1001):
            frozen = classifier_lib.num_frozen(f"{tenths / 10}%", count)
            assert frozen == count * (1000 - tenths) // 1000
    for share, opened in (("20%", 31), ("99.9%", 154), ("0.1%", 1)):
        assert len(classifier.unfreeze(share)) == opened
    for layers, share, frozen in ((175, "80%", 35), (175, "8e1%", 35), (3, "33.3%", 2)):
        assert classifier_lib.num_frozen(share, layers) == frozen


@pytest.mark.parametrize("what", ["-1%", "101%", "nan%", "inf%", "some%", "%"])
def test_share_outside_0_to_100_percent_is_refused(classifier, what):
    with pytest.raises(UserError, match=f"--unfreeze={what}; expected a share between 0% and 100%"):
        classifier.unfreeze(what)


def test_refused_name_leaves_what_was_open(classifier):
    classifier.unfreeze("block_16")
    before = list(classifier.trainable_variables())
    for what in ("blok", "200%"):
        with pytest.raises(UserError):
            classifier.unfreeze(what)
    assert list(classifier.trainable_variables()) == before


# BatchNorm.


def test_fit_and_the_saved_model_change_what_is_open_and_no_statistic(tmp_path):
    classifier = _mobilenet(dropout=0.2, augment="flip,rotation=0.1")
    classifier.unfreeze("block_16")
    open_paths = set(classifier.trainable_variables())
    assert {"backbone/block_16_project_BN/gamma", "backbone/block_16_project_BN/beta"} <= open_paths
    images, labels = _pictures(8, 32), np.arange(8) % 3
    before = _values(classifier.variables)
    for variant in ({}, {"training": True}):
        classifier.model(images, **variant)
    assert not _changed(before, classifier.variables)

    # Saved, and continued in a process that knows of us only what it imports.
    file, arrays = str(tmp_path / "model.keras"), str(tmp_path / "arrays.npz")
    classifier.model.save(file)
    predictions = classifier.model(images)
    script = """if True:
        import sys
        import keras
        import numpy as np
        import tl_research.models
        model = keras.saving.load_model(sys.argv[1])
        images, labels = np.load(sys.argv[2]), np.arange(8) % 3
        arrays = {"predictions": model(images, training=False)}
        for i, variable in enumerate(model.weights):
            arrays[f"before/{i}"] = np.array(variable)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
        model.fit(images, labels, batch_size=4, epochs=1, verbose=0, shuffle=False)
        for i, variable in enumerate(model.weights):
            arrays[f"after/{i}"] = np.array(variable)
        np.savez(sys.argv[3], **arrays)
    """
    np.save(str(tmp_path / "images.npy"), images)
    process = subprocess.Popen(
        [sys.executable, "-c", script, file, str(tmp_path / "images.npy"), arrays],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )

    _fit(classifier.model, images, labels)  # meanwhile here
    assert _changed(before, classifier.variables) == open_paths

    _, errors = process.communicate()
    assert process.returncode == 0, errors
    loaded = np.load(arrays)
    _assert_near(loaded["predictions"], predictions, 1e-6)
    paths = {id(variable): path for path, variable in classifier.variables.items()}
    changed = set()
    for index, variable in enumerate(classifier.model.weights):
        path = paths[id(variable)]
        np.testing.assert_array_equal(loaded[f"before/{index}"], before[path])
        if not np.array_equal(loaded[f"after/{index}"], before[path]):
            changed.add(path)
    assert changed == open_paths


def test_control_the_common_recipe_moves_the_statistics_in_fit():
    """Why `InferenceBackbone` exists: a functional model forgets the `training=False` it was
    built with (keras#20285).
    """
    classifier = _mobilenet()
    classifier.unfreeze("block_16")
    base_model = classifier.backbone
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(
        base_model(classifier.preprocessing(inputs), training=False)
    )
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    before = _values(classifier.variables)
    _fit(model, _pictures(8, 32), np.arange(8) % 3)
    changed = _changed(before, classifier.variables)
    assert "backbone/block_16_project_BN/gamma" in changed
    moved = changed & classifier.batchnorm_statistics()
    if not moved:
        pytest.skip(
            f"Keras {keras.__version__} keeps the training=False that a functional model was "
            "built with: InferenceBackbone is no longer needed for it"
        )
    assert len(moved) == 2 * 4  # block_16 has three BatchNorm layers, the top one


def test_batchnorm_training_moves_open_statistics_in_training_calls_only():
    classifier = _mobilenet(batchnorm="training")
    classifier.unfreeze("block_16_depthwise_BN")
    images = _pictures(4, 32)
    boundary = classifier.boundary()
    assert boundary == ("block_16_depthwise",)  # between a convolution and its BatchNorm
    before = _values(classifier.variables)
    tensors = classifier.frozen_part(boundary)(images)
    plain = classifier.logits(boundary, tensors)
    _assert_near(plain, classifier.model(images), 1e-4)
    assert not _changed(before, classifier.variables)

    logits = tf.function(lambda t: classifier.logits(boundary, t, training=True))(tensors)
    assert np.linalg.norm(logits - plain) > 1e-2
    assert _changed(before, classifier.variables) == {
        f"backbone/{layer}/moving_{kind}"
        for layer in ("block_16_depthwise_BN", "block_16_project_BN", "Conv_1_bn")
        for kind in ("mean", "variance")
    }
    mean = "backbone/block_16_depthwise_BN/moving_mean"
    momentum = classifier.backbone.get_layer("block_16_depthwise_BN").momentum
    np.testing.assert_allclose(
        classifier.variables[mean].numpy(),
        momentum * before[mean] + (1 - momentum) * np.mean(tensors[0], axis=(0, 1, 2)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_batchnorm_inference_moves_nothing_in_training_calls():
    classifier = _mobilenet()
    classifier.unfreeze("block_16")
    before, boundary = _values(classifier.variables), classifier.boundary()
    tensors = classifier.frozen_part(boundary)(_pictures(4, 32))
    logits = classifier.logits(boundary, tensors, training=True)
    np.testing.assert_array_equal(logits, classifier.logits(boundary, tensors))
    assert not _changed(before, classifier.variables)


# Logits.


def test_dropout_is_a_pure_function_of_seed_and_step():
    def masks(classifier, step, features):
        # the logits are the first three features
        classifier.variables["head/kernel"].assign(np.eye(1280, 3))
        classifier.variables["head/bias"].assign(np.zeros(3))
        return classifier.logits(
            classifier.boundary(),
            [features],
            dropout_mask=classifier.dropout_mask(tf.constant(step, tf.int64), 500),
        )

    untrained = functools.partial(_untrained, "MobileNetV2", 32)

    classifier = untrained(dropout=0.25, seed=7)
    features = tf.ones([500, 1280])
    first = masks(classifier, 3, features)
    np.testing.assert_allclose(
        np.unique(first), [0.0, 1 / 0.75], rtol=1e-6, atol=1e-6
    )  # what is kept is scaled
    # 1500 draws: a standard deviation of 0.011
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.05)
    tf.random.uniform([])
    np.testing.assert_array_equal(masks(classifier, 3, features), first)
    # 1 / 0.75 in float32
    np.testing.assert_array_equal(masks(classifier, 3, tf.cast(features, tf.bfloat16)), first)
    np.testing.assert_array_equal(
        tf.function(
            lambda step: classifier.logits(
                classifier.boundary(),
                [features],
                dropout_mask=classifier.dropout_mask(step, 500),
            )
        )(tf.constant(3, tf.int64)),
        first,
    )
    dropped = tf.nn.experimental.stateless_dropout(
        features, 0.25, seed=tf.constant([7, 3], tf.int64), rng_alg="philox"
    )
    np.testing.assert_array_equal(first, dropped[:, :3])
    for other in (
        masks(classifier, 4, features),
        masks(untrained(dropout=0.25, seed=8), 3, features),
    ):
        assert np.mean(other == first) == pytest.approx(0.25**2 + 0.75**2, abs=0.06)  # independent
    np.testing.assert_array_equal(
        classifier.logits(classifier.boundary(), [features]), tf.ones([500, 3])
    )
    assert not untrained().dropout_mask(tf.constant(3, tf.int64), 500)


def test_frozen_part_is_folded_once_when_it_is_made():
    classifier = _mobilenet()
    pixels, boundary = _pictures(2, 32), classifier.boundary()
    frozen = classifier.frozen_part(boundary)
    before = frozen(pixels)[0]
    classifier.backbone.get_layer("Conv_1_bn").gamma.assign(np.zeros(1280))
    np.testing.assert_array_equal(frozen(pixels)[0], before)
    assert not np.allclose(
        classifier.frozen_part(boundary)(pixels)[0], before, rtol=1e-6, atol=1e-6
    )


def _logits_and_gradients(classifier, pixels):
    """(tensors at the boundary of the top 30 %, logits, {path: gradient of a weighting of the
    logits}).
    """
    classifier.unfreeze("30%")
    variables, boundary = classifier.trainable_variables(), classifier.boundary()
    tensors = classifier.frozen_part(boundary)(pixels)
    with tf.GradientTape() as tape:
        logits = classifier.logits(boundary, tensors)
        loss = tf.reduce_sum(logits * tf.constant([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]]))
    return (
        tensors,
        logits,
        dict(zip(variables, tape.gradient(loss, [v.value for v in variables.values()]))),
    )


def test_real_weights_folded_and_plain_agree_in_float32_and_nearly_in_bfloat16():
    """Trained weights do not magnify rounding, so float32 is enough to show it."""
    pixels = _pictures(2, 64)
    folded, plain = (
        _untrained("EfficientNetLite0", 64, weights="imagenet", fold_batchnorm=fold)
        for fold in ("on", "off")
    )
    assert (folded.graph.num_folded, plain.graph.num_folded) == (49, 0)
    _, logits, gradients = _logits_and_gradients(folded, pixels)
    _, plain_logits, plain_gradients = _logits_and_gradients(plain, pixels)
    _assert_near(logits, plain_logits, 1e-5)
    _assert_near(plain_logits, plain.model(pixels), 1e-5)
    assert np.linalg.norm(logits[0] - logits[1]) > 0.1 * np.linalg.norm(logits)
    for path, gradient in plain_gradients.items():
        _assert_near(gradients[path], gradient, 1e-4, path)

    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = _untrained("EfficientNetLite0", 64, weights="imagenet")
    tensors, mixed_logits, mixed_gradients = _logits_and_gradients(mixed, pixels)
    assert {tensor.dtype for tensor in tensors} == {tf.bfloat16}
    for got in (mixed_logits, mixed.model(pixels)):
        assert got.dtype == tf.float32
        _assert_near(got, logits, 0.25)  # measured: folded 0.09, Keras itself 0.12
    for path, gradient in mixed_gradients.items():
        assert gradient.dtype == tf.float32
        # measured: folded 0.42, unfolded 0.56
        _assert_near(gradient, gradients[path], 0.7, path)


def test_augmentation_is_in_the_model_and_off_at_inference():
    classifier = _mobilenet(augment="brightness=0.5")
    pixels = _pictures(2, 32)
    plain = classifier.model(pixels)
    _assert_near(
        classifier.logits(
            classifier.boundary(), classifier.frozen_part(classifier.boundary())(pixels)
        ),
        plain,
        1e-4,
    )
    assert not np.allclose(classifier.model(pixels, training=True), plain, rtol=1e-2, atol=1e-2)
