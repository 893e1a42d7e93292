"""Where a step gets the tensors at its cut from: computed from pixels in the step, or looked up in a cache.

What the frozen part computes for one augmented view of one image never changes, so it can be computed once. The cache
holds the tensors at the earliest cut of all phases; a phase that cuts later derives its own from them.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tl_research.data import pipeline
from tl_research.models.augmentation import COLUMNS


@dataclasses.dataclass(frozen=True)
class Views:
    """Which augmented version of the images an epoch uses: 0 views means a fresh one every epoch."""

    seed: int
    num_views: int
    augmented: bool

    def of_epoch(self, epoch):
        """Returns the view of a global epoch, counted from 1."""
        if not self.augmented:
            return 0
        return (epoch - 1) % self.num_views if self.num_views else epoch - 1

    def used(self, num_epochs):
        """Returns how many different views that many epochs use."""
        return len({self.of_epoch(epoch + 1) for epoch in range(num_epochs)})

    def draws(self, view, num_examples):
        """Returns float32 [num_examples, columns], or [0, columns] for images as they are."""
        if not self.augmented:
            return np.zeros((0, len(COLUMNS)), np.float32)
        return pipeline.augmentation_draws(self.seed, view, num_examples, len(COLUMNS))


class LiveSource:
    """Computes the tensors at a cut from pixels, in the step.

    Args:
        classifier: A `Classifier`.
        examples: `Examples`, with their pixels in memory or not.
        cut: Names of the tensors.
        views: `Views`.
    """

    cached = False

    def __init__(self, classifier, examples, cut, views):
        self.examples, self.cut, self.views = examples, tuple(cut), views
        self._augmentation = classifier.augmentation
        self._frozen_part = classifier.frozen_part(cut)

    @property
    def streamed(self):
        """Whether the caller has to bring the pixels of each batch."""
        return self.examples.pixels is None

    def fetch(self, indices, view, draws, pixels=None):
        """Returns the list of tensors at the cut, [B, ...] each.

        Args:
            indices: int32 [B], places of the examples.
            view: Not used: the draws are those of the view.
            draws: float32 [N, columns], or [0, columns] for images as they are.
            pixels: uint8 [B, H, W, 3] where `streamed`.
        """
        images = tf.gather(self.examples.pixels, indices) if pixels is None else pixels
        if draws.shape[0] == 0:
            return self._frozen_part(tf.cast(images, tf.float32))
        return self._frozen_part(self._augmentation.apply_draws(images, tf.gather(draws, indices)))


class CachedSource:
    """Looks features up, and computes the tensors at a later cut from them in the step where that is cheaper.

    Args:
        examples: `Examples`.
        stored: Names of the tensors kept.
        tensors: List of tensors [num_views * N, ...], one for each name; row `view * N + i` is example i.
        views: `Views`.
        then: `FrozenPart` from `stored` to the cut, or None where they are the same.
    """

    cached = True
    streamed = False

    def __init__(self, examples, stored, tensors, views, then=None):
        self.examples, self.stored, self.tensors, self.views, self._then = examples, tuple(stored), tensors, views, then
        self.cut = then.outputs if then else self.stored

    def fetch(self, indices, view, draws, pixels=None):
        """As `LiveSource.fetch`; draws and pixels are not used."""
        rows = tf.cast(view, tf.int32) * len(self.examples) + indices
        tensors = [tf.gather(tensor, rows) for tensor in self.tensors]
        return self._then(tensors) if self._then else tensors


def compute_features(source, num_views, batch_size, progress=lambda done, total: None):
    """Fills a cache from a live source, in fixed order and padded batches, so that filling it again gives equal bits.

    Args:
        source: A `LiveSource`.
        num_views: Number of views to compute.
        batch_size: Images at a time.
        progress: Called with (batches done, batches in all).

    Returns:
        A list of tensors [num_views * N, ...], one for each tensor of the cut.
    """
    examples = source.examples
    fetch = tf.function(source.fetch, reduce_retracing=True)
    indices, _ = pipeline.make_batches(np.arange(len(examples)), batch_size)
    parts, total = [], num_views * len(indices)
    for view in range(num_views):
        draws = tf.constant(source.views.draws(view, len(examples)))
        stream = iter(examples.stream(indices)) if source.streamed else None
        for number, row in enumerate(indices):
            pixels = next(stream) if stream else None
            tensors = fetch(tf.constant(row), tf.constant(view), draws, pixels)
            parts.append([tensor[:len(examples) - number * batch_size] for tensor in tensors])
            progress(len(parts), total)
    return [tf.concat(tensors, axis=0) for tensors in zip(*parts)]


def derive_features(classifier, source, cut, batch_size):
    """Returns a `CachedSource` for a later cut: features at the cheapest place before it, computed from earlier ones."""
    stored = classifier.graph.cheapest_cut(cut)
    if stored != source.stored:
        frozen_part = tf.function(classifier.frozen_part(stored, inputs=source.stored), reduce_retracing=True)
        count = len(source.tensors[0])
        rows, _ = pipeline.make_batches(np.arange(count), batch_size)
        parts = [frozen_part([tf.gather(tensor, row) for tensor in source.tensors]) for row in rows]
        source = CachedSource(source.examples, stored, [tf.concat(part, axis=0)[:count] for part in zip(*parts)], source.views)
    then = classifier.frozen_part(cut, inputs=stored) if tuple(cut) != stored else None
    return CachedSource(source.examples, stored, source.tensors, source.views, then)
