"""What blends two training images, and their labels, into one.

A mixing has a `name` and two methods, as `MixUp` has them. An extension gives its class, or another
function of the number that stands behind its name in `--augment`, in `augmentations`.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tl_research.data import pipeline
from tl_research.data.shards import Members


class Mix(NamedTuple):
    """What images are blended with."""

    partners: np.ndarray | tf.Tensor  # int32 [N], places of other images
    shares: np.ndarray | tf.Tensor  # float32 [N], what is left of each image itself
    details: Any = ()  # arrays [N, ...] of what else `blend` needs: of a box its borders


class Mixing(Protocol):
    """See the module."""

    name: str

    def draws(self, seed: int, epoch: int, num_examples: int, image_size: int) -> Mix:
        """Returns what each example is blended with in an epoch; they alone decide, so that a
        resumed run draws it again.
        """

    def blend(self, images: tf.Tensor, partner_images: tf.Tensor, mix: Mix) -> tf.Tensor:
        """Returns images of two, float32 [B, H, W, 3], each augmented; `mix` has their rows."""


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


class MixUp:
    """Blends whole images (Zhang et al. 2018, arXiv:1710.09412, section 2).

    Partners are other than in the paper those of a permutation of all examples, not of the batch,
    so that batch size and order do not matter.

    Args:
        alpha: Shares are drawn from Beta(alpha, alpha).
    """

    name = "MixUp"

    def __init__(self, alpha: float):
        self.alpha = alpha

    def draws(self, seed: int, epoch: int, num_examples: int, image_size: int) -> Mix:
        """As of `Mixing`."""
        generator = pipeline.generator(seed, pipeline.MIXUP, epoch)
        partners = generator.permutation(num_examples).astype(np.int32)
        shares = generator.beta(self.alpha, self.alpha, num_examples)
        return Mix(partners, shares.astype(np.float32))

    def blend(self, images: tf.Tensor, partner_images: tf.Tensor, mix: Mix) -> tf.Tensor:
        """As of `Mixing`."""
        shares = mix.shares[:, None, None, None]
        return shares * images + (1.0 - shares) * partner_images
