"""The head: what turns the backbone's output into logits, as a small Keras model of its own."""

from collections.abc import Callable

import keras

from tl_research.errors import UserError
from tl_research.models import backbones


def make_head(
    features: keras.KerasTensor, num_classes: int, dropout: float = 0.0, seed: int = 0
) -> keras.KerasTensor:
    """Returns logits [B, K] of a backbone's output [B, h, w, C], [B, t, C] or [B, C].

    The default: averages over places or tokens, drops out, and is one dense layer.
    """
    layers = keras.layers
    kinds = {3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}
    if kind := kinds.get(len(features.shape)):  # in the backbone's type, as features are kept
        features = kind(dtype=features.dtype, name="pooling")(features)
    if dropout:
        features = layers.Dropout(dropout, seed=seed, name="dropout")(features)
    start = keras.initializers.GlorotUniform(seed=seed)
    return layers.Dense(num_classes, name="head", kernel_initializer=start)(features)


def build_head(
    make: Callable, features: keras.KerasTensor, num_classes: int, seed: int
) -> keras.Model:
    """Returns the head that a function makes, computing in float32, as a functional model.

    Args:
        make: As `make_head`, of the first two arguments.
        features: The backbone's output.
        num_classes: Number K of logits.
        seed: Of the initial weights.

    Raises:
        UserError: If it returns anything but float32 logits [B, K] of those features.
    """
    inputs = keras.Input(features.shape[1:], dtype=features.dtype, name="features")
    with (
        backbones.dtype_policy("float32"),
        backbones.repeatable(seed + 1),
    ):  # not the backbone's numbers
        logits = make(inputs, num_classes)
    shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
    if shape != (None, num_classes) or dtype != "float32":
        raise UserError(
            f"make_head returned {logits!r}; expected a Keras tensor of float32 logits "
            f"[B, {num_classes}], computed from the features {list(inputs.shape)}; correct it"
        )
    return keras.Model(inputs, logits, name="head")


def drops_out(layer: keras.Layer) -> bool:
    """Returns whether a layer of the head drops out in training, by a mask of the loop's."""
    return type(layer) is keras.layers.Dropout and layer.rate > 0 and layer.noise_shape is None


def idle_layers(head: keras.Model) -> list[str]:
    """Returns the names of the head's layers that draw in training but are given no mask."""
    draws = [layer for layer in head._flatten_layers() if hasattr(layer, "seed_generator")]
    return [layer.name for layer in draws if not drops_out(layer)]
