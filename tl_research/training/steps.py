"""The training step and the evaluation step of one phase: tensors in, tensors out, traced once."""

import contextlib
import re
import typing

import numpy as np
import tensorflow as tf

from tl_research import distribution
from tl_research.data import pipeline
from tl_research.errors import CompileError, OutOfMemoryError, UserError
from tl_research.optim import loss_scale, schedules

_SUMMED = ("loss_sum", "correct", "examples", "gradient_norm_sum")  # over the steps of a call


class EpochInputs(typing.NamedTuple):
    """What all calls of an epoch are given, tensors."""

    indices: tf.Tensor  # int32 [S, B], its batches
    weights: tf.Tensor  # float32 [S, B]: 1, or 0 for filling
    draws: tf.Tensor  # of its view, as the source's `draws` returns them
    view: tf.Tensor  # int32 scalar
    mixing: tuple | None = None  # what `pipeline.mixup_draws` returns; of live sources only


class TrainStep:
    """Trains on rows of batches inside one `tf.function`.

    Gradients are taped for, and updates applied to, the optimizer's variables only. The frozen part
    runs outside the tape. A step whose loss or gradients are not finite changes nothing, and the
    call ends with it; in float16 it is skipped, and the call ends when too many were
    (`tl_research.optim.loss_scale`). Made in the scope of a `tf.distribute` strategy, each replica
    takes its rows of every batch.

    Args:
        classifier: A `Classifier` with this phase's layers open.
        optimizer: A `GroupedOptimizer` over the trainable variables.
        source: Where the tensors at the boundary come from.
        phase: `tl_research.config.Phase`.
        num_steps: Steps of the whole phase, for the schedule.
        label_smoothing: Probability spread evenly over the classes.
        class_weights: float [K], what the loss of an example of each class is multiplied by, or
            None.
        xla: Whether the step, all but augmentation and the draws of dropout, is compiled with XLA.
    """

    def __init__(
        self,
        classifier,
        optimizer,
        source,
        phase,
        num_steps,
        *,
        label_smoothing=0.0,
        class_weights=None,
        xla=False,
    ):
        self._classifier, self._optimizer, self._source = classifier, optimizer, source
        self._phase, self._num_steps = phase, num_steps
        self._label_smoothing = label_smoothing
        self._class_weights = (
            None if class_weights is None else tf.constant(class_weights, tf.float32)
        )
        self._xla, self._scaled = xla, classifier.backbone.compute_dtype == "float16"
        self._labels = tf.constant(source.examples.labels)
        self._variables = [variable.value for variable in optimizer.variables]
        self._distributed = tf.distribute.has_strategy()
        self._compute = self._gradients if self._distributed else self._update_variables
        if xla:
            self._compute = tf.function(self._compute, jit_compile=True)
        self._call = tf.function(self._run)
        self.traces, self.graph = 0, None  # the graph of one step, once it was traced

    def __call__(self, epoch, first, count, global_step, phase_step, streamed=None, scaling=None):
        """Takes up to `count` steps.

        Args:
            epoch: `EpochInputs`. Under MixUp the label with the larger share counts as the right
                one.
            first: Row of its batches to begin with.
            count: Rows to take.
            global_step: Steps taken so far; decides dropout.
            phase_step: Steps taken in this phase; decides the learning rate.
            streamed: What the source's `stream` yields for the rows from `first` on, [count or
                more, ...], if it is streamed.
            scaling: The state of the loss scale, numbers, as `loss_scale.initial` returns it and by
                default; of float16 only.

        Returns:
            dict of float32 tensors over the steps taken: steps, loss_sum and correct (weighted by
            example), examples, gradient_norm_sum [groups], gradient_peak [variables] (largest norm,
            after clipping), moved [variables] (1 where it did, else 0), learning_rate (of the last
            step, before multipliers), finite (0 if the call ended with a step that was not),
            largest_rate, update_ratio [groups] (norm of what the steps changed over that of the
            weights, divided by the number of steps). In float16 also skipped_steps, which count
            among the steps but not among those that the other numbers are of (only a loss that is
            finite does), and the state of the loss scale after them.
        """
        if self._scaled:
            scaling = {
                name: tf.constant(value, tf.float32)
                for name, value in (scaling or loss_scale.initial()).items()
            }
        numbers = [
            tf.constant(value, dtype)
            for value, dtype in (
                (first, tf.int32),
                (count, tf.int32),
                (global_step, tf.int64),
                (phase_step, tf.int64),
            )
        ]
        return self._call(epoch, *numbers, streamed, scaling if self._scaled else None)

    def prepare(self, epoch, streamed=None):
        """Traces and compiles, and takes a step of weight 0, whose loss is not a number, so that it
        changes nothing.

        Args:
            epoch, streamed: As of a call.

        Raises:
            CompileError: If XLA cannot compile it.
        """
        variables = [
            self._classifier.variables[path] for path in self._classifier.batchnorm_statistics()
        ]
        statistics = [variable.numpy() for variable in variables]
        with _compile_errors(self._classifier, self._xla):
            self(epoch._replace(weights=0.0 * epoch.weights), 0, 1, 0, 0, streamed)
        # --batchnorm=training moves them whatever the loss
        for variable, value in zip(variables, statistics):
            variable.assign(value)

    def _run(self, epoch, first, count, global_step, phase_step, streamed, scaling):
        self.traces += 1  # runs while tracing only
        num_groups, num_variables = len(self._optimizer.groups), len(self._variables)
        before = [tf.identity(variable) for variable in self._variables]
        totals = {
            "steps": tf.zeros([]),
            "loss_sum": tf.zeros([]),
            "correct": tf.zeros([]),
            "examples": tf.zeros([]),
            "gradient_norm_sum": tf.zeros([num_groups]),
            "gradient_peak": tf.zeros([num_variables]),
            "moved": tf.zeros([num_variables]),
            "learning_rate": tf.zeros([]),
            "largest_rate": tf.zeros([]),
            "finite": tf.ones([]),
        }
        if self._scaled:
            totals |= {"skipped_steps": tf.zeros([]), **scaling}

        def body(done, totals):
            step = tf.cast(done, tf.int64)
            row = first + done
            batch = (
                self._source.lookup(epoch.indices[row], epoch.view)
                if streamed is None
                else tf.nest.map_structure(lambda rows: rows[done], streamed)
            )
            self.graph = tf.compat.v1.get_default_graph()
            kept = self._classifier.dropout_mask(global_step + step, epoch.indices.shape[1])
            metrics = self._take_step(
                epoch, row, batch, kept, phase_step + step, totals.get("loss_scale")
            )
            applied = finite = metrics["applied"]
            more = {}
            if self._scaled:
                more = loss_scale.update({name: totals[name] for name in scaling}, applied > 0)
                finite = tf.cast(more["skipped_in_a_row"] < loss_scale.MAX_SKIPPED, tf.float32)
                more["skipped_steps"] = totals["skipped_steps"] + finite - applied
            return done + 1, {
                **{name: totals[name] + metrics[name] for name in _SUMMED},
                **more,
                "steps": totals["steps"] + finite,
                "finite": finite,
                "learning_rate": metrics["learning_rate"],
                "largest_rate": tf.maximum(
                    totals["largest_rate"], applied * metrics["learning_rate"]
                ),
                **{
                    name: tf.maximum(totals[name], metrics[name])
                    for name in ("gradient_peak", "moved")
                },
            }

        _, totals = tf.while_loop(
            lambda done, totals: (done < count) & (totals["finite"] > 0),
            body,
            (tf.constant(0), totals),
            parallel_iterations=1,
        )
        changes = self._changes(before)
        # of a bias that begins at 0
        norms = tf.maximum(self._of_groups(_norms(self._variables)), 1e-12)
        applied = totals["steps"] - totals.get("skipped_steps", 0.0)
        return {
            **totals,
            "update_ratio": self._of_groups(changes) / norms / tf.maximum(applied, 1.0),
            "moved": tf.maximum(totals["moved"], tf.sign(changes)),
        }

    def _changes(self, before):
        """Returns float32 [variables], the norm of how far each is from what it was."""
        return _norms([variable - old for variable, old in zip(self._variables, before)])

    def _of_groups(self, norms):
        """Returns float32 [groups], the norm of each group's variables together, from float32
        [variables].
        """
        return tf.stack(
            [
                tf.norm(part)
                for part in tf.split(norms, [len(group.paths) for group in self._optimizer.groups])
            ]
        )

    def _take_step(self, epoch, row, batch, kept, phase_step, scale):
        """One step on a batch [B]: loss, gradients, update. Returns a dict of float32 tensors."""
        indices, weights = epoch.indices[row], epoch.weights[row]
        num_examples = tf.reduce_sum(weights)

        def compute(*rest):
            own, own_weights, own_batch, own_kept = distribution.local_rows(
                [indices, weights, batch, kept]
            )
            own_mixing = epoch.mixing and tuple(tf.gather(of_all, own) for of_all in epoch.mixing)
            tensors = self._source.read(own, epoch.view, epoch.draws, own_batch, own_mixing)
            labels = [(tf.gather(self._labels, own), None)]
            if own_mixing:
                partners, shares = own_mixing
                labels = [(labels[0][0], shares), (tf.gather(self._labels, partners), 1.0 - shares)]
            return self._compute(tensors, labels, own_weights, own_kept, num_examples, scale, *rest)

        if not self._distributed:
            return compute(phase_step)
        return self._apply(
            *distribution.on_replicas(lambda: distribution.summed(compute())), scale, phase_step
        )

    def _update_variables(self, tensors, labels, weights, kept, num_examples, scale, phase_step):
        return self._apply(
            *self._gradients(tensors, labels, weights, kept, num_examples, scale), scale, phase_step
        )

    def _gradients(self, tensors, labels, weights, kept, num_examples, scale):
        """Returns what examples add to their batch: (gradients, times the scale if there is one;
        loss; sums of other numbers).

        `labels` are [(int32 [B], float32 [B] shares)]; the share of the one label that there is
        without MixUp is None.
        """
        tensors = self._source.compute(tensors)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._variables)
            logits = self._classifier.logits(
                self._source.boundary, tensors, training=True, dropout_mask=kept
            )
            losses = self._losses(logits, *labels[0])
            for part in labels[1:]:
                losses += self._losses(logits, *part)
            loss = tf.reduce_sum(weights * losses) / num_examples
            scaled_loss = loss if scale is None else scale * loss
        gradients = tape.gradient(scaled_loss, self._variables)
        answers = (
            labels[0][0]
            if len(labels) == 1
            else tf.where(labels[0][1] >= 0.5, labels[0][0], labels[1][0])
        )
        correct = tf.cast(
            tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), answers), tf.float32
        )
        sums = {
            "loss_sum": tf.reduce_sum(weights * losses),
            "correct": tf.reduce_sum(weights * correct),
            "examples": tf.reduce_sum(weights),
        }
        return gradients, loss, sums

    def _losses(self, logits, labels, shares):
        """Returns float32 [B], the loss with these labels, weighted by class and by share."""
        losses = cross_entropy(logits, labels, self._label_smoothing)
        if self._class_weights is not None:
            losses *= tf.gather(self._class_weights, labels)
        return losses if shares is None else losses * shares

    def _apply(self, gradients, loss, sums, scale, phase_step):
        """Divides the gradients by the scale and applies them, if they and the loss are finite.

        Returns sums, norms and rate.
        """
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
            # A step that is skipped for its loss would make that of the epoch no number.
            sums = {
                name: tf.where(tf.math.is_finite(loss), value, 0.0) for name, value in sums.items()
            }
        learning_rate = self._phase.learning_rate * schedules.learning_rate_factor(
            phase_step, self._num_steps, self._phase.lr_schedule, self._phase.warmup_steps
        )
        norms = _norms(gradients)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(tf.norm(norms))
        unmoved = tf.zeros_like(norms)

        def apply():
            # Steps of lion are of one size: after two of them a variable may be where it was before
            # the call.
            before = (
                [tf.identity(variable) for variable in self._variables]
                if self._optimizer.name == "lion"
                else None
            )
            self._optimizer.apply(gradients, learning_rate)
            return tf.ones([]), tf.sign(self._changes(before)) if before else unmoved

        applied, moved = tf.cond(finite, apply, lambda: (tf.zeros([]), unmoved))
        if scale is not None:
            norms = tf.where(finite, norms, 0.0)
        return {
            **sums,
            "gradient_norm_sum": self._of_groups(norms),
            "gradient_peak": self._optimizer.clipped(norms),
            "moved": moved,
            "learning_rate": learning_rate,
            "applied": applied,
        }


