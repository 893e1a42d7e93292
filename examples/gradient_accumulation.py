"""Batches larger than memory: the gradients of PARTS of a batch, one after the other, are added up.

    python train.py --flagfile=flowers.flags --extension=examples/gradient_accumulation.py \
        --batch_size=256 --workdir=runs/accumulated

The step is that of the whole batch, to rounding: `gradients` returns sums over examples. (Not so
with --batchnorm=training, where each part has statistics of its own.)
"""

import tensorflow as tf

from tl_research.training.steps import TrainStep

PARTS = 4


class Step(TrainStep):
    def gradients(self, batch, scale):
        rows = batch.weights.shape[0]
        bounds = [rows * part // PARTS for part in range(PARTS + 1)]
        total = None
        for first, last in zip(bounds, bounds[1:]):
            if first == last:  # fewer rows than parts
                continue
            # Or all parts would be in memory at once.
            with tf.control_dependencies(tf.nest.flatten(total)[-1:] if total else []):
                part = super().gradients(batch.rows(first, last), scale)
            total = tf.nest.map_structure(tf.add, total, part) if total else part
        return total
