"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382, section 3) in fine-tuning.

For EfficientNetLite0:

    python train.py --flagfile=flowers.flags --backbone=EfficientNetLite0 \
        --extension=examples/stochastic_depth.py

Each residual branch that trains is left out for an image with a probability that rises to 0.2 from
the first block to the last; what is left is scaled, so that nothing changes at inference.

On the flower photographs at 128 px (--image_size=128, seeds 0 to 4 with a split each, 2 CPU cores):
test accuracy +1.3 points against the same runs without it (standard error of the five differences
0.5), validation accuracy +1.1 (0.5), test loss -0.021 (0.005).
"""

import re

import tensorflow as tf

from tl_research.training.steps import TrainStep

LAST_RATE = 0.2


def _residuals(graph, boundary):
    """Yields (name of the sum, of its branch, of its shortcut, rate) of the trainable part."""
    blocks = [layer for layer, *_ in graph.layers((graph.input,), (graph.output,))]
    sums = [layer.name for layer in blocks if re.fullmatch(r"block\w+_add", layer.name)]
    trained = {name: read for _, _, read, name in graph.layers(boundary, (graph.output,))}
    for place, name in enumerate(sums, start=1):
        if name in trained:
            yield (name, *trained[name], LAST_RATE * place / len(sums))


class Step(TrainStep):
    def logits(self, tensors, batch):
        graph, known = self.classifier.graph, dict(zip(self.source.boundary, tensors))
        for number, (name, branch, shortcut, rate) in enumerate(
            _residuals(graph, self.source.boundary)
        ):
            branch, shortcut = graph.run(known, (branch, shortcut))
            seed = tf.stack([tf.constant(1000 + number, tf.int64), batch.step])
            draws = tf.random.stateless_uniform([branch.shape[0], 1, 1, 1], seed, alg="philox")
            kept = tf.cast(draws >= rate, branch.dtype) / (1.0 - rate)
            known = {name: shortcut + kept * branch}
        return self.classifier.logits(
            tuple(known), list(known.values()), training=True, dropout_mask=batch.dropout_mask
        )
