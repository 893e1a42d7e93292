"""One training step: tensors in, tensors out.

    batch.batches       rows of the batch -> augmented or cached -> `Batch`
    steps.TrainStep     `Batch` -> frozen part -> tape: logits, losses -> gradients -> update
    optim               clipping, one Keras optimizer per group
    totals              sums over the steps of a call

`step_loop.StepLoop` runs it many times inside one compiled call.
"""

from collections.abc import Callable

import tensorflow as tf

from tl_research import distribution
from tl_research.data import mixing
from tl_research.training.batch import Batch, Tensors
from tl_research.training.step_loop import StepLoop
from tl_research.training.totals import norms_of

# (gradients of the variables, loss, {name: sum over examples})
Gradients = tuple[list[tf.Tensor], tf.Tensor, Tensors]


class TrainStep(StepLoop):
    """One training step: forward pass, loss, gradients, update. Subclass it for your research.

    Gradients are recorded for, and updates applied to, `self.variables` only; the frozen part runs
    outside the tape. A step whose loss or gradients are not finite changes nothing.
    """

    def step(
        self, batch_of: Callable[[], Batch], rate: tf.Tensor, scale: tf.Tensor | None
    ) -> Tensors:
        """Takes one step; returns the result of `update`.

        Args:
            batch_of: Returns the `Batch` of the replica that calls it.
            rate: Base learning rate, before group multipliers.
            scale: Loss scale, in float16 only.
        """
        return self.update(*self.summed_gradients(batch_of, scale), rate, scale)

    def summed_gradients(self, batch_of: Callable[[], Batch], scale: tf.Tensor | None) -> Gradients:
        """Returns the result of `gradients` summed over replicas; only here do they communicate."""

        def of_this_one() -> Gradients:
            gradients, *more = self.gradients(batch_of(), scale)
            self.optimizer.check(gradients)
            return distribution.summed((gradients, *more))

        return distribution.on_replicas(of_this_one)

    def gradients(self, batch: Batch, scale: tf.Tensor | None) -> Gradients:
        """Returns the contribution of one replica's rows to a step.

        Means are sums over its examples divided by the examples of all replicas, so that the
        results for parts of a batch add up to those for the whole batch.

        Returns:
            gradients: One for each of `self.variables`, times the scale if there is one.
            loss: float32 [].
            sums: {name: float32 []}: `loss_sum`, `examples`, and what the objective counts.
        """
        tensors = self.boundary_tensors(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            logits = self.logits(tensors, batch)
            losses = self.objective.losses(logits, batch)
            self.check(losses, batch)
            loss = tf.reduce_sum(batch.weights * losses) / batch.count
            scaled_loss = loss if scale is None else scale * loss
        counts = {"loss_sum": losses, **self.objective.counts(logits, batch)}
        sums = {name: tf.reduce_sum(batch.weights * of_each) for name, of_each in counts.items()}
        sums["examples"] = tf.reduce_sum(batch.weights)
        return tape.gradient(scaled_loss, self.variables), loss, sums

    def boundary_tensors(self, batch: Batch) -> list[tf.Tensor]:
        """Returns the tensors [b, ...] at the boundary of the trainable part, which the frozen part
        computes from pixels or from cached features; with `--manifold_mixup`, blended.
        """
        tensors = self.source.compute(batch.inputs)
        if batch.partner_inputs is None:
            return tensors
        of_partners = self.source.compute(batch.partner_inputs)
        return [mixing.blended(*pair, batch.shares) for pair in zip(tensors, of_partners)]

    def logits(self, tensors: list[tf.Tensor], batch: Batch) -> tf.Tensor:
        """Returns float32 logits [b, K] from the tensors at the boundary of the trainable part."""
        return self.classifier.logits(
            self.source.boundary, tensors, training=True, dropout_mask=batch.dropout_mask
        )

    def update(
        self,
        gradients: list[tf.Tensor],
        loss: tf.Tensor,
        sums: Tensors,
        rate: tf.Tensor,
        scale: tf.Tensor | None,
    ) -> Tensors:
        """Applies summed gradients if they and the loss are finite.

        Args:
            gradients, loss, sums: What `summed_gradients` returned.
            rate, scale: As for `step`.

        Returns:
            `sums`, and norms [variables] of the gradients, finite (whether they were), and moved
            [variables] (1 where a variable is known to have moved).
        """
        self.optimizer.check(gradients)
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
            # a step skipped because of its loss would make the epoch's loss NaN
            sums = {name: tf.where(tf.math.is_finite(loss), s, 0.0) for name, s in sums.items()}
        norms = norms_of(gradients)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(tf.norm(norms))
        moved = tf.cond(finite, lambda: self.applied(gradients, rate), lambda: tf.zeros_like(norms))
        return {**sums, "norms": norms, "finite": finite, "moved": moved}
