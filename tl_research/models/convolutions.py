"""Convolutions of Keras layers with given weights, in the formulation that is fastest for equal
results.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

# oneDNN's filter gradient of a depthwise convolution is 2-3 times slower from width 4 on
_FAST_WIDTH = 3


def convolve(
    layer: keras.Layer,
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    padding: str | None = None,
) -> tf.Tensor:
    """Returns what a convolution or dense layer with this kernel and bias computes, before its
    activation.

    Args:
        layer: Conv2D, DepthwiseConv2D, SeparableConv2D (`kernel` is then the pointwise one) or
            Dense, channels last.
        inputs: [B, ...].
        kernel: In the layer's own shape.
        bias: [channels] or None.
        padding: `same` or `valid` instead of the layer's own.

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
        }
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            outputs = _depthwise(inputs, kernel, **options)
        elif isinstance(layer, keras.layers.SeparableConv2D):
            depthwise = _depthwise(
                inputs, tf.cast(layer.depthwise_kernel, layer.compute_dtype), **options
            )
            outputs = keras.ops.conv(depthwise, kernel, data_format="channels_last")
        elif is_depthwise(layer):
            outputs = _depthwise(inputs, tf.transpose(kernel, [0, 1, 3, 2]), **options)
        else:
            # Keras' operation: TensorFlow's refuses dilation with strides and, on some CPUs, the
            # gradient with dilation.
            outputs = keras.ops.conv(inputs, kernel, data_format="channels_last", **options)
    return outputs if bias is None else _add_bias(outputs, tf.cast(bias, outputs.dtype))


def _add_bias(outputs, bias):
    """Adds a bias [channels].

    In bfloat16 on a CPU its gradient, which TensorFlow sums up in bfloat16, is summed in float32.

    A sum of thousands of equal parts stands still in bfloat16 at 256 of them, unless oneDNN takes
    it with the filter's gradient.
    """
    if outputs.dtype != tf.bfloat16 or tf.config.get_visible_devices("GPU"):
        return tf.nn.bias_add(outputs, bias)

    @tf.custom_gradient
    def added(outputs: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.nn.bias_add(outputs, bias), lambda upstream: (
            upstream,
            tf.cast(
                tf.reduce_sum(tf.cast(upstream, tf.float32), axis=range(upstream.shape.rank - 1)),
                tf.bfloat16,
            ),
        )

    return added(outputs, bias)


def is_same_padding(padding: keras.Layer, convolution: keras.Layer) -> bool:
    """Returns whether a layer only adds the zeros that the convolution after it would add itself
    with padding "same".

    Padding apart copies the whole tensor; MobileNets and EfficientNets do so before every
    convolution with strides.
    """
    if (
        type(padding) is not keras.layers.ZeroPadding2D
        or getattr(convolution, "padding", None) != "valid"
    ):
        return False
    if "channels_first" in (padding.data_format, convolution.data_format) or tuple(
        convolution.dilation_rate
    ) != (1, 1):
        return False
    for pads, size, width, stride in zip(
        padding.padding, padding.input.shape[1:3], convolution.kernel_size, convolution.strides
    ):
        missing = max((-(-size // stride) - 1) * stride + width - size, 0)
        if tuple(pads) != (missing // 2, missing - missing // 2):
            return False
    return True


def is_depthwise(layer: keras.Layer) -> bool:
    """Returns whether a layer is a depthwise convolution, also one written as Conv2D with a group
    for each channel.

    ConvNeXt has such a Conv2D, for which Keras on a CPU takes about a hundred times as long.
    """
    if getattr(layer, "data_format", None) != "channels_last":
        return False
    if type(layer) is keras.layers.Conv2D:
        return layer.groups > 1 and layer.groups == layer.filters and layer.kernel.shape[2] == 1
    return type(layer) is keras.layers.DepthwiseConv2D


def call_depthwise(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `layer(inputs)` of a layer that `is_depthwise`."""
    return layer.activation(
        convolve(layer, inputs, layer.kernel, layer.bias if layer.use_bias else None)
    )


def _depthwise(inputs, kernel, strides, padding, dilation_rate):
    """A depthwise convolution with gradients that suit oneDNN: to the filter in parts of width
    `_FAST_WIDTH`, and to inputs in float32 where there are strides, for which oneDNN's kernel in
    bfloat16 takes 30 times as long. In float16, which oneDNN leaves to TensorFlow on most
    processors, both are in float32: sums over all places in float16 are off by percents.

    Args:
        inputs: [B, H, W, C], with H and W known.
        kernel: [h, w, C, channel multiplier].
    """
    stride, half = strides[0], inputs.dtype == tf.float16
    in_float32 = half or (stride > 1 and inputs.dtype == tf.bfloat16)
    if (
        not (kernel.shape[1] > _FAST_WIDTH or in_float32)
        or strides != (stride, stride)
        or dilation_rate != (1, 1)
        or tf.config.get_visible_devices("GPU")
    ):
        return keras.ops.depthwise_conv(
            inputs,
            kernel,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            data_format="channels_last",
        )
    steps, padding = [1, stride, stride, 1], padding.upper()

    @tf.custom_gradient
    def convolved(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        outputs = tf.nn.depthwise_conv2d(inputs, kernel, steps, padding)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dtype = tf.float32 if in_float32 else inputs.dtype
            to_inputs = tf.cast(
                tf.nn.depthwise_conv2d_backprop_input(
                    tf.shape(inputs),
                    tf.cast(kernel, dtype),
                    tf.cast(upstream, dtype),
                    steps,
                    padding,
                ),
                inputs.dtype,
            )
            to_kernel = _to_filter(inputs, kernel.shape, outputs.shape, upstream, stride)
            return to_inputs, tf.cast(to_kernel, kernel.dtype)

        return outputs, gradient

    return convolved(inputs, kernel)


def _to_filter(inputs, shape, of_outputs, upstream, stride):
    """Returns the gradient to a depthwise filter of a shape, in parts of width `_FAST_WIDTH`, from
    that to outputs of another.
    """
    height, width = shape[:2]
    # that a filter sees
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
