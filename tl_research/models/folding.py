"""A convolution and the BatchNorm after it, computed as one convolution from the same variables.

BatchNorm in inference mode is the affine map `y = s * x + (beta - mean * s)`, `s = gamma / sqrt(var
+ epsilon)`, so `conv -> BatchNorm` is one convolution with kernel `kernel * s` and bias `beta -
mean * s + s * conv.bias`. Computed inside the step, gradients reach kernel, gamma and beta exactly
("Tune mode", arXiv 2305.11624, section 3).
"""

import keras
import tensorflow as tf

_LINEAR = keras.activations.linear


def can_fold(convolution: keras.Layer, batchnorm: keras.Layer) -> bool:
    """Returns whether the two layers can be computed as one convolution."""
    if not isinstance(batchnorm, keras.layers.BatchNormalization) or batchnorm.axis not in (-1, 3):
        return False
    if getattr(convolution, "data_format", "channels_last") != "channels_last":
        return False
    if getattr(convolution, "compute_dtype", None) != batchnorm.compute_dtype:
        return False  # the one convolution would return its own type
    if type(convolution) is keras.layers.Conv2D and convolution.groups != 1:
        return False
    kinds = (
        keras.layers.Conv2D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv2D,
        keras.layers.Dense,
    )
    return type(convolution) in kinds and convolution.activation is _LINEAR


def folded_weights(
    convolution: keras.Layer, batchnorm: keras.layers.BatchNormalization
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (kernel, bias) in float32 such that a convolution with them equals both layers.

    The kernel has the layer's own shape; of a SeparableConv2D it is the pointwise kernel.
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