def _norms(tensors):
    """Returns float32 [N], the norm of each tensor; tf.norm would write all squares to memory
    first.
    """
    return tf.sqrt(
        2.0 * tf.stack([tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors])
    )


@contextlib.contextmanager
def memory_errors(config, what):
    """Turns a lack of memory, and an operation that --deterministic does not allow, into one line.

    `what` was going on.
    """
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        smaller = (
            f"--batch_size={config.batch_size // 2}"
            if config.batch_size > 1
            else "a smaller --image_size"
        )
        raise OutOfMemoryError(
            f"out of memory in {what} at batch_size {config.batch_size}, image_size "
            f"{config.image_size}; expected a step that fits; try {smaller} in another --workdir"
        ) from error
    except tf.errors.UnimplementedError as error:
        if not config.deterministic:
            raise
        raise UserError(
            f"--deterministic in {what}: {error.message}; expected operations that have a "
            "deterministic kernel; use another --backbone or --augment, or leave --deterministic "
            "out"
        ) from error


@contextlib.contextmanager
def _compile_errors(classifier, xla):
    """Turns an error of XLA's compiler into one line with the operation and the layer, as far as it
    names them.
    """
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.UnimplementedError,
        tf.errors.InternalError,
    ) as error:
        if not xla:
            raise
        node = next(iter(re.findall(r"\{\{node ([^}]+)\}\}", error.message)), "")
        # In a graph Keras numbers the scope of a layer that is called again.
        scopes = [
            name for scope in node.split("/")[:-1] for name in (scope, re.sub(r"_\d+$", "", scope))
        ]
        layers = {layer.name for layer in classifier.backbone._flatten_layers()}
        layer = next((f" of layer {name}" for name in scopes if name in layers), "")
        reason = re.sub(r"\{\{[^}]*\}\}|__inference\S*", "", error.message.split("\n")[0]).strip()
        raise CompileError(
            f"XLA cannot compile {f'operation {node}' if node else 'the step'}{layer}: {reason}; "
            "expected operations that it has on this device; use --xla=off"
        ) from error


