"""The recipe as everybody copies it, for `model.fit`: what the benchmarks compare with."""

import keras

from tl_research.models import backbones
from tl_research.models.classifier import InferenceBackbone
from tl_research.models.preprocessing import Preprocessing


def build_model(
    config, num_classes, learning_rate, opened=0.0, *, held=False, augment=True, jit_compile="auto"
):
    """Returns (model, its backbone), compiled with Adam.

    Args:
        config: `tl_research.config.Config`: backbone, weights, image size, augmentation factors,
            dropout and seed.
        num_classes: Outputs of the dense layer, which are logits.
        learning_rate: Of Adam.
        opened: Share of the backbone's layers, by count, that train; those at the top.
        held: Whether BatchNorm statistics are really held, by `InferenceBackbone` instead of
            `training=False`.
        augment: Whether the augmentation layers are in the model.
        jit_compile: Keras' argument, whether with XLA.
    """
    base_model = backbones.build_backbone(
        config.backbone, config.image_size, config.weights, seed=config.seed
    )
    base_model.trainable = False
    keras.utils.set_random_seed(config.seed)
    inputs = x = keras.Input((config.image_size, config.image_size, 3))
    if augment:
        x = keras.layers.RandomFlip("horizontal")(x)
        x = keras.layers.RandomRotation(config.augmentation["rotation"])(x)
        x = keras.layers.RandomZoom(config.augmentation["zoom"])(x)
    x = Preprocessing(backbones.get_spec(config.backbone).preprocessing)(x)
    x = InferenceBackbone(base_model)(x) if held else base_model(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(config.dropout)(x)
    model = keras.Model(inputs, keras.layers.Dense(num_classes)(x))
    if opened:
        base_model.trainable = True
        for layer in base_model.layers[: int(len(base_model.layers) * (1 - opened))]:
            layer.trainable = False
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        jit_compile=jit_compile,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, base_model
