"""The head: a small Keras model that maps the backbone's output to logits."""

from collections.abc import Callable

import keras

from tl_research.errors import UserError
from tl_research.models import backbones, keras_private


def make_head(
    features: keras.KerasTensor, num_classes: int, dropout: float = 0.0, seed: int = 0
) -> keras.KerasTensor:
    """Returns logits [B, K] from a backbone's output: the default head.

    It averages over positions or tokens, applies dropout, and ends with one dense layer.

    Args:
        features: [B, h, w, C], [B, t, C] or [B, C].
        num_classes: Number K of logits.
        dropout: Share of the pooled features that is dropped in training.
        seed: Of the initial weights.
    """
    layers = keras.layers
    kinds = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}
    if kind := kinds.get(len(features.shape)):  # in the dtype in which features are kept
        features = kind(dtype=features.dtype, name="pooling")(features)
    if dropout:
        features = layers.Dropout(dropout, seed=seed, name="dropout")(features)
    start = keras.initializers.GlorotUniform(seed=seed)
    return layers.Dense(num_classes, name="head", kernel_initializer=start)(features)


def build_head(
    make: Callable, features: keras.KerasTensor, num_classes: int, seed: int
) -> keras.Model:
    """Returns the head that a function makes, as a functional model that computes in float32.

    Args:
        make: A function like `make_head`, of its first two arguments.
        features: The backbone's output.
        num_classes: Number K of logits.
        seed: Of the initial weights.

    Raises:
        UserError: If it returns anything but float32 logits [B, K] computed from the features.
    """
    inputs = keras.Input(features.shape[1:], dtype=features.dtype, name="features")
    # another seed, so that the head does not draw the backbone's numbers
    with backbones.dtype_policy("float32"), backbones.repeatable(seed + 1):
        logits = make(inputs, num_classes)
    is_tensor = isinstance(logits, keras.KerasTensor)
    if not is_tensor or (logits.shape, logits.dtype) != ((None, num_classes), "float32"):
        raise UserError(
            f"make_head returned {logits!r}; expected a Keras tensor of float32 logits "
            f"[B, {num_classes}], computed from the features {list(inputs.shape)}; correct it"
        )
    return keras.Model(inputs, logits, name="head")


def drops_out(layer: keras.Layer) -> bool:
    """Returns whether a layer of the head applies dropout in training, by the loop's mask."""
    return type(layer) is keras.layers.Dropout and layer.rate > 0 and layer.noise_shape is None


def idle_layers(head: keras.Model) -> list[str]:
    """Returns the names of the head's random layers that get no mask in training."""
    draws = [layer for layer in keras_private.all_layers(head) if hasattr(layer, "seed_generator")]
    return [layer.name for layer in draws if not drops_out(layer)]