def cross_entropy(logits, labels, label_smoothing=0.0):
    """Returns float32 [B], the cross-entropy of float32 logits [B, K] with int32 labels [B].

    With smoothing s the target is (1 - s) one-hot + s / K (Szegedy et al. 2016, arXiv:1512.00567,
    section 7).
    """
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    num_classes = logits.shape[-1]
    targets = (
        tf.one_hot(labels, num_classes) * (1.0 - label_smoothing) + label_smoothing / num_classes
    )
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


class EvalStep:
    """Computes the logits of all examples of a source.

    Args:
        classifier: A `Classifier`.
        source: Where the tensors at the boundary come from; its images are not augmented.
        batch_size: Images at a time.
        xla: Whether it is compiled with XLA.
    """

    def __init__(self, classifier, source, batch_size, xla=False):
        self._classifier, self._source = classifier, source
        self._indices, _ = pipeline.make_batches(np.arange(len(source.examples)), batch_size)
        self._xla = xla
        self._compute = tf.function(self._logits, jit_compile=True) if xla else self._logits
        self._call = tf.function(self._run)

    def _run(self, indices, draws, streamed):
        batch = self._source.lookup(indices, 0) if streamed is None else streamed

        def compute():
            own, own_batch = distribution.local_rows([indices, batch])
            return self._compute(self._source.read(own, 0, draws, own_batch))

        return distribution.gathered(compute)

    def _logits(self, tensors):
        return self._classifier.logits(self._source.boundary, self._source.compute(tensors))

    def prepare(self):
        """Traces and compiles, and computes one batch.

        Raises CompileError if XLA cannot compile it.
        """
        with _compile_errors(self._classifier, self._xla):
            self._batches(self._indices[:1])

    def __call__(self):
        """Returns float32 [N, K]; every example stands in it once."""
        return np.concatenate(self._batches(self._indices))[: len(self._source.examples)]

    def _batches(self, indices):
        """Returns a list of float32 [B, K], one for each row of `indices`."""
        draws = tf.constant(self._source.draws(0))
        stream = iter(self._source.stream(indices, 0)) if self._source.streamed else None
        logits = [
            self._call(tf.constant(row), draws, next(stream) if stream else None) for row in indices
        ]
        return [part.numpy() for part in logits]
