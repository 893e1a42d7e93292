"""Brightness, contrast and color of the training images change at random, as RandAugment does it.

    python train.py --flagfile=flowers.flags --extension=examples/color_jitter.py \
        --augment=flip,rotation=0.1,zoom=0.1,jitter=0.4

Each of the three blends an image with what it is without it, black, its mean gray and its gray
image, in a strength between 1 - 0.4 and 1 + 0.4 (Cubuk et al. 2020, arXiv:1909.13719, there for one
strength and a random choice of operations). Views with jitter are cached as all others are.
"""

import tensorflow as tf

LUMA = tf.constant([0.299, 0.587, 0.114])


def _blended(without, images, strength):
    return tf.clip_by_value(without + strength * (images - without), 0.0, 255.0)


def _gray(images):
    return tf.reduce_sum(LUMA * images, axis=3, keepdims=True)


def _jitter(images, draws, factor):
    strengths = 1.0 + factor * (2.0 * draws[:, :, None, None, None] - 1.0)
    brightness, contrast, color = tf.unstack(strengths, axis=1)
    images = _blended(0.0, images, brightness)
    mean = tf.reduce_mean(_gray(images), axis=(1, 2), keepdims=True)
    images = _blended(mean, images, contrast)
    return _blended(_gray(images), images, color)


augmentations = {"jitter": (3, _jitter)}
