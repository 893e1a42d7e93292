"""Depthwise convolutions in parts equal Keras' own layers, in outputs and in every gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tl_research.models import convolutions
from tl_research.models.graph import FeatureGraph

CHANNELS = 6
# As users write them; widths above 3 take the filter gradient in parts.
DEPTHWISE = {
    "width_3": lambda: layers.DepthwiseConv2D(3, padding="same"),
    "width_5_same": lambda: layers.DepthwiseConv2D(5, padding="same", use_bias=False),
    "width_5_same_strides": lambda: layers.DepthwiseConv2D(5, strides=2, padding="same"),
    "width_5_valid_strides": lambda: layers.DepthwiseConv2D(5, strides=3, padding="valid"),
    "width_4_height_2": lambda: layers.DepthwiseConv2D((2, 4), padding="same"),
    "width_7_multiplier": lambda: layers.DepthwiseConv2D(7, depth_multiplier=2, padding="same"),
    "width_5_activation": lambda: layers.DepthwiseConv2D(5, padding="same", activation="relu"),
    "width_5_dilation": lambda: layers.DepthwiseConv2D(5, padding="same", dilation_rate=2),
    "conv2d_with_groups": lambda: layers.Conv2D(CHANNELS, 7, groups=CHANNELS, padding="same"),
    "conv2d_with_groups_strides": lambda: layers.Conv2D(
        CHANNELS, 5, groups=CHANNELS, strides=2, activation="tanh"
    ),
}
OTHERS = {
    "conv2d": lambda: layers.Conv2D(CHANNELS, 5),
    "conv2d_of_one_channel": lambda: layers.Conv2D(1, 5),
    "two_groups": lambda: layers.Conv2D(CHANNELS, 5, groups=2),
    "groups_with_two_filters": lambda: layers.Conv2D(2 * CHANNELS, 5, groups=CHANNELS),
    "channels_first": lambda: layers.DepthwiseConv2D(5, data_format="channels_first"),
    "separable": lambda: layers.SeparableConv2D(4, 5),
}


def _outputs_and_gradients(call, layer, images):
    """Returns outputs, and the gradients of images and weights of a random weighting of the
    outputs.
    """
    values = [images, *(variable.value for variable in layer.trainable_variables)]
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = call(images)
        loss = tf.reduce_sum(outputs * np.random.RandomState(2).normal(size=outputs.shape))
    return [outputs, *tape.gradient(loss, values)]


@pytest.mark.parametrize("height, width", [(9, 8), (11, 13)])
@pytest.mark.parametrize("make", DEPTHWISE.values(), ids=DEPTHWISE)
def test_depthwise_equals_the_keras_layer(make, height, width):
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    layer = make()
    layer.build((None, height, width, CHANNELS))
    assert convolutions.is_depthwise(layer)
    images = tf.constant(np.random.RandomState(1).normal(size=(3, height, width, CHANNELS)))
    expected = _outputs_and_gradients(layer, layer, images)
    actual = _outputs_and_gradients(lambda x: convolutions.call_depthwise(layer, x), layer, images)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("width", [3, 5])
def test_strides_in_bfloat16_send_gradients_as_float32_does(width):
    kernel = layers.DepthwiseConv2D(
        width, strides=2, padding="same", depthwise_initializer="glorot_uniform"
    )
    kernel.build((None, 9, 8, CHANNELS))
    images = tf.cast(tf.random.stateless_normal([3, 9, 8, CHANNELS], seed=(0, 1)), tf.bfloat16)
    # what bfloat16 can hold
    kernel.kernel.assign(tf.cast(tf.cast(kernel.kernel, tf.bfloat16), tf.float32))
    expected = _outputs_and_gradients(kernel, kernel, tf.cast(images, tf.float32))
    narrow = layers.DepthwiseConv2D(width, strides=2, padding="same", dtype="mixed_bfloat16")
    narrow.build((None, 9, 8, CHANNELS))
    narrow.set_weights(kernel.get_weights())
    actual = _outputs_and_gradients(
        lambda x: convolutions.call_depthwise(narrow, x), narrow, images
    )
    assert [a.dtype for a in actual] == [tf.bfloat16, tf.bfloat16, tf.float32, tf.float32]
    for a, b in zip(actual, expected):  # sums of numbers rounded by up to 2^-9 of each
        np.testing.assert_allclose(
            tf.cast(a, tf.float32), b, rtol=0.0, atol=2**-6 * np.abs(b).max()
        )


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("strides", [1, 2])
def test_gradients_of_a_depthwise_convolution_in_float16_are_summed_in_float32(width, strides):
    layer = layers.DepthwiseConv2D(width, strides=strides, padding="same", use_bias=False)
    layer.build((None, 9, 8, CHANNELS))
    expected = _outputs_and_gradients(
        layer, layer, tf.random.stateless_normal([3, 9, 8, CHANNELS], seed=(0, 1))
    )
    layer.dtype_policy = keras.dtype_policies.get("mixed_float16")

    @tf.function
    def run(images):
        return _outputs_and_gradients(
            lambda x: convolutions.call_depthwise(layer, tf.cast(x, tf.float16)), layer, images
        )

    images = tf.random.stateless_normal([3, 9, 8, CHANNELS], seed=(0, 1))
    dtypes = {
        operation.get_attr("T")
        for operation in run.get_concrete_function(images).graph.get_operations()
        if operation.type.startswith("DepthwiseConv2dNativeBackprop")
    }
    assert dtypes == {tf.float32}
    for a, b in zip(run(images), expected):
        np.testing.assert_allclose(
            tf.cast(a, tf.float32), b, rtol=0.0, atol=2**-9 * np.abs(b).max()
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D", "Dense"])
def test_gradient_of_a_bias_is_the_sum_over_all_places(dtype, kind):
    layer = {
        "Conv2D": lambda: layers.Conv2D(CHANNELS, 1),
        "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3),
        "Dense": lambda: layers.Dense(CHANNELS),
    }[kind]()
    layer.build((None, 34, 34, CHANNELS))
    layer.dtype_policy = keras.dtype_policies.get(f"mixed_{dtype}")

    def gradient():
        with tf.GradientTape() as tape:
            outputs = convolutions.convolve(
                layer, tf.ones([4, 34, 34, CHANNELS]), layer.kernel, layer.bias.value
            )
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32))
        assert outputs.dtype == dtype
        return tape.gradient(loss, layer.bias.value)

    places = 4 * 34 * 34 if kind != "DepthwiseConv2D" else 4 * 32 * 32
    # a sum in bfloat16 one after the other would stand still at 256
    for run in (gradient, tf.function(gradient)):
        np.testing.assert_allclose(run(), [places] * CHANNELS, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_layers_are_left_to_keras(make):
    layer = make()
    layer.build((None, CHANNELS, 9, CHANNELS))
    assert not convolutions.is_depthwise(layer)


def test_graph_runs_a_convolution_with_a_group_for_each_channel_as_depthwise():
    inputs = keras.Input((9, 9, CHANNELS))
    model = keras.Model(inputs, layers.Conv2D(CHANNELS, 7, groups=CHANNELS, padding="same")(inputs))
    graph, images = (
        FeatureGraph(model),
        tf.random.stateless_normal([2, 9, 9, CHANNELS], seed=(0, 1)),
    )
    run = tf.function(lambda x: graph.run({graph.input: x}, [graph.output])[0])
    operations = {
        operation.type for operation in run.get_concrete_function(images).graph.get_operations()
    }
    assert "DepthwiseConv2dNative" in operations
    np.testing.assert_allclose(run(images), model(images), rtol=1e-5, atol=1e-5)
