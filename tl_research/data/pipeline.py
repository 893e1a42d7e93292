"""The order of examples and the images of a batch: both are functions of integers, never of
iterator state.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from tl_research.data.image_check import make_decoder
from tl_research.errors import DataError

_PREFETCHED = 8  # batches decoded ahead: two calls of the loop
# Streams of random numbers that must not be the same numbers.
_ORDER, _AUGMENTATION, _MIXUP = 1, 2, 3


def _generator(seed, stream, index):
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, index])))


def epoch_order(seed, epoch, num_examples):
    """Returns int64 [num_examples], a permutation that depends on (seed, epoch) alone."""
    return _generator(seed, _ORDER, epoch).permutation(num_examples)


def augmentation_draws(seed, view, num_examples, num_columns):
    """Returns float32 [num_examples, num_columns] in [0, 1); row i belongs to example i in this
    view.
    """
    return _generator(seed, _AUGMENTATION, view).random((num_examples, num_columns), np.float32)


def mixup_draws(seed, epoch, num_examples, alpha):
    """Returns what MixUp blends each example with in an epoch (Zhang et al. 2018, arXiv:1710.09412,
    section 2).

    Partners are other than in the paper those of a permutation of all examples, not of the batch,
    so that batch size and order do not matter.

    Returns:
        partners: int32 [num_examples], places of other examples.
        shares: float32 [num_examples], what each example itself keeps, from Beta(alpha, alpha).
    """
    generator = _generator(seed, _MIXUP, epoch)
    return generator.permutation(num_examples).astype(np.int32), generator.beta(
        alpha, alpha, num_examples
    ).astype(np.float32)


def make_batches(order, batch_size):
    """Cuts an order into batches of constant size.

    The last one is filled up with its last example at weight 0.

    Args:
        order: int [N].
        batch_size: B.

    Returns:
        indices: int32 [ceil(N / B), B].
        weights: float32, same shape: 1 for an example, 0 for filling.
    """
    num_batches = -(-len(order) // batch_size)
    indices = np.full((num_batches * batch_size,), order[-1] if len(order) else 0, np.int32)
    indices[: len(order)] = order
    weights = (np.arange(num_batches * batch_size) < len(order)).astype(np.float32)
    return indices.reshape(num_batches, batch_size), weights.reshape(num_batches, batch_size)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The images of one side of the split."""

    names: tuple[str, ...]  # [N] as in split.json
    paths: tuple[str, ...]  # [N] absolute
    labels: np.ndarray  # int32 [N]
    image_size: int  # height and width, in pixels
    # uint8 tensor [N, image_size, image_size, 3], or None: then they are decoded for every batch
    pixels: tf.Tensor | None

    def __len__(self):
        return len(self.labels)

    def stream(self, indices):
        """Yields uint8 images [B, H, W, 3] for each row of `indices` [S, B], decoding ahead in
        parallel.

        Where the pixels are in memory the loop looks them up inside its compiled step instead.

        Raises:
            DataError: If an image that was good when the run began cannot be read any more.
        """
        decode = make_decoder(self.image_size)
        paths = tf.constant([os.fsencode(path) for path in self.paths])
        dataset = tf.data.Dataset.from_tensor_slices(np.reshape(indices, -1))
        dataset = dataset.map(
            lambda index: decode(tf.io.read_file(tf.gather(paths, index))),
            num_parallel_calls=os.cpu_count(),
        )
        options = tf.data.Options()
        # its thread can hold up the end of an epoch for as long as the epoch took
        options.autotune.enabled = False
        dataset = (
            dataset.batch(np.shape(indices)[1], drop_remainder=True)
            .prefetch(_PREFETCHED)
            .with_options(options)
        )
        batches = iter(dataset)
        for row in indices:
            try:
                yield next(batches)
            except tf.errors.OpError as error:
                gone = next(
                    (self.names[i] for i in row if not os.path.isfile(self.paths[i])),
                    "one of " + self.names[row[0]],
                )
                raise DataError(
                    f"image {gone!a} was good when the run began and cannot be read now "
                    f"({error.message[:80]}); expected files that stay as they are; put it back "
                    "and start again"
                ) from error

    def images(self, indices):
        """Returns uint8 [n, image_size, image_size, 3]."""
        if self.pixels is not None:
            return tf.gather(self.pixels, list(indices))
        return next(iter(self.stream([list(indices)])))
