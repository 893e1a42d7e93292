"""Computes a convolution and the BatchNorm after it as one convolution, from the same variables.

BatchNorm in inference mode is the affine map `y = s * x + (beta - mean * s)`, `s = gamma / sqrt(var
+ epsilon)`, so `conv -> BatchNorm` is one convolution with kernel `kernel * s` and bias `beta -
mean * s + s * conv.bias`. It is computed inside the step, so gradients reach kernel, gamma and beta
exactly ("Tune mode", arXiv 2305.11624, section 3).
"""

import keras
import tensorflow as tf


def can_fold(convolution: keras.Layer, batchnorm: keras.Layer) -> bool:
    """Returns whether the two layers can be computed as one convolution."""
    layers = keras.layers
    kinds = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)
    return (
        isinstance(batchnorm, layers.BatchNormalization)
        and batchnorm.axis in (-1, 3)
        and type(convolution) in kinds
        and convolution.activation is keras.activations.linear
        and getattr(convolution, "data_format", "channels_last") == "channels_last"
        # else the folded convolution would return its own dtype
        and convolution.compute_dtype == batchnorm.compute_dtype
        and (type(convolution) is not layers.Conv2D or convolution.groups == 1)
    )


def folded_weights(
    convolution: keras.Layer, batchnorm: keras.layers.BatchNormalization
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (kernel, bias) in float32 such that a convolution with them equals both layers.

    The kernel has the layer's own shape; for a SeparableConv2D it is the pointwise kernel.
    """
    scale = tf.math.rsqrt(tf.convert_to_tensor(batchnorm.moving_variance) + batchnorm.epsilon)
    if batchnorm.scale:
        scale *= batchnorm.gamma
    bias = -tf.convert_to_tensor(batchnorm.moving_mean) * scale
    if batchnorm.center:
        bias += batchnorm.beta
    if convolution.use_bias:
        bias += scale * convolution.bias
    if isinstance(convolution, keras.layers.DepthwiseConv2D):
        kernel = tf.convert_to_tensor(convolution.kernel)
        return kernel * tf.reshape(scale, kernel.shape[2:]), bias
    if isinstance(convolution, keras.layers.SeparableConv2D):
        return convolution.pointwise_kernel * scale, bias
    return convolution.kernel * scale, bias
