"""A head that reads the averages and the maxima of the backbone's maps, side by side.

    python train.py --flagfile=flowers.flags --extension=examples/average_and_max_head.py

Both are kept in the feature cache in phases that train the head alone. Its weights are head/kernel,
[2 C, K] of C channels, and head/bias, since its layer is called head.
"""

from keras import layers


def make_head(features, num_classes):
    pooled = [layers.GlobalAveragePooling2D()(features), layers.GlobalMaxPooling2D()(features)]
    x = layers.Dropout(0.2)(layers.Concatenate()(pooled))
    return layers.Dense(num_classes, name="head")(x)
