"""Trains a small vision transformer of Keras' own layers, which ends in tokens.

    python train.py --flagfile=flowers.flags --extension=examples/small_vit.py \
        --image_size=64 --phases=all --unfreeze=all --epochs=30 --patience=0 --learning_rate=1e-3

The head averages over its tokens. A depthwise convolution tells them where they are. All weights
are drawn with --seed, so that everything has to be trained.
"""

import keras
from keras import layers

PATCH, WIDTH, HEADS, DEPTH = 8, 64, 4, 2


def make_backbone(config):
    inputs = keras.Input((config.image_size, config.image_size, 3), name="images")
    x = layers.Conv2D(WIDTH, PATCH, PATCH, name="patches_conv")(inputs)
    places = layers.DepthwiseConv2D(3, padding="same", name="patches_places")(x)
    x = layers.Add(name="patches_add")([x, places])
    x = layers.Reshape((-1, WIDTH), name="patches_tokens")(x)
    for i in range(1, DEPTH + 1):
        y = layers.LayerNormalization(name=f"block{i}_norm")(x)
        y = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"block{i}_attention")(y, y)
        x = layers.Add(name=f"block{i}_add")([x, y])
        y = layers.LayerNormalization(name=f"block{i}_dense_norm")(x)
        y = layers.Dense(4 * WIDTH, "gelu", name=f"block{i}_dense1")(y)
        y = layers.Dense(WIDTH, name=f"block{i}_dense2")(y)
        x = layers.Add(name=f"block{i}_dense_add")([x, y])
    x = layers.LayerNormalization(name="last_norm")(x)
    blocks = r"(?P<patches>patches)|(?P<last>last)|(?P<block>block\d+)_"
    return keras.Model(inputs, x, name="small_vit"), {"preprocessing": "tf", "blocks": blocks}
