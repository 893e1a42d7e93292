"""A head with a hidden layer: average, 64 units with GELU, dropout, logits.

    python train.py --flagfile=flowers.flags --extension=examples/two_layer_head.py

Dropout acts in training, with masks that are a function of the seed and the step. In phases that
train the head alone only the averages are kept, not the maps before them. The paths of its weights,
for --lr_multiplier, are head/hidden/kernel, head/hidden/bias, head/logits/kernel and
head/logits/bias.
"""

from keras import layers


def make_head(features, num_classes):
    x = layers.GlobalAveragePooling2D(name="average")(features)
    x = layers.Dense(64, "gelu", name="hidden")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return layers.Dense(num_classes, name="logits")(x)
