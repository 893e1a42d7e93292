"""LAMB for large batches (You et al. 2020, arXiv:1904.00962), as Keras has it.

    python train.py --flagfile=flowers.flags --extension=examples/lamb.py --workdir=runs/lamb \
        --batch_size=256 --learning_rate=1e-2,1e-3

Every variable's step of Adam is scaled to the norm of the variable, so that --learning_rate is
relative to the weights. Biases and BatchNorm's scales are not decayed; Keras decays weights apart
from the scaled step, where the paper scales the sum.
"""

import keras

WEIGHT_DECAY = 0.01


def make_optimizer(group):
    optimizer = keras.optimizers.Lamb(weight_decay=WEIGHT_DECAY)
    vectors = [variable for variable in group.variables if len(variable.shape) < 2]
    optimizer.exclude_from_weight_decay(vectors)
    return optimizer
