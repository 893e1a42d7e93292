"""The preprocessing that each backbone expects, as layers inside the model, so that inference
always applies it.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tl_research.errors import UserError

# The smallest and largest value, in any channel, that pixels of 0 to 255 are mapped to.
RANGES = {
    "raw": (0.0, 255.0),
    "tf": (-1.0, 1.0),
    "caffe": (-123.68, 151.061),
    "torch": (-2.118, 2.64),
    "lite": (-127 / 128, 1.0),
}


@keras.saving.register_keras_serializable(package="tl_research")
class Preprocessing(keras.layers.Layer):
    """Maps float images [B, H, W, 3] in 0..255 to the range that a backbone was trained on.

    `raw`: unchanged (the backbone has its own preprocessing). `tf`: [-1, 1]. `caffe`: BGR, ImageNet
    mean subtracted. `torch`: ImageNet mean and standard deviation of pixels in [0, 1]. `lite`: (x -
    127) / 128. It computes in float32 under every dtype policy and casts at the end, because
    bfloat16 cannot tell 200.5 from 201.

    Args:
        mode: A key of `RANGES`.

    Raises:
        UserError: If `mode` is not a key of `RANGES`.
    """

    def __init__(self, mode: str, **kwargs: Any):
        # with autocast, mixed precision would round the pixels before `call`
        super().__init__(autocast=False, **kwargs)
        if mode not in RANGES:
            raise UserError(
                f"preprocessing is {mode!r}; expected one of {', '.join(RANGES)}; correct it"
            )
        self.mode = mode

    def call(self, images: tf.Tensor) -> tf.Tensor:
        x = ops.cast(images, "float32")
        if self.mode == "lite":
            x = (x - 127.0) / 128.0
        elif self.mode != "raw":
            x = keras.applications.imagenet_utils.preprocess_input(x, "channels_last", self.mode)
        return ops.cast(x, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mode": self.mode}


@keras.saving.register_keras_serializable(package="tl_research")
class Normalization(keras.layers.Normalization):
    """Keras' `Normalization`, but reading its mean and variance variables in every call.

    Keras copies them into constants when weights are loaded, and silently ignores values assigned
    in any other way, such as a restored checkpoint; EfficientNetB0-B7 begin with this layer. The
    class keeps Keras' name because `.weights.h5` files are laid out by class name.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = ops.cast(inputs, self.compute_dtype)
        mean, variance = (
            ops.cast(v, self.compute_dtype) for v in (self.adapt_mean, self.adapt_variance)
        )
        return (x - mean) / ops.maximum(ops.sqrt(variance), keras.config.epsilon())
