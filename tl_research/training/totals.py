"""Totals over the steps of a call: sums, and the evidence that the audit needs."""

from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf

from tl_research.optim import loss_scale
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.training.objective import Objective


class Totals(NamedTuple):
    """Totals over steps, as `StepLoop.__call__` returns them."""

    optimizer: GroupedOptimizer  # of the steps
    objective: Objective

    def zeros(self, scaling: dict) -> dict[str, tf.Tensor]:
        """Returns the totals before the first step."""
        scalars = ("steps", "loss_sum", "examples", "learning_rate", "largest_rate")
        totals = {name: tf.zeros([]) for name in (*scalars, *self.objective.counted)}
        totals["gradient_norm_sum"] = tf.zeros([len(self.optimizer.groups)])
        zeros = tf.zeros([len(self.optimizer.variables)])
        totals |= {"max_gradient_norm": zeros, "moved": zeros}
        totals["finite"] = tf.ones([])
        return totals | {"skipped_steps": tf.zeros([]), **scaling} if scaling else totals

    def added(self, totals: dict, metrics: dict, rate: tf.Tensor, scaling: dict) -> dict:
        """Returns the totals after one more step.

        Args:
            totals: Those before it.
            metrics: What the step returned.
            rate: Its base learning rate.
            scaling: The state of the loss scale; empty except in float16.
        """
        applied = finite = tf.cast(metrics["finite"], tf.float32)
        norms, more = metrics["norms"], {}
        if scaling:
            norms = tf.where(metrics["finite"], norms, 0.0)
            more = loss_scale.update({name: totals[name] for name in scaling}, metrics["finite"])
            finite = tf.cast(more["skipped_in_a_row"] < loss_scale.MAX_SKIPPED, tf.float32)
            more["skipped_steps"] = totals["skipped_steps"] + finite - applied
        sums = {name: metrics[name] for name in ("loss_sum", "examples", *self.objective.counted)}
        sums |= {"gradient_norm_sum": self.of_groups(norms), "steps": finite}
        peaks = {
            "max_gradient_norm": self.optimizer.clipped(norms),
            "moved": metrics["moved"],
            "largest_rate": applied * rate,
        }
        return {
            **{name: totals[name] + value for name, value in sums.items()},
            **{name: tf.maximum(totals[name], value) for name, value in peaks.items()},
            **more,
            "finite": finite,
            "learning_rate": rate,
        }

    def of_groups(self, norms: tf.Tensor) -> tf.Tensor:
        """Returns float32 [groups], the norm of each group's variables, from [variables]."""
        sizes = [len(group.paths) for group in self.optimizer.groups]
        return tf.stack([tf.norm(part) for part in tf.split(norms, sizes)])


def norms_of(tensors: Iterable[tf.Tensor]) -> tf.Tensor:
    """Returns float32 [N], the norm of each tensor; tf.norm would write all squares to memory."""
    losses = [tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors]
    return tf.sqrt(2.0 * tf.stack(losses))
