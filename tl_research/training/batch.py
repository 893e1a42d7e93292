"""What a step is given, of one batch and of a whole epoch: tensors."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tl_research import distribution
from tl_research.data import mixing, pipeline

if TYPE_CHECKING:  # they import this module
    from tl_research.training.features import Source
    from tl_research.training.plan import Plan
    from tl_research.training.step_loop import StepLoop

Tensors = dict[str, tf.Tensor]  # by name


class EpochInputs(NamedTuple):
    """What all calls of an epoch are given, tensors."""

    indices: tf.Tensor  # int32 [S, B], its batches
    weights: tf.Tensor  # float32 [S, B]: 1, or 0 for filling
    of_view: Any  # as the source's `of_view` returns it: draws, or cached features
    view: tf.Tensor  # int32 scalar
    mix: mixing.Mix | None = None  # what images, or their features, are blended with


class Batch(NamedTuple):
    """What one replica takes of a batch: b of its rows."""

    inputs: Any  # float32 images [b, H, W, 3] where they are live, or the list of cached tensors
    labels: tf.Tensor  # int32 [b], or whatever the objective calls a label
    weights: tf.Tensor  # float32 [b]: 1, or 0 for filling
    count: tf.Tensor  # float32 []: the sum of the weights of all replicas
    indices: tf.Tensor  # int32 [b], places of the examples in the training set
    view: tf.Tensor  # int32 [], which augmented version of the images
    step: tf.Tensor  # int64 [], the global step
    # {tensor: bool [b, ...]}, what dropout layers of the head keep
    dropout_mask: Tensors | None = None
    partner_labels: tf.Tensor | None = None  # of what each image is blended with, if it is
    shares: tf.Tensor | None = None  # float32 [b], what is left of each image itself
    partner_inputs: Any = None  # as `inputs`, where features are blended and not images

    def rows(self, first: int, last: int) -> "Batch":
        """Returns the rows from `first` up to `last`; `count` stays, so that gradients add up."""
        whole = {"count": self.count, "view": self.view, "step": self.step}
        parts = self._replace(**dict.fromkeys(whole))
        return tf.nest.map_structure(
            lambda rows: None if rows is None else rows[first:last], parts
        )._replace(**whole)


def batches(
    step: "StepLoop", epoch: EpochInputs, row: tf.Tensor, rows: Any, global_step: tf.Tensor
) -> Callable[[], Batch]:
    """Returns a function that returns the `Batch` of the replica that calls it.

    Args:
        step: The `StepLoop` that takes it.
        epoch: See `EpochInputs`.
        row: Of its batches.
        rows: What the source looks up for this process's part of it, or streamed.
        global_step: int64 [], decides dropout.
    """
    weights = epoch.weights[row]
    mask = step.classifier.dropout_mask(global_step, epoch.indices.shape[1])
    count = tf.reduce_sum(weights)
    here = distribution.process_rows([epoch.indices[row], weights, mask])

    def batch_of() -> Batch:
        own, own_weights, own_mask, own_rows = distribution.local_rows([*here, rows])
        mix = epoch.mix and epoch.mix.rows(own)
        inputs = step.source.read(own, epoch.of_view, own_rows, mix)
        labels = tf.gather(step.labels, own)
        batch = Batch(inputs, labels, own_weights, count, own, epoch.view, global_step, own_mask)
        if mix is None:
            return batch
        partner_labels = tf.gather(step.labels, mix.partners)
        batch = batch._replace(partner_labels=partner_labels, shares=mix.shares)
        if step.source.views.mixing is not None:
            return batch
        found = step.source.lookup(mix.partners, epoch.of_view)
        return batch._replace(partner_inputs=step.source.read(mix.partners, epoch.of_view, found))

    return batch_of


def epoch_inputs(plan: "Plan", source: "Source", epoch: int) -> EpochInputs:
    """Returns what the calls of an epoch, counted from 1, are given; at most of the last."""
    config, members, mix = plan.config, plan.train.members, None
    epoch = min(epoch, max(1, sum(phase.epochs for phase in plan.phases)))
    orders = pipeline.epoch_orders(config.seed, epoch, members)
    indices, weights = pipeline.sharded_batches(orders, config.batch_size)
    views = plan.cache.views
    view = views.of_epoch(epoch)
    if blend := views.mixing or plan.feature_mixing:
        draws = mixing.draws_of_shards(blend, config.seed, epoch, members, config.image_size)
        mix = tf.nest.map_structure(tf.constant, draws)
    parts = (indices, weights, source.of_view(view), view)
    return EpochInputs(*tf.nest.map_structure(tf.constant, parts))._replace(mix=mix)


def first_images(plan: "Plan", count: int) -> tuple[np.ndarray, np.ndarray, tf.Tensor]:
    """Returns the first images of the first batch, augmented [n, H, W, 3], their labels [n, ...],
    and these images preprocessed.

    Augmented as in the second epoch: the first may have the images as they are.
    """
    live = plan.cache.live_source("train", plan.classifier.boundary())
    epoch = epoch_inputs(plan, live, 1)._replace(of_view=live.of_view(plan.cache.views.of_epoch(2)))
    here, weights = (distribution.of_process(t.numpy())[0] for t in (epoch.indices, epoch.weights))
    row = tf.constant(here[weights > 0][:count])
    mix = epoch.mix and epoch.mix.rows(row)
    pixels = plan.train.images(row.numpy())
    images = live.read(row, epoch.of_view, pixels, mix)
    return images.numpy(), plan.train.labels[row.numpy()], plan.classifier.preprocessing(images)


def first_arguments(plan: "Plan", source: "Source", epochs_done: int, steps_per_call: int) -> tuple:
    """Returns arguments of `TrainStep.prepare` that are like those of the next calls."""
    epoch = epoch_inputs(plan, source, epochs_done + 1)
    stream = streamed_rows(source, epoch, slice(1))
    return epoch, stream and stack([next(stream)], steps_per_call)


def streamed_rows(source: "Source", epoch: EpochInputs, which: slice) -> Iterator[Any] | None:
    """Yields what `source.stream` does for this process's part of some batches; None if the source
    needs no stream.
    """
    if not source.streamed:
        return None
    indices = distribution.of_process(epoch.indices[which].numpy())
    return source.stream(indices, int(epoch.view))


def stack(batches: list, size: int) -> Any:
    """Returns tensors [size, B, ...] of batches; filled up, so that a step is traced once."""
    filled = [*batches, *batches[-1:] * (size - len(batches))]
    return tf.nest.map_structure(lambda *tensors: tf.stack(tensors), *filled)
