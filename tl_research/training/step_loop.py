"""Runs a training step many times inside one `tf.function`.

`batch.batches` provides the inputs of a step; `totals` accumulates sums, the loss scale of float16
and the evidence for the audit; XLA compiles what it can here. The step itself is `steps.TrainStep`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tl_research import distribution
from tl_research.errors import UserError
from tl_research.models.classifier import Classifier
from tl_research.optim import loss_scale
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.training.batch import Batch, EpochInputs, Tensors, batches
from tl_research.training.compiler import compile_errors, needs_autograph
from tl_research.training.features import Source
from tl_research.training.objective import Objective
from tl_research.training.totals import Totals, norms_of


class StepLoop:
    """Takes steps on rows of batches until there are no more or a step is not finite.

    In float16 a step that is not finite is skipped, and the call ends if too many are
    (`tl_research.optim.loss_scale`). If it is made in the scope of a `tf.distribute` strategy, each
    replica takes its local rows of every batch.

    Args:
        classifier: A `Classifier` with this phase's layers unfrozen.
        optimizer: A `GroupedOptimizer` over the trainable variables.
        source: Where the tensors at the boundary come from.
        objective: See `tl_research.training.objective`.
        rate_at: Returns the base learning rate of a step in the phase, an int64 tensor.
        xla: Whether the step, without augmentation and dropout draws, is compiled with XLA.

    Attributes:
        labels: Labels of all training examples, a tensor.
        variables: `tf.Variable`s of the optimizer, in its order.
        traces: How often it was traced.
        graph: The `tf.Graph` of one step after tracing.
    """

    step: Callable[..., Any]  # defined in the subclass, see `steps.TrainStep`
    gradients: Callable[..., Any]

    def __init__(
        self,
        classifier: Classifier,
        optimizer: GroupedOptimizer,
        source: Source,
        objective: Objective,
        rate_at: Callable[[tf.Tensor], tf.Tensor],
        *,
        xla: bool = False,
    ):
        self.classifier, self.optimizer, self.source = classifier, optimizer, source
        self.objective, self._rate_at, self._xla = objective, rate_at, xla
        self._scaled = classifier.compute_dtype == "float16"
        self._autograph = needs_autograph(self, objective, *source.views.parts)
        self.labels = tf.constant(source.examples.labels)
        self.variables = [variable.value for variable in optimizer.variables]
        self._step = self.step
        if tf.distribute.has_strategy():  # XLA compiles what each replica does alone
            self.gradients = self._compiled(self.gradients)
        else:
            on_one = self._compiled(lambda batch, *rest: self.step(lambda: batch, *rest))
            self._step = lambda batch_of, *rest: on_one(batch_of(), *rest)
        self._totals = Totals(optimizer, objective)
        self._call = tf.function(self._run, autograph=self._autograph)
        self.traces, self.graph = 0, None

    def _compiled(self, function):
        if not self._xla:
            return function
        return tf.function(function, jit_compile=True, autograph=self._autograph)

    def __call__(
        self,
        epoch: EpochInputs,
        first: int,
        count: int,
        global_step: int,
        phase_step: int,
        streamed: Any = None,
        scaling: dict | None = None,
    ) -> Tensors:
        """Takes up to `count` steps.

        Args:
            epoch: Its batches, views, and what images are blended with.
            first: First row of its batches.
            count: Number of rows to take.
            global_step: Steps taken so far; dropout depends on it.
            phase_step: Steps taken in this phase; the learning rate depends on it.
            streamed: What the source's `stream` yields for this process's part of the rows from
                `first` on, [count or more, ...], if it is streamed.
            scaling: The state of the loss scale, as `loss_scale.initial` returns it, which is the
                default; in float16 only.

        Returns:
            dict of float32 tensors over the steps taken: steps, the step's `sums` (weighted by
            example), gradient_norm_sum [groups], max_gradient_norm [variables] (largest norm, after
            clipping), moved [variables] (1 if it moved, else 0), learning_rate (of the last step,
            before group multipliers), finite (0 if the call ended with a step that was not),
            largest_rate, update_ratio [groups] (norm of the change over the norm of the weights,
            divided by the number of steps). In float16 also skipped_steps, which are included in
            steps but, apart from finite losses, not in the other numbers, and the new state of the
            loss scale.
        """
        scaling = (scaling or loss_scale.initial()) if self._scaled else {}
        scaling = {name: tf.constant(value, tf.float32) for name, value in scaling.items()}
        rows = [tf.constant(number, tf.int32) for number in (first, count)]
        steps = [tf.constant(number, tf.int64) for number in (global_step, phase_step)]
        return self._call(epoch, *rows, *steps, streamed, scaling)

    def prepare(self, epoch: EpochInputs, streamed: Any = None) -> None:
        """Traces, compiles, and takes one step, which is undone.

        Args:
            epoch, streamed: As for a call.

        Raises:
            CompileError: If XLA cannot compile it.
        """
        with self.undone(), compile_errors(self.classifier, self._xla):
            self(epoch, 0, 1, 0, 0, streamed)

    def seconds(self, most: int, epoch: EpochInputs, streamed: Any = None) -> float:
        """Returns the seconds per step, measured on up to 4 steps, which are undone.

        Args:
            most: Maximum number of steps in a call.
            epoch, streamed: As for a call.
        """
        count = min(4, most)
        with self.undone():
            start = time.perf_counter()
            self(epoch, 0, count, 0, 0, streamed)["loss_sum"].numpy()
            return (time.perf_counter() - start) / count

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Restores weights and optimizer at the end."""
        values, slots = self.classifier.values(self.classifier.variables), self.optimizer.state()
        yield
        self.classifier.assign(values)
        self.optimizer.load_state(slots)

    def _run(self, epoch, first, count, global_step, phase_step, streamed, scaling):
        self.traces += 1  # runs while tracing only
        before = [tf.identity(variable) for variable in self.variables]

        def body(done: tf.Tensor, totals: Tensors) -> Any:
            row, step = first + done, tf.cast(done, tf.int64)
            if streamed is None:
                here = distribution.process_rows(epoch.indices[row])
                rows = self.source.lookup(here, epoch.of_view)
            else:
                rows = tf.nest.map_structure(lambda rows: rows[done], streamed)
            self.graph = tf.compat.v1.get_default_graph()
            batch_of = batches(self, epoch, row, rows, global_step + step)
            rate = self._rate_at(phase_step + step)
            metrics = self._step(batch_of, rate, totals.get("loss_scale"))
            return done + 1, self._totals.added(totals, metrics, rate, scaling)

        _, totals = tf.while_loop(
            lambda done, totals: (done < count) & (totals["finite"] > 0),
            body,
            (tf.constant(0), self._totals.zeros(scaling)),
            parallel_iterations=1,
        )
        changes = norms_of([variable - old for variable, old in zip(self.variables, before)])
        of_groups = self._totals.of_groups
        norms = tf.maximum(of_groups(norms_of(self.variables)), 1e-12)  # biases begin at 0
        applied = totals["steps"] - totals.get("skipped_steps", 0.0)
        return {
            **totals,
            "update_ratio": of_groups(changes) / norms / tf.maximum(applied, 1.0),
            "moved": tf.maximum(totals["moved"], tf.sign(changes)),
        }

    def check(self, losses: tf.Tensor, batch: Batch) -> None:
        """Raises UserError unless there is one loss per image: other shapes would broadcast."""
        shape = getattr(losses, "shape", None)
        if shape != batch.weights.shape:
            raise UserError(
                f"{type(self.objective).__name__}: received losses "
                f"{losses if shape is None else shape}; expected one for each image, "
                f"{batch.weights.shape}; correct its loss"
            )

    def applied(self, gradients: list[tf.Tensor], rate: tf.Tensor) -> tf.Tensor:
        """Applies gradients; returns float32 [variables], 1 where a variable is seen to move."""
        if {"sgd", "adam", "adamw", "rmsprop"}.issuperset(self.optimizer.kinds):
            self.optimizer.apply(gradients, rate)
            return tf.zeros([len(gradients)])
        # Lion's steps all have the same size: after two of them a variable may be back where the
        # call began. Nothing is known about a user's optimizers.
        before = [tf.identity(variable) for variable in self.variables]
        self.optimizer.apply(gradients, rate)
        return tf.sign(norms_of([after - old for after, old in zip(self.variables, before)]))
