"""Blends two training images, or their features, and their labels, into one.

A mixing has a `name` and two methods, like `MixUp`. An extension lists its class, or another
function of the number that follows its name in `--augment`, in `augmentations`.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tl_research.data import pipeline
from tl_research.data.shards import Members


class Mix(NamedTuple):
    """What each image is blended with."""

    partners: np.ndarray | tf.Tensor  # int32 [N], indices of the other images
    shares: np.ndarray | tf.Tensor  # float32 [N], the weight of each image itself
    details: Any = ()  # arrays [N, ...] of what else `blend` needs, such as the borders of a box

    def rows(self, indices: tf.Tensor) -> "Mix":
        """Returns what some of the images are blended with."""
        return tf.nest.map_structure(lambda of_all: tf.gather(of_all, indices), self)


class Mixing(Protocol):
    """See the module."""

    name: str

    def draws(self, seed: int, epoch: int, num_examples: int, image_size: int) -> Mix:
        """Returns what each example is blended with in an epoch.

        It must depend on the arguments alone, so that a resumed run draws it again.

        Args:
            seed: Of the run.
            epoch: Counted from 1.
            num_examples: Number N of training images.
            image_size: Height and width, in pixels.
        """

    def blend(self, images: tf.Tensor, partner_images: tf.Tensor, mix: Mix) -> tf.Tensor:
        """Returns blended images.

        Args:
            images: float32 [B, H, W, 3], augmented.
            partner_images: What they are blended with, in the same form.
            mix: Their rows of what `draws` returned.
        """


def draws_of_shards(
    mixing: Mixing, seed: int, epoch: int, members: Members, image_size: int
) -> Mix:
    """Returns the draws of all examples, whose partners are of their own shard.

    Args:
        mixing, seed, epoch, image_size: See `Mixing.draws`.
        members: The examples of each shard.
    """
    if len(members.of_shard) == 1:
        return mixing.draws(seed, epoch, len(members.of_shard[0]), image_size)
    draws, count = [], len(members.of_shard)
    for shard, places in enumerate(members.of_shard):
        own_seed = int(np.random.SeedSequence([seed, count, shard]).generate_state(1)[0])
        drawn = mixing.draws(own_seed, epoch, len(places), image_size)
        draws.append(drawn._replace(partners=places[drawn.partners].astype(np.int32)))
    order = np.argsort(np.concatenate(members.of_shard))
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts)[order], *draws)


def blended(tensors: tf.Tensor, of_partners: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """Returns weighted means of rows and those of their partners, [B, ...] in the same type.

    Args:
        tensors, of_partners: [B, ...], of a floating type.
        shares: float32 [B], the weights of `tensors`.
    """
    weights = tf.cast(tf.reshape(shares, [-1, *[1] * (tensors.shape.rank - 1)]), tensors.dtype)
    return weights * tensors + (1.0 - weights) * of_partners


class MixUp:
    """Blends whole images (Zhang et al. 2018, arXiv:1710.09412, section 2), or features (Verma et
    al. 2019, "Manifold Mixup", arXiv:1806.05236, section 2, with one layer).

    Unlike in the paper, partners come from a permutation of all examples, not of the batch, so that
    batch size and order do not matter.

    Args:
        alpha: Shares are drawn from Beta(alpha, alpha).
    """

    name = "MixUp"

    def __init__(self, alpha: float):
        self.alpha = alpha

    def draws(self, seed: int, epoch: int, num_examples: int, image_size: int) -> Mix:
        """See `Mixing`."""
        generator = pipeline.generator(seed, pipeline.MIXUP, epoch)
        partners = generator.permutation(num_examples).astype(np.int32)
        shares = generator.beta(self.alpha, self.alpha, num_examples)
        return Mix(partners, shares.astype(np.float32))

    def blend(self, images: tf.Tensor, partner_images: tf.Tensor, mix: Mix) -> tf.Tensor:
        """See `Mixing`."""
        return blended(images, partner_images, mix.shares)
