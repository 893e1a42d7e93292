"""Focal loss: images that are answered well count less (Lin et al. 2017, arXiv:1708.02002, eq. 5).

    python train.py --flagfile=flowers.flags --label_smoothing=0 --extension=examples/focal_loss.py

The loss of an image whose class has the probability p is -alpha (1 - p)^gamma log p: with
--class_weights=balanced alpha is the weight of its class, else 1. Evaluation, early stopping and
selection go on with the plain cross-entropy, so that runs can be compared; --select_by=val_accuracy
selects by another number.
"""

import tensorflow as tf

from tl_research.training.objective import CrossEntropy, cross_entropy

GAMMA = 2.0


class _Focal(CrossEntropy):
    refused = ("label_smoothing",)  # whose targets have no single p

    def loss(self, logits, labels):
        losses = cross_entropy(logits, labels)
        return (1.0 - tf.exp(-losses)) ** GAMMA * losses


def make_objective(config, train):
    return _Focal.from_config(config, train)
