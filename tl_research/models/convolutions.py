"""Convolutions of Keras layers with given weights, in the fastest form with equal results."""

from collections.abc import Callable

import keras
import tensorflow as tf

# oneDNN's filter gradient of a depthwise convolution is 2-3 times slower from width 4 on: compare
# `python benchmarks/throughput.py` with a larger value.
_FAST_WIDTH = 3


def convolve(
    layer: keras.Layer,
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    padding: str | None = None,
) -> tf.Tensor:
    """Returns the output of a convolution or dense layer with the given kernel and bias, before its
    activation.

    Args:
        layer: Conv2D, DepthwiseConv2D, SeparableConv2D (`kernel` is then the pointwise one) or
            Dense, channels last.
        inputs: [B, ...].
        kernel: In the layer's own shape.
        bias: [channels] or None.
        padding: `same` or `valid`; None: the layer's own.

    Returns:
        [B, ...] in the layer's compute dtype.
    """
    inputs, kernel = tf.cast(inputs, layer.compute_dtype), tf.cast(kernel, layer.compute_dtype)
    if isinstance(layer, keras.layers.Dense):
        outputs = tf.tensordot(inputs, kernel, 1)
    else:
        options = {
            "strides": layer.strides,
            "padding": padding or layer.padding,
            "dilation_rate": layer.dilation_rate,
            "data_format": "channels_last",
        }
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            outputs = _depthwise(inputs, kernel, options)
        elif isinstance(layer, keras.layers.SeparableConv2D):
            first = tf.cast(layer.depthwise_kernel, layer.compute_dtype)
            between = _depthwise(inputs, first, options)
            outputs = keras.ops.conv(between, kernel, data_format="channels_last")
        elif is_depthwise(layer):
            outputs = _depthwise(inputs, tf.transpose(kernel, [0, 1, 3, 2]), options)
        else:
            # Keras' operation: TensorFlow's rejects dilation with strides and, on some CPUs, the
            # gradient with dilation.
            outputs = keras.ops.conv(inputs, kernel, **options)
    return outputs if bias is None else _add_bias(outputs, tf.cast(bias, outputs.dtype))


