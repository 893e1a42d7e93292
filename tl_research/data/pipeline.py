"""The order of examples and the images of a batch: both are functions of integers, never of
iterator state.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

import numpy as np
import tensorflow as tf

from tl_research import ahead
from tl_research.data import image_check
from tl_research.data.decoding import BadImage, load_pixels
from tl_research.data.shards import Members, Shards
from tl_research.errors import DataError

_PLACES = 8  # of a batch that is not full
_AHEAD = 8  # batches that are decoded ahead: two calls of the loop
# Streams of random numbers that must not be the same numbers.
_ORDER, _AUGMENTATION, MIXUP = 1, 2, 3


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Returns a `numpy.random.Generator` that depends on these whole numbers alone."""
    return np.random.Generator(np.random.Philox([seed, *stream]))


def epoch_order(seed: int, epoch: int, num_examples: int, *shard: int) -> np.ndarray:
    """Returns int64 [num_examples], a permutation that depends on (seed, epoch) alone, and of one
    of several shards on `shard`: their number and its own.
    """
    return generator(seed, _ORDER, epoch, *shard).permutation(num_examples)


def epoch_orders(seed: int, epoch: int, members: Members) -> list[np.ndarray]:
    """Returns the places of the examples of each shard, permuted."""
    count = len(members.of_shard)
    return [
        places[epoch_order(seed, epoch, len(places), *((count, shard) if count > 1 else ()))]
        for shard, places in enumerate(members.of_shard)
    ]


def augmentation_draws(
    seed: int, view: int, num_examples: int, num_columns: int, name: str | None = None
) -> np.ndarray:
    """Returns float32 [num_examples, num_columns] in [0, 1); row i belongs to example i in this
    view. An extension's operation has a stream of its name.
    """
    stream = (_AUGMENTATION, view) if name is None else (_AUGMENTATION, view, crc32(name.encode()))
    return generator(seed, *stream).random((num_examples, num_columns), np.float32)


def sharded_batches(orders: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the orders of S shards into batches of constant size, B / S of each shard in its turn.

    Args:
        orders: int [N_s] of each shard.
        batch_size: B, at most; a multiple of S.

    Returns:
        As `make_batches`.
    """
    longest = max(map(len, orders))
    parts = [make_batches(order, batch_size // len(orders), longest) for order in orders]
    indices, weights = (np.concatenate(columns, axis=1) for columns in zip(*parts))
    return indices, weights


def make_batches(
    order: np.ndarray, batch_size: int, longest: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts an order into batches of constant size.

    The last ones are filled up with the last example at weight 0. Of fewer examples a batch has as
    many places as they need, a multiple of 8 like those of most batches, and of the replicas.

    Args:
        order: int [N].
        batch_size: B, at most.
        longest: As many batches are made as so many examples need, if these are more.

    Returns:
        indices: int32 [ceil(N / B), B].
        weights: float32, same shape: 1 for an example, 0 for filling.
    """
    longest = max(longest, len(order))
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    places = math.lcm(_PLACES, replicas)
    batch_size = min(batch_size, max(1, -(-longest // places)) * places)
    num_batches = -(-longest // batch_size)
    indices = np.full((num_batches * batch_size,), order[-1] if len(order) else 0, np.int32)
    indices[: len(order)] = order
    weights = (np.arange(num_batches * batch_size) < len(order)).astype(np.float32)
    return indices.reshape(num_batches, batch_size), weights.reshape(num_batches, batch_size)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The images of one side of the split."""

    names: tuple[str, ...]  # [N] as in split.json
    paths: tuple[str | np.ndarray, ...]  # [N] absolute, or the images themselves, uint8 [H, W, 3]
    labels: np.ndarray  # int32 [N]; of a `catalog.Table` also float32 [N, K] or [N]
    image_size: int  # height and width, in pixels
    # uint8 tensor [M, image_size, image_size, 3], or None: then they are decoded for every batch
    pixels: tf.Tensor | None
    # int32 [N], their places in `pixels`, -1 of those that other processes hold; None where M is N
    rows: tf.Tensor | None = None
    sha256s: tuple[str, ...] | None = None  # [N] of the files, which must stay so, if it is known
    max_pixels: int = 0  # as of `decoding.decode_image`
    shards: Shards = Shards()

    def __len__(self):
        return len(self.labels)

    @functools.cached_property
    def members(self) -> Members:
        """Which examples belong to each shard, and which this process holds."""
        return Members(self.shards, self.sha256s, len(self))

    def of_all(self, own: np.ndarray) -> np.ndarray:
        """Returns [N, ...] of all examples, of [M, ...] of those that each process holds."""
        found = self.shards.all_gather({"place": self.members.own, "row": own})
        rows = np.empty((len(self), *own.shape[1:]), own.dtype)
        rows[found["place"]] = found["row"]
        return rows

    def stream(self, indices: np.ndarray | list[list[int]]) -> Iterator[tf.Tensor]:
        """Yields uint8 images [B, H, W, 3] for each row of `indices` [S, B], decoding ahead in
        parallel.

        Where the pixels are in memory the loop looks them up inside its compiled step instead.

        Raises:
            DataError: If an image that was good when the run began cannot be used any more.
        """
        size = np.shape(indices)[1]
        images = ahead.in_order(
            lambda place: image_check.resize_image(self.original(place), self.image_size),
            np.reshape(indices, -1),
            _AHEAD * size,
        )
        with contextlib.closing(images):
            for _ in indices:
                yield tf.constant(np.stack(list(itertools.islice(images, size))))

    def lookup(self, indices: tf.Tensor | list[int]) -> tf.Tensor:
        """Returns uint8 [n, image_size, image_size, 3], of an int tensor [n], from memory."""
        return tf.gather(
            self.pixels, indices if self.rows is None else tf.gather(self.rows, indices)
        )

    def original(self, index: int) -> np.ndarray:
        """Returns uint8 [H, W, 3], an image upright and before it was resized.

        Raises:
            DataError: As of `stream`.
        """
        image, sha256 = self.paths[index], self.sha256s[index] if self.sha256s else None
        if isinstance(image, np.ndarray):
            return image
        try:
            return load_pixels(image, self.max_pixels, sha256)
        except BadImage as error:
            raise DataError(
                f"image {self.names[index]!a} was good when the run began and cannot be used now "
                f"({error}); expected files that stay as they are; put it back and start again"
            ) from error

    def images(self, indices: Iterable[int]) -> tf.Tensor:
        """Returns uint8 [n, image_size, image_size, 3], of files where others hold the pixels."""
        places = list(indices)
        if self.pixels is not None and np.isin(places, self.members.own).all():
            return self.lookup(places)
        return next(self.stream([places]))
