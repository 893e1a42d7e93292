"""A convolution and its BatchNorm computed as one are the same function of the same variables.

The reference is always Keras' own layers, run one after the other. Whole backbones are in
`test_classifier.py`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tl_research.models import convolutions, folding
from tl_research.models.graph import FeatureGraph

# norm of the difference over norm of the reference
_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 1e-4
FOLDED = {
    "conv": lambda: layers.Conv2D(5, 3, padding="same", use_bias=False),
    "conv_valid": lambda: layers.Conv2D(5, (3, 2), padding="valid", use_bias=False),
    "conv_bias_strides": lambda: layers.Conv2D(5, 3, strides=2, padding="same"),
    "conv_strides_valid": lambda: layers.Conv2D(
        5, 3, strides=(2, 1), padding="valid", use_bias=False
    ),
    "conv_dilation": lambda: layers.Conv2D(5, 3, dilation_rate=2, padding="same"),
    "conv_linear_by_name": lambda: layers.Conv2D(5, 1, activation="linear"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", use_bias=False),
    "depthwise_bias_strides_valid": lambda: layers.DepthwiseConv2D(3, strides=2, padding="valid"),
    "depthwise_multiplier": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    "depthwise_dilation": lambda: layers.DepthwiseConv2D(3, dilation_rate=2, padding="same"),
    "depthwise_dilation_strides": lambda: layers.DepthwiseConv2D(
        3, strides=2, dilation_rate=2, padding="valid"
    ),
    "separable": lambda: layers.SeparableConv2D(5, 3, padding="same", use_bias=False),
    "separable_bias_strides_multiplier": lambda: layers.SeparableConv2D(
        5, 3, strides=2, depth_multiplier=2
    ),
    "separable_dilation": lambda: layers.SeparableConv2D(5, 3, dilation_rate=2, padding="same"),
    "dense": lambda: layers.Dense(5, use_bias=False),
    "dense_bias": lambda: layers.Dense(5),
}
NOT_FOLDED = {
    "activation_inside": lambda: layers.Conv2D(5, 3, activation="relu"),
    "separable_activation_inside": lambda: layers.SeparableConv2D(5, 3, activation="relu"),
    "grouped": lambda: layers.Conv2D(4, 3, groups=2),
    "transposed": lambda: layers.Conv2DTranspose(5, 3),
    "not_a_convolution": lambda: layers.ReLU(),
}


def _chain(layer, batchnorm=None, shape=(8, 7, 4)):
    inputs = keras.Input(shape, name="input")
    return _randomized(
        keras.Model(inputs, (batchnorm or layers.BatchNormalization(name="bn"))(layer(inputs)))
    )


def _randomized(model, seed=0):
    """Returns the model with no weight left at a value that makes folding trivial."""
    random = np.random.RandomState(seed)
    for variable in model.weights:
        positive = variable.name in ("moving_variance", "gamma")
        variable.assign(
            random.uniform(0.5, 2, variable.shape)
            if positive
            else random.normal(0, 0.5, variable.shape)
        )
    return model


def _outputs_and_gradients(function, model, images):
    """Returns (outputs, {path: gradient}) of a random weighting of the outputs that `function`
    computes.
    """
    values = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = function(images)
        weights = tf.constant(np.random.RandomState(7).normal(size=outputs.shape), outputs.dtype)
        loss = tf.reduce_sum(outputs * weights)
    paths = [variable.path for variable in model.trainable_variables]
    return outputs, dict(zip(paths, tape.gradient(loss, values)))


def _difference(a, b):
    a, b = np.asarray(tf.cast(a, tf.float64)), np.asarray(tf.cast(b, tf.float64))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def _images(model, dtype="float32"):
    return tf.constant(np.random.RandomState(1).normal(size=(3, *model.input_shape[1:])), dtype)


@pytest.fixture(autouse=True)
def _floatx():
    """No test leaves the type of its inputs to the next one."""
    before = keras.config.floatx()
    yield
    keras.config.set_floatx(before)


def _assert_graph_equals_keras(
    model, num_folded, outputs=_OUTPUT_TOLERANCE, gradients=_GRADIENT_TOLERANCE
):
    graph = FeatureGraph(model)
    assert graph.num_folded == num_folded
    images = _images(model, keras.config.dtype_policy().compute_dtype)
    expected, expected_gradients = _outputs_and_gradients(
        lambda x: model(x, training=False), model, images
    )
    got, got_gradients = _outputs_and_gradients(
        lambda x: graph.run({graph.input: x}, (graph.output,))[0], model, images
    )
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert _difference(got, expected) < outputs
    assert expected_gradients
    for path, gradient in expected_gradients.items():
        assert np.linalg.norm(gradient) > 1e-3, path
        assert _difference(got_gradients[path], gradient) < gradients, path


def test_weights_and_gradients_worked_out_by_hand():
    """kernel 2, bias 0.5, gamma 3, beta 0.5, mean 1, variance 3, epsilon 1, so s = 3 / sqrt(4)
    = 1.5.
    """
    model = _chain(
        layers.Conv2D(1, 1, name="conv"),
        layers.BatchNormalization(epsilon=1.0, name="bn"),
        (1, 1, 1),
    )
    conv, bn = model.get_layer("conv"), model.get_layer("bn")
    for variable, value in zip(conv.weights + bn.weights, (2.0, 0.5, 3.0, 0.5, 1.0, 3.0)):
        variable.assign(np.full(variable.shape, value))
    with tf.GradientTape() as tape:
        kernel, bias = folding.folded_weights(conv, bn)
        outputs = convolutions.convolve(conv, tf.fill([1, 1, 1, 1], 2.0), kernel, bias)
    np.testing.assert_allclose(kernel, [[[[3.0]]]], rtol=1e-6, atol=1e-6)  # 2 * 1.5
    np.testing.assert_allclose(bias, [-0.25], rtol=1e-6, atol=1e-6)  # 0.5 - 1 * 1.5 + 1.5 * 0.5
    np.testing.assert_allclose(outputs, [[[[5.75]]]], rtol=1e-6, atol=1e-6)
    variables = [conv.kernel, conv.bias, bn.gamma, bn.beta]
    gradients = tape.gradient(outputs, [variable.value for variable in variables])
    # s * x; s; (2 * 2 + 0.5 - 1) / 2; 1
    np.testing.assert_allclose(
        [np.sum(gradient) for gradient in gradients], [3.0, 1.5, 1.75, 1.0], rtol=1e-6, atol=1e-6
    )


def test_statistics_are_no_part_of_the_tape():
    model = _chain(layers.Conv2D(5, 3, name="conv"))
    with tf.GradientTape() as tape:
        folding.folded_weights(model.get_layer("conv"), model.get_layer("bn"))
    assert sorted([id(variable) for variable in tape.watched_variables()]) == sorted(
        [id(variable.value) for variable in model.trainable_variables]
    )


@pytest.mark.parametrize("kind", list(FOLDED))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_folded_equals_keras(kind, dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    tolerances = {
        "float32": (_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE),
        "float64": (1e-13, 1e-12),
    }[dtype]
    _assert_graph_equals_keras(_chain(FOLDED[kind]()), 1, *tolerances)


@pytest.mark.parametrize("kind", NOT_FOLDED)
def test_others_are_left_as_they_are(kind):
    _assert_graph_equals_keras(_chain(NOT_FOLDED[kind]()), 0)


@pytest.mark.parametrize(
    "kind", ["conv_bias_strides", "depthwise_multiplier", "separable", "dense_bias"]
)
@pytest.mark.parametrize(
    "options",
    [
        {"scale": False},
        {"center": False},
        {"scale": False, "center": False},
        {"epsilon": 0.3},
        {"axis": 3},
    ],
)
def test_every_kind_of_batchnorm(kind, options):
    _assert_graph_equals_keras(_chain(FOLDED[kind](), layers.BatchNormalization(**options)), 1)


def test_dense_of_vectors():
    _assert_graph_equals_keras(_chain(layers.Dense(5), shape=(6,)), 1)


def test_batchnorm_over_another_axis_is_not_folded():
    _assert_graph_equals_keras(_chain(layers.Conv2D(5, 3), layers.BatchNormalization(axis=1)), 0)


def test_batchnorm_of_another_precision_is_not_folded():
    """The one convolution would return the convolution's type, not the BatchNorm's."""
    model = _chain(layers.Conv2D(5, 3, dtype="float32"), layers.BatchNormalization(dtype="float64"))
    _assert_graph_equals_keras(model, 0)


@pytest.mark.parametrize("listed", ["before", "after"])
def test_convolution_that_is_used_elsewhere_is_not_folded(listed):
    inputs = keras.Input((6, 6, 3))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")(inputs)
    normed = layers.BatchNormalization(name="bn")(shared)
    other = layers.Conv2D(4, 1, name="alone")(shared)
    other = layers.BatchNormalization(name="bn_alone")(other)
    summed = layers.Add()(
        [shared, normed, other] if listed == "before" else [other, normed, shared]
    )
    model = _randomized(keras.Model(inputs, summed))
    _assert_graph_equals_keras(model, 1)
    graph = FeatureGraph(model)
    assert list(graph.fold_constants((graph.input,), (graph.output,))) == ["bn_alone"]


def test_batchnorm_of_a_sum_is_not_folded():
    inputs = keras.Input((6, 6, 3))
    summed = layers.Add()(
        [layers.Conv2D(4, 1)(inputs), layers.Conv2D(4, 3, padding="same")(inputs)]
    )
    _assert_graph_equals_keras(
        _randomized(keras.Model(inputs, layers.BatchNormalization()(summed))), 0
    )


@pytest.mark.parametrize(
    "pads", [((0, 1), (0, 1)), ((1, 1), (1, 1)), ((2, 3), (2, 3)), ((1, 2), (0, 1))]
)
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("width", [3, 5, 6])
@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_padding_before_strides_is_left_to_the_convolution_where_it_does_the_same(
    pads, size, width, kind
):
    """TensorFlow pads max((ceil(size / 2) - 1) * 2 + width - size, 0) in all, the smaller half
    first.
    """
    inputs = keras.Input((size, size, 4))
    make = {
        "conv": lambda **options: layers.Conv2D(5, **options),
        "depthwise": layers.DepthwiseConv2D,
    }[kind]
    padded = layers.ZeroPadding2D(pads, name="pad")(inputs)
    model = keras.Model(
        inputs, layers.BatchNormalization()(make(kernel_size=width, strides=2)(padded))
    )
    total = {(8, 3): 1, (8, 5): 3, (8, 6): 4, (9, 3): 2, (9, 5): 4, (9, 6): 5}[size, width]
    _assert_graph_equals_keras(_randomized(model), 1)
    graph = FeatureGraph(model)
    *_, (_, _, read, _) = graph.layers((graph.input,), (graph.output,))
    is_folded = pads == ((total // 2, total - total // 2),) * 2
    assert read == (graph.input,) if is_folded else ("pad",)
    # A boundary at the padded images is possible all the same.
    images = _images(model)
    (padded,) = graph.run({graph.input: images}, ("pad",))
    assert (
        _difference(graph.run({"pad": padded}, (graph.output,))[0], model(images))
        < _OUTPUT_TOLERANCE
    )


def test_fold_false_folds_nothing():
    assert FeatureGraph(_chain(layers.Conv2D(5, 3)), fold=False).num_folded == 0


def test_boundary_between_convolution_and_batchnorm():
    """The convolution is frozen, its BatchNorm trains: each is computed as it is, on its own
    side.
    """
    model = _chain(layers.Conv2D(5, 3, name="conv"))
    model.get_layer("conv").trainable = False
    graph, images = FeatureGraph(model), _images(model)
    boundary = graph.boundary(lambda layer: bool(layer.trainable_variables))
    assert boundary == ("conv",)
    assert not graph.fold_constants((graph.input,), boundary)
    frozen = graph.run({graph.input: images}, boundary)
    np.testing.assert_allclose(frozen[0], model.get_layer("conv")(images), rtol=1e-5, atol=1e-5)

    expected, expected_gradients = _outputs_and_gradients(
        lambda x: model(x, training=False), model, images
    )
    got, gradients = _outputs_and_gradients(
        lambda x: graph.run({"conv": x}, (graph.output,))[0], model, frozen[0]
    )
    assert _difference(got, expected) < _OUTPUT_TOLERANCE
    assert len(gradients) == 2
    for path, gradient in expected_gradients.items():
        assert _difference(gradients[path], gradient) < _GRADIENT_TOLERANCE
    # Asked for both, it gives both, and computes the convolution once.
    assert not graph.fold_constants((graph.input,), ("conv", graph.output))
    both = graph.run({graph.input: images}, ("conv", graph.output))
    assert _difference(both[0], frozen[0]) < _OUTPUT_TOLERANCE
    assert _difference(both[1], expected) < _OUTPUT_TOLERANCE


def test_constants_are_the_weights_of_the_moment():
    model = _chain(layers.Conv2D(5, 3, name="conv"))
    graph, images = FeatureGraph(model), _images(model)

    def run(constants):
        return graph.run({graph.input: images}, (graph.output,), constants=constants)[0]

    constants = graph.fold_constants((graph.input,), (graph.output,))
    before = model(images)
    model.get_layer("bn").gamma.assign(-model.get_layer("bn").gamma)
    assert _difference(run(constants), before) < _OUTPUT_TOLERANCE
    assert _difference(run(None), model(images)) < _OUTPUT_TOLERANCE
    assert _difference(run(None), before) > 0.1


@pytest.mark.parametrize(
    "kind", ["conv_bias_strides", "depthwise_multiplier", "separable", "dense_bias"]
)
def test_mixed_bfloat16_keeps_types_and_nearly_values(kind):
    exact = _chain(FOLDED[kind]())
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _chain(FOLDED[kind]())
    model.set_weights(exact.get_weights())
    graph, images = FeatureGraph(model), _images(model)
    assert graph.num_folded == 1
    expected, expected_gradients = _outputs_and_gradients(
        lambda x: exact(x, training=False), exact, images
    )
    got, gradients = _outputs_and_gradients(
        lambda x: graph.run({graph.input: x}, (graph.output,))[0], model, images
    )
    assert got.dtype == tf.bfloat16
    assert model(images).dtype == tf.bfloat16
    assert _difference(got, expected) < 0.02  # bfloat16 has 8 bits: 0.004 a rounding
    assert _difference(got, expected) > 1e-4  # it was computed in bfloat16
    for gradient, reference in zip(gradients.values(), expected_gradients.values()):
        assert gradient.dtype == tf.float32
        assert _difference(gradient, reference) < 0.05
