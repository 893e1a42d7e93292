"""Fine-tunes a backbone of one's own, from a `.keras` file that `model.save` wrote.

    OWN_BACKBONE=mine.keras python train.py --flagfile=flowers.flags --image_size=96 \
        --extension=examples/own_backbone.py --unfreeze=0%,block2

Any functional Keras model will do that has one image input of --image_size and ends in a map, in
tokens or in features. The second value says what pixels it was trained on (by default raw ones, 0
to 255) and how names of layers begin that make a block, for --unfreeze and --layer_decay (by
default all layers are one). Both can be left out: `return model`.
"""

import os

import keras

FILE = os.environ.get("OWN_BACKBONE", "own_backbone.keras")


def make_backbone(config):
    model = keras.saving.load_model(FILE, compile=False)
    return model, {"preprocessing": "tf", "blocks": r"(?P<block>block\d+)_"}
