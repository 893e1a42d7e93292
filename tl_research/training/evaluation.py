"""Logits of all examples of a side, in order."""

import functools
import time

import numpy as np
import tensorflow as tf

from tl_research import distribution
from tl_research.data import pipeline
from tl_research.models.classifier import Classifier
from tl_research.training.compiler import compile_errors
from tl_research.training.features import Source, on_local_replicas


class EvalStep:
    """Computes the logits of all examples of a source.

    Args:
        classifier: A `Classifier`.
        source: Where the tensors at the boundary come from; its images are not augmented.
        batch_size: Images at a time.
        xla: Whether it is compiled with XLA.
    """

    def __init__(self, classifier: Classifier, source: Source, batch_size: int, xla: bool = False):
        self._classifier, self._source, self._xla = classifier, source, xla
        batches = pipeline.sharded_batches(source.examples.members.of_shard, batch_size)
        self._indices = batches[0]
        # as logits are gathered: all batches of the first process, then those of the next
        self._places, weights = (
            np.concatenate([part.ravel() for part in distribution.of_each_process(columns)])
            for columns in batches
        )
        self._counts = weights > 0
        compute = self._logits
        if xla:
            compute = tf.function(compute, jit_compile=True, autograph=False)
        self._call = tf.function(
            functools.partial(on_local_replicas, source, compute), autograph=False
        )

    def _logits(self, tensors):
        return self._classifier.logits(self._source.boundary, self._source.compute(tensors))

    def prepare(self) -> None:
        """Traces, compiles, and computes one batch; raises CompileError if XLA cannot do it."""
        with compile_errors(self._classifier, self._xla):
            self._batches(self._indices[:1])

    def seconds(self) -> float:
        """Returns the seconds of a call, foreseen from up to 4 batches."""
        first, start = self._indices[:4], time.perf_counter()
        self._batches(first)
        return (time.perf_counter() - start) * len(self._indices) / len(first)

    def __call__(self) -> np.ndarray:
        """Returns float32 [N, K]; every example stands in it once."""
        own = np.concatenate(self._batches(self._indices))
        gathered = distribution.all_gather({"logits": own})["logits"]
        logits = np.empty((len(self._source.examples), gathered.shape[1]), gathered.dtype)
        logits[self._places[self._counts]] = gathered[self._counts]
        return logits

    def _batches(self, indices):
        """Returns a list of float32 [b, K], of this process's part of each row of `indices`."""
        indices = distribution.of_process(indices)
        of_view = tf.nest.map_structure(tf.constant, self._source.of_view(0))
        stream = self._source.stream(indices, 0) if self._source.streamed else None
        logits = [
            self._call(tf.constant(row), of_view, next(stream) if stream else None)
            for row in indices
        ]
        return [part.numpy() for part in logits]
