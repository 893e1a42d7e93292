"""Muon for the backbone's matrices (Liu et al. 2025, arXiv:2502.16982), --optimizer for the rest.

    python train.py --flagfile=flowers.flags --extension=examples/muon.py --workdir=runs/muon

A kernel [h, w, in, out] of a convolution counts as the matrix [h w in, out]; a depthwise one is
none. Updates have the size of Adam's, so that one --learning_rate serves both. TensorBoard shows
the matrices as the group `backbone[Muon]`.
"""

import keras
import tensorflow as tf


class _Muon(keras.optimizers.Muon):
    """Keras' Muon, which knows matrices only, and takes Adam for what is none."""

    def _should_use_adamw(self, variable):
        return False

    def zeropower_via_newtonschulz5(self, x, steps):
        return tf.reshape(super().zeropower_via_newtonschulz5(_matrix(x), steps), x.shape)

    def lr_adjust(self, x):
        return tf.reshape(super().lr_adjust(_matrix(x)), x.shape)


def _matrix(x):
    return tf.reshape(x, [-1, x.shape[-1]])


def make_optimizer(group):
    muon = _Muon(weight_decay=None)
    return {
        path: muon
        for path, variable in zip(group.paths, group.variables)
        if path.startswith("backbone/") and len(variable.shape) > 1 and variable.shape[-1] > 1
    }
