"""A model boundary in two computes what it computed in one piece.

Whole backbones are boundary in `test_classifier.py`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tl_research.models.graph import FeatureGraph


def _randomized(model):
    random = np.random.RandomState(0)
    for variable in model.weights:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def _branches():
    """Two branches, operators that are not layers, and a Sequential inside: every node form that
    the backbones have.

    input - first - bn - relu -+- left - left_bn -+- (+) - (* 2) - block(inner - inner_bn) - last
                               +- right ----------+
    """
    inputs = keras.Input((6, 6, 3), name="input")
    x = layers.BatchNormalization(name="bn")(
        layers.Conv2D(4, 3, padding="same", use_bias=False, name="first")(inputs)
    )
    x = layers.ReLU(name="relu")(x)
    left = layers.BatchNormalization(name="left_bn")(layers.Conv2D(5, 1, name="left")(x))
    right = layers.Conv2D(5, 3, padding="same", name="right")(x)
    x = (left + right) * 2.0
    x = keras.Sequential(
        [layers.Conv2D(3, 1, name="inner"), layers.BatchNormalization(name="inner_bn")],
        name="block",
    )(x)
    return _randomized(keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x), name="branches"))


def _operators(model):
    return [
        operation.name for operation in model.operations if not isinstance(operation, keras.Layer)
    ]


def _images(model):
    return tf.constant(
        np.random.RandomState(1).normal(size=(2, *model.input_shape[1:])), tf.float32
    )


def _layers_below(model):
    """Yields the layers of a model, and those inside them."""
    for layer in model.layers:
        yield layer
        yield from _layers_below(layer) if hasattr(layer, "layers") else ()


# What is computed.


def _open(model, *names):
    """Opens the named layers and nothing else; returns the question that `boundary` asks of
    each.
    """
    for layer in _layers_below(model):
        if not hasattr(layer, "layers"):
            layer.trainable = layer.name in names
    return lambda layer: bool(getattr(layer, "trainable_variables", ()))


@pytest.mark.parametrize("fold", [True, False])
def test_run_equals_the_model_from_every_tensor_that_is_a_boundary(fold):
    model = _branches()
    add, multiply = _operators(model)
    graph, images = FeatureGraph(model, fold=fold), _images(model)
    # the pair inside the Sequential is left alone
    assert graph.num_folded == (2 if fold else 0)
    expected = model(images, training=False)
    for boundary in (
        ("input",),
        ("first",),
        ("bn",),
        ("relu",),
        ("left", "right"),
        ("left_bn", "right"),
        (add,),
        (multiply,),
        ("block",),
        ("last",),
    ):
        tensors = graph.run({"input": images}, boundary)
        for name, tensor in zip(boundary, tensors):
            assert graph.shape(name) == tensor.shape[1:]
            assert graph.dtype(name) == "float32"
        (outputs,) = graph.run(dict(zip(boundary, tensors)), (graph.output,))
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert (graph.input, graph.output) == ("input", "last")


@pytest.mark.parametrize(
    "opened, expected",
    [
        ((), ("last",)),  # nothing trains: the whole network is frozen
        (("last",), ("block",)),
        (("inner",), ("*",)),  # the Sequential is one node, open if anything inside is
        (("inner_bn",), ("*",)),
        (("left_bn",), ("right", "left")),  # between convolution and BatchNorm
        (("left", "left_bn"), ("relu", "right")),
        (("right",), ("left_bn", "relu")),
        (("right", "left"), ("relu",)),
        (("bn",), ("first",)),
        (("first", "last"), ("input",)),  # what trains first decides, whatever is frozen behind it
    ],
)
def test_boundary_is_where_the_first_open_layer_begins(opened, expected):
    model = _branches()
    graph = FeatureGraph(model)
    boundary = graph.boundary(_open(model, *opened))
    names = {"*": _operators(model)[1]}
    assert sorted(boundary) == sorted([names.get(name, name) for name in expected])

    # The frozen part reads no open variable; behind it a tape sees the open ones, and those of
    # no layer before it.
    images = _images(model)
    open_variables = [variable.value for variable in model.trainable_variables]
    assert bool(open_variables) == bool(opened)
    with tf.GradientTape() as tape:
        tensors = graph.run({"input": images}, boundary)
    assert not {id(v) for v in tape.watched_variables()} & {id(v) for v in open_variables}
    with tf.GradientTape() as tape:
        (outputs,) = graph.run(dict(zip(boundary, tensors)), (graph.output,))
        loss = tf.reduce_sum(outputs * outputs)
    assert {id(v) for v in open_variables} <= {id(v) for v in tape.watched_variables()}
    gradients = tape.gradient(loss, open_variables)
    with tf.GradientTape() as tape:
        outputs = model(images, training=False)
        loss = tf.reduce_sum(outputs * outputs)
    for gradient, reference in zip(gradients, tape.gradient(loss, open_variables), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-4, atol=1e-3)


def test_open_layer_without_variables_is_frozen():
    model = _branches()
    assert FeatureGraph(model).boundary(_open(model, "relu", "last")) == ("block",)


def test_only_what_is_needed_is_computed():
    model = _branches()
    graph = FeatureGraph(model)
    with pytest.raises(
        ValueError,
        match=r"\['input'\] cannot be computed from \['left_bn'\]; expected tensors of a boundary",
    ):
        graph.run({"left_bn": tf.zeros([1, 6, 6, 5])}, (graph.output,))
    known = {"left_bn": tf.zeros([1, 6, 6, 5]), "right": tf.zeros([1, 6, 6, 5])}
    # neither `input` nor what lies behind is asked for
    (outputs,) = graph.run(known, (_operators(model)[0],))
    np.testing.assert_array_equal(outputs, tf.zeros([1, 6, 6, 5]))


def test_layer_called_twice_is_refused():
    inputs = keras.Input((4, 4, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    with pytest.raises(ValueError, match="named shared; expected each layer to be called once"):
        FeatureGraph(keras.Model(inputs, shared(shared(inputs)), name="twice"))


def test_several_outputs_of_one_layer_are_numbered():
    class Halves(layers.Layer):
        def call(self, x):
            return x[..., :2], x[..., 2:]

    inputs = keras.Input((3, 3, 4), name="input")
    first, second = Halves(name="halves")(inputs)
    model = keras.Model(
        inputs,
        layers.Subtract(name="difference")([first, layers.Conv2D(2, 1, name="conv")(second)]),
    )
    graph, images = FeatureGraph(model), _images(model)
    boundary = graph.boundary(_open(model, "conv"))
    assert sorted(boundary) == sorted(["halves:0", "halves:1"])
    tensors = graph.run({"input": images}, boundary)
    np.testing.assert_array_equal(dict(zip(boundary, tensors))["halves:1"], images[..., 2:])
    np.testing.assert_allclose(
        graph.run(dict(zip(boundary, tensors)), (graph.output,))[0],
        model(images),
        rtol=1e-5,
        atol=1e-5,
    )


def test_inference_even_inside_a_layer_that_is_training():
    inputs = keras.Input((4, 4, 3))
    x = layers.BatchNormalization(name="alone")(layers.Dropout(0.9)(inputs))
    x = layers.BatchNormalization(name="paired")(layers.Conv2D(2, 1)(x))
    model = _randomized(keras.Model(inputs, keras.Sequential([layers.Dropout(0.9)])(x)))
    for fold in (True, False):
        graph = FeatureGraph(model, fold=fold)

        class Outer(layers.Layer):
            def call(self, images, training=False):
                return graph.run({graph.input: images}, (graph.output,))[0]

        images, before = _images(model), model.get_weights()
        np.testing.assert_allclose(
            Outer()(images, training=True), model(images, training=False), rtol=1e-5, atol=1e-5
        )
        for value, kept in zip(model.get_weights(), before):
            np.testing.assert_array_equal(value, kept)


@pytest.mark.parametrize("name", ["alone", "paired"])
@pytest.mark.parametrize("fold", [True, False])
def test_batchnorm_in_training_moves_the_statistics_of_the_named_layer(name, fold):
    inputs = keras.Input((4, 4, 3), name="input")
    x = layers.BatchNormalization(name="alone", momentum=0.75)(inputs)
    x = layers.BatchNormalization(name="paired", momentum=0.75)(layers.Conv2D(2, 1, name="conv")(x))
    model = _randomized(keras.Model(inputs, x))
    graph, images = FeatureGraph(model, fold=fold), _images(model)
    layer = model.get_layer(name)
    reads = images if name == "alone" else graph.run({"input": images}, ("conv",))[0]
    mean, variance = np.mean(reads, axis=(0, 1, 2)), np.var(reads, axis=(0, 1, 2))
    expected = dict(zip([v.path for v in model.weights], model.get_weights()))
    expected[layer.moving_mean.path] = 0.75 * expected[layer.moving_mean.path] + 0.25 * mean
    expected[layer.moving_variance.path] = (
        0.75 * expected[layer.moving_variance.path] + 0.25 * variance
    )
    normalized = np.array(layer.gamma) * (reads - mean) / np.sqrt(
        variance + layer.epsilon
    ) + np.array(layer.beta)

    (outputs,) = graph.run({"input": images}, (name,), batchnorm_in_training={layer})
    np.testing.assert_allclose(outputs, normalized, rtol=1e-4, atol=1e-4)
    for variable in model.weights:
        np.testing.assert_allclose(
            variable.numpy(), expected[variable.path], rtol=1e-5, atol=1e-5, err_msg=variable.path
        )


# What it costs.


def _narrow_and_wide(kernel_size):
    inputs = x = keras.Input((8, 8, 3), name="input")
    for name, filters, size in (("wide", 16, 1), ("narrow", 2, 1), ("again", 16, kernel_size)):
        x = layers.BatchNormalization(name=f"{name}_bn")(
            layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
        )
    return FeatureGraph(keras.Model(inputs, layers.ReLU(name="relu")(x)))


def test_bytes_and_multiply_adds_worked_out_by_hand():
    inputs = keras.Input((8, 8, 3), name="input")
    # 4*4 positions, 3*2*3*6
    x = layers.Conv2D(6, (3, 2), strides=2, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    # 4*4, 3*3*6*2
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, padding="same", name="separable")(x)  # 4*4, 3*3*12 + 12*5
    x = keras.Sequential([layers.Conv2D(7, 2, strides=2)], name="block")(x)  # 2*2, 2*2*5*7
    x = layers.Dense(4, name="dense")(layers.Flatten(name="flat")(x))  # 28*4
    model = keras.Model(inputs, x)
    for fold in (True, False):
        graph = FeatureGraph(model, fold=fold)
        assert graph.multiply_adds(("input",), ("bn",)) == 16 * 108
        assert graph.multiply_adds(("bn",), ("depthwise",)) == 16 * 108
        assert graph.multiply_adds(("depthwise",), ("separable",)) == 16 * 168
        assert graph.multiply_adds(("separable",), ("dense",)) == 4 * 140 + 112
        assert graph.multiply_adds(("input",), ("dense",)) == 16 * (108 + 108 + 168) + 4 * 140 + 112
        assert graph.bytes_per_image(("conv", "dense")) == 4 * (4 * 4 * 6 + 4)


def test_bytes_follow_the_precision():
    inputs = keras.Input((8, 8, 3), dtype="float32")
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="half", dtype="mixed_bfloat16")(inputs))
    assert FeatureGraph(model).bytes_per_image(("half",)) == 2 * 8 * 8 * 2


def test_cheapest_boundary_is_at_an_earlier_narrow_tensor():
    """Kept at `relu`: 64 * 8*8*16*4 = 262144.

    At `narrow_bn`: 64 * 8*8*2*4 + 8*8*2*16 = 32768 + 2048.
    """
    assert _narrow_and_wide(1).cheapest_boundary(("relu",)) == ("narrow_bn",)


def test_cheapest_boundary_stays_where_computing_again_costs_more():
    """At `narrow_bn` with a 17 x 17 kernel: 32768 + 8*8 * 17*17*2*16 = 624640 is more than
    262144.
    """
    assert _narrow_and_wide(17).cheapest_boundary(("relu",)) == ("relu",)


def test_pixels_are_no_features():
    """`narrow` and the input together have 4 channels, `sum` 16: still no pixels are kept."""
    inputs = keras.Input((8, 8, 3), name="input")
    narrow = layers.Conv2D(1, 1, name="narrow")(inputs)
    wide = [
        layers.Conv2D(16, 1, name="left")(narrow),
        layers.Conv2D(16, 1, name="right")(inputs),
    ]
    graph = FeatureGraph(keras.Model(inputs, layers.Add(name="sum")(wide)))
    assert graph.cheapest_boundary(("sum",)) == ("sum",)
    assert graph.cheapest_boundary(("input",)) == ("input",)  # all open: nothing is frozen


def test_cheapest_boundary_of_two_branches_has_both_or_neither():
    inputs = keras.Input((4, 4, 3), name="input")
    x = layers.Conv2D(4, 1, name="trunk")(inputs)
    left = layers.Conv2D(8, 1, name="left")(layers.Conv2D(1, 1, name="left_narrow")(x))
    right = layers.Conv2D(8, 1, name="right")(layers.Conv2D(1, 1, name="right_narrow")(x))
    graph = FeatureGraph(keras.Model(inputs, layers.Add(name="sum")([left, right])))
    # `sum` is 8 channels, `trunk` 4, the two narrow ones together 2.
    assert sorted(graph.cheapest_boundary(("sum",))) == sorted(["left_narrow", "right_narrow"])
    tensors = graph.run({"input": tf.ones([1, 4, 4, 3])}, ("left_narrow", "right_narrow", "sum"))
    (again,) = graph.run({"left_narrow": tensors[0], "right_narrow": tensors[1]}, ("sum",))
    np.testing.assert_allclose(again, tensors[2], rtol=1e-6, atol=1e-6)