def _add_bias(outputs, bias):
    """Adds a bias [channels].

    In bfloat16 on a CPU, the gradient is summed in float32, where TensorFlow sums in bfloat16: a
    sum of thousands of equal terms stops growing at 256 of them, unless oneDNN computes it together
    with the filter's gradient.
    """
    if outputs.dtype != tf.bfloat16 or tf.config.get_visible_devices("GPU"):
        return tf.nn.bias_add(outputs, bias)

    def summed(upstream: tf.Tensor) -> tf.Tensor:
        places = range(upstream.shape.rank - 1)
        return tf.cast(tf.reduce_sum(tf.cast(upstream, tf.float32), places), tf.bfloat16)

    @tf.custom_gradient
    def added(outputs: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.nn.bias_add(outputs, bias), lambda upstream: (upstream, summed(upstream))

    return added(outputs, bias)


def is_same_padding(padding: keras.Layer, convolution: keras.Layer) -> bool:
    """Returns whether a layer adds exactly the zeros that the convolution after it would add with
    padding "same".

    A separate padding layer copies the whole tensor; MobileNets and EfficientNets have one before
    every strided convolution.
    """
    if (
        type(padding) is not keras.layers.ZeroPadding2D
        or getattr(convolution, "padding", None) != "valid"
        or "channels_first" in (padding.data_format, convolution.data_format)
        or tuple(convolution.dilation_rate) != (1, 1)
    ):
        return False
    same = []
    sizes = padding.input.shape[1:3]
    for size, width, stride in zip(sizes, convolution.kernel_size, convolution.strides):
        missing = max((-(-size // stride) - 1) * stride + width - size, 0)
        same.append((missing // 2, missing - missing // 2))
    return same == list(map(tuple, padding.padding))


def is_depthwise(layer: keras.Layer) -> bool:
    """Returns whether a layer is a depthwise convolution, or a Conv2D with one group per channel.

    ConvNeXt has such a Conv2D, which takes Keras on a CPU about a hundred times as long:
    `python benchmarks/throughput.py --backbones=ConvNeXtTiny@224`.
    """
    if getattr(layer, "data_format", None) != "channels_last":
        return False
    if type(layer) is keras.layers.Conv2D:
        return layer.groups > 1 and layer.groups == layer.filters and layer.kernel.shape[2] == 1
    return type(layer) is keras.layers.DepthwiseConv2D


def call_depthwise(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `layer(inputs)` for a layer that `is_depthwise`."""
    bias = layer.bias if layer.use_bias else None
    return layer.activation(convolve(layer, inputs, layer.kernel, bias))


def _depthwise(inputs, kernel, options):
    """Computes a depthwise convolution whose gradients suit oneDNN.

    The filter's gradient is computed in parts of width `_FAST_WIDTH`. The inputs' gradient is
    computed in float32 if there are strides, for which oneDNN's bfloat16 kernel takes 30 times as
    long. In float16, which oneDNN leaves to TensorFlow on most processors, both are computed in
    float32: float16 sums over all positions are off by percents. `python benchmarks/steps.py`
    measures bfloat16 against float32.

    Args:
        inputs: [B, H, W, C], with H and W known.
        kernel: [h, w, C, channel multiplier].
        options: Keyword arguments of `keras.ops.depthwise_conv`.
    """
    stride = options["strides"][0]
    in_float32 = inputs.dtype == tf.float16 or (stride > 1 and inputs.dtype == tf.bfloat16)
    if (
        not (kernel.shape[1] > _FAST_WIDTH or in_float32)
        or options["strides"] != (stride, stride)
        or options["dilation_rate"] != (1, 1)
        or tf.config.get_visible_devices("GPU")
    ):
        return keras.ops.depthwise_conv(inputs, kernel, **options)
    steps, padding = [1, stride, stride, 1], options["padding"].upper()

    @tf.custom_gradient
    def convolved(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        outputs = tf.nn.depthwise_conv2d(inputs, kernel, steps, padding)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dtype = tf.float32 if in_float32 else inputs.dtype
            weights, changes = tf.cast(kernel, dtype), tf.cast(upstream, dtype)
            to_inputs = tf.nn.depthwise_conv2d_backprop_input(
                tf.shape(inputs), weights, changes, steps, padding
            )
            to_kernel = _to_filter(inputs, kernel.shape, outputs.shape, upstream, stride)
            return tf.cast(to_inputs, inputs.dtype), tf.cast(to_kernel, kernel.dtype)

        return outputs, gradient

    return convolved(inputs, kernel)


def _to_filter(inputs, shape, of_outputs, upstream, stride):
    """Returns the gradient of a depthwise filter, in parts of width `_FAST_WIDTH`.

    Args:
        inputs: Of the convolution.
        shape: Of the filter.
        of_outputs: Shape of the outputs.
        upstream: Gradient of the outputs.
        stride: In both directions.
    """
    height, width = shape[:2]
    # the extent that the filter covers
    sizes = [(of_outputs[axis] - 1) * stride + shape[axis - 1] for axis in (1, 2)]
    missing = [max(size - inputs.shape[axis], 0) for size, axis in zip(sizes, (1, 2))]
    padded = tf.pad(inputs, [(0, 0), *((size // 2, size - size // 2) for size in missing), (0, 0)])
    padded = tf.cast(padded, tf.float32) if inputs.dtype == tf.float16 else padded
    upstream, steps, parts = tf.cast(upstream, padded.dtype), [1, stride, stride, 1], []
    for first in range(0, width, _FAST_WIDTH):
        part = min(_FAST_WIDTH, width - first)
        seen = padded[:, : sizes[0], first : first + sizes[1] - width + part]
        of_part = [height, part, *shape[2:]]
        parts.append(
            tf.nn.depthwise_conv2d_backprop_filter(seen, of_part, upstream, steps, "VALID")
        )
    return tf.concat(parts, axis=1)
