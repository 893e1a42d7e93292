"""The explicit loop: decides when to step, evaluate, stop, save and restore. Holds no maths.

Of all that trains, this alone reads a clock, writes summaries and saves checkpoints.
"""

import collections
import contextlib
import dataclasses
import math
import sys
import time

import numpy as np
import tensorflow as tf

from tl_research import distribution
from tl_research.data import pipeline
from tl_research.errors import CheckpointError, CompileError, Interrupted, NonFiniteError, UserError
from tl_research.files import csv_text
from tl_research.optim import loss_scale, schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.reporting import pages, results
from tl_research.reporting.progress import progress_bar
from tl_research.training import audit, checkpoints
from tl_research.training.feature_cache import FeatureCache
from tl_research.training.profiler import Profiler
from tl_research.training.run_directory import with_defaults
from tl_research.training.state import TrainState
from tl_research.training.steps import EpochInputs, EvalStep, TrainStep, memory_errors

# a step takes a tenth of a second or more: the call costs nothing, signals are answered soon
_LIVE_STEPS_PER_CALL = 4
_CACHED_STEPS_PER_CALL = 16


class Trainer:
    """Trains a classifier phase by phase.

    Args:
        config: `tl_research.config.Config`.
        classifier: A `Classifier` with its initial weights.
        train: `Examples` to train on.
        validation: `Examples` that select epochs and phases.
        directory: The open `RunDirectory`.
        xla: Whether steps are compiled with XLA, where they can be.
        signals: `tl_research.signals.Signals`.
        classes: Names in the order of the labels; without them their numbers are shown.

    Attributes:
        classifier: As given; its weights change.
        state: `TrainState`.
        cache: `FeatureCache`.
        xla: Whether steps are compiled with XLA: as given, until one cannot be under --xla=auto.

    Raises:
        UserError: If a phase opens a layer that is not there, or what --feature_cache=memory asks
            for does not fit.
    """

    program = "train.py"  # that goes on with an interrupted run

    def __init__(
        self, config, classifier, train, validation, directory, *, xla, signals, classes=None
    ):
        self._classes = classes or tuple(map(str, range(classifier.head.units)))
        self._profiler = Profiler(config.profiled_steps, directory.file("train"))
        self._config, self.classifier, self._directory = config, classifier, directory
        self._train, self._validation = train, validation
        self.xla, self._signals = xla, signals
        self._plan = config.phase_plan
        self.state = TrainState()
        # {path: array} of the best epoch of this and of finished phases, and what the latter says
        # to the validation images
        self._arrays = {"best": {}, "selected": {}, "logits": {}}
        self._optimizer = None
        self._identity = directory.identity(config)
        self._recent_losses = collections.deque(maxlen=101)  # of the last calls in this phase
        self._saved_step, self._saved_at = 0, time.monotonic()  # of the last checkpoint
        self._class_weights = (
            balanced_weights(train.labels, len(self._classes))
            if config.class_weights == "balanced"
            else None
        )
        self.cache = FeatureCache(
            config, classifier, train, validation, self._earliest_boundary(), directory.path
        )
        if config.mixup and train.pixels is None:
            raise UserError(
                f"--mixup={config.mixup} with {len(train)} training images that do not fit into "
                f"--cache_pixels={config.cache_pixels}; expected them in memory; raise "
                "--cache_pixels or lower --image_size"
            )

    # What every phase needs.

    def _earliest_boundary(self):
        """Returns the cheapest boundary before everything that any phase opens: what lies before it
        never changes.
        """
        opened = set()
        for phase in self._plan:
            opened.update(self.classifier.unfreeze(phase.unfreeze))
        for layer in self.classifier.backbone.layers:
            layer.trainable = layer in opened
        boundary = self.classifier.graph.cheapest_boundary(self.classifier.boundary())
        self._ever_trained = list(self.classifier.trainable_variables())
        self.classifier.unfreeze("0%")
        return boundary

    @contextlib.contextmanager
    def _timed(self, kind):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.state.run_seconds[kind] += time.perf_counter() - start

    @property
    def unusual_plan(self):
        """Lines that say what this run does to inputs, targets and weights that others do not."""
        config, spec, lines = self._config, self.classifier.spec, []
        if config.preprocessing not in ("auto", spec.preprocessing):
            lines.append(
                f"preprocessing: {config.preprocessing}, where {spec.name} was trained with "
                f"{spec.preprocessing}"
            )
        if self._class_weights is not None:
            weights = ", ".join(
                f"{name} {weight:.3g}" for name, weight in zip(self._classes, self._class_weights)
            )
            lines.append(f"class weights: {weights}")
        if config.mixup:
            lines.append(
                f"MixUp: images and labels are blended in shares of Beta({config.mixup:g}, "
                f"{config.mixup:g})"
            )
        if config.ema_decay:
            lines.append(
                f"averages: of the trained weights, decay {config.ema_decay:g} a step; evaluated, "
                "selected and saved"
            )
        return lines

    @property
    def selected_logits(self):
        """float32 [N, K], what the selected weights say to the validation images, or None if no
        phase was trained.
        """
        return self._arrays["logits"].get("selected")

    def _make_optimizer(self, phase):
        """Returns this phase's optimizer; groups that go on keep their state."""
        config, trainable = self._config, self.classifier.trainable_variables()
        # In order of joining. A variable that was closed meanwhile joins anew: its moments are of
        # another time.
        joined = {path: name for path, name in self.state.joined.items() if path in trainable}
        joined.update({path: phase.name for path in trainable if path not in joined})
        self.state.joined = joined
        blocks = {}
        for index, (block, layers) in enumerate(self.classifier.backbone_blocks):
            for path in self.classifier.variables:
                if path.split("/")[0] == "backbone" and path.split("/")[1] in layers:
                    blocks[path] = (index, block)
        groups = make_param_groups(
            trainable,
            blocks,
            list(self.classifier.variables),
            backbone_lr_multiplier=config.backbone_lr_multiplier,
            layer_decay=config.layer_decay,
            lr_multiplier=config.lr_multiplier,
            joined=joined,
        )
        return GroupedOptimizer(
            groups,
            config.optimizer,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            clip_norm=config.clip_norm,
            ema_decay=config.ema_decay,
        )

    def check_plan(self):
        """Raises UserError now, rather than hours later.

        It does if a phase names no layer, a pattern no variable, or, with --deterministic, a step
        cannot be repeated exactly.
        """
        state = self.state
        self.state = TrainState()
        for phase in self._plan:
            self.classifier.unfreeze(phase.unfreeze)
            optimizer = self._make_optimizer(phase)
            if self._config.deterministic and phase.epochs:
                self._try_step(phase, optimizer)
        self.classifier.unfreeze("0%")
        self.state = state

    def _try_step(self, phase, optimizer):
        """Computes all that a step does."""
        source = self.cache.live_source("train", self.classifier.boundary())
        with memory_errors(self._config, f"phase {phase.name}"):
            self.prepared(
                lambda: self._make_step(phase, optimizer, source, 1),
                *self._first_arguments(source, 1),
            )

    def _first_arguments(self, source, steps_per_call):
        """Returns the arguments of `TrainStep.prepare` that are like those of the next epoch's
        calls.
        """
        epoch = self._epoch_inputs(source)
        if not source.streamed:
            return (epoch,)
        return epoch, stack(
            [next(iter(source.stream(epoch.indices[:1].numpy(), int(epoch.view))))], steps_per_call
        )

    def prepared(self, make, *arguments):
        """Returns a step, of training or evaluation, that is compiled.

        Without XLA where that cannot and need not be.

        Args:
            make: Returns the step, by `self.xla`.
            arguments: Of its `prepare`.

        Raises:
            CompileError: If XLA cannot compile it and --xla=on.
        """
        try:
            step = make()
            step.prepare(*arguments)
        except CompileError as error:
            if self._config.xla == "on":
                raise
            print(f"warning: {error}; going on without XLA", file=sys.stderr, flush=True)
            self.xla = False
            if recorded := self._directory.read_json("run.json"):
                # a resumed run does the same
                self._directory.write_json("run.json", {**recorded, "xla": False})
            step = make()
            step.prepare(*arguments)
        return step

    def describe_phase(self, phase, optimizer, opened):
        """Returns the line that says what a phase trains."""
        total = _num_parameters(self.classifier.variables.values())
        trainable = _num_parameters(optimizer.variables)
        first = next((layer.name for layer in opened if layer.trainable_variables), "none")
        rates = ", ".join(
            f"{name} {rate:.3g}"
            for name, rate in optimizer.learning_rates(phase.learning_rate).items()
        )
        return (
            f"phase {phase.name}: {len(opened)} of {len(self.classifier.backbone.layers)} backbone "
            f"layers open, {trainable:,} of {total:,} parameters train; first unfrozen: {first}; "
            f"rates: {rates}; up to {phase.epochs} epochs"
        )

    # Checkpoints.

    def save(self):
        """Commits a checkpoint of the current state; of several workers the chief does."""
        if not distribution.is_chief():
            return
        self._summaries.flush()  # what a crash took of them would not be written again
        variables = {path: self.classifier.variables[path].numpy() for path in self._saved_paths()}
        arrays = {f"variables/{path}": array for path, array in variables.items()}
        for kind, values in (
            *self._arrays.items(),
            ("optimizer", self._optimizer.state() if self._optimizer else {}),
        ):
            arrays.update({f"{kind}/{name}": array for name, array in values.items()})
        state = {**dataclasses.asdict(self.state), "run": self._identity}
        checkpoints.save(self._directory.file("checkpoints"), state, arrays)
        self._saved_step, self._saved_at = self.state.global_step, time.monotonic()

    def _saved_paths(self):
        """The paths of what a run may change.

        The rest comes from the pretrained weights and is checked by its hash.
        """
        statistics = (
            self.classifier.batchnorm_statistics() if self._config.batchnorm == "training" else ()
        )
        return sorted({*self._ever_trained, *statistics})

    def restore(self):
        """Restores the newest checkpoint, if there is one; returns whether there was.

        Raises:
            CheckpointError: If none can be used, or it is not of this network.
        """
        # weights, bests, slots
        largest = (
            32 * _num_parameters(self.classifier.variables.values())
            + self._logits_bytes()
            + (64 << 20)
        )
        loaded = checkpoints.load_newest(self._directory.file("checkpoints"), largest)
        if loaded is None:
            return False
        state, arrays = loaded
        if other := sorted(set(with_defaults(state.pop("run", ()))) ^ set(self._identity)):
            raise CheckpointError(
                f"the checkpoint is of another run, which differs in {', '.join(other[:5])}; "
                "expected this run's; put it back or use --resume=never"
            )
        self._saved_step = state["global_step"]
        try:
            self.state = TrainState(**state)
        except TypeError as error:
            raise CheckpointError(
                f"the checkpoint is of another version of this program ({error}); expected its "
                "own; use that version or --resume=never"
            ) from error
        kinds = {"variables": {}, "optimizer": {}, "best": {}, "selected": {}, "logits": {}}
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CheckpointError(
                    f"the checkpoint holds numbers in {name} that are not finite; expected those "
                    "of a run, which saves none; use --resume=never"
                )
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = array
        self._assign(kinds["variables"], self._saved_paths())
        self._arrays = {kind: kinds[kind] for kind in self._arrays}
        self._restored_optimizer = kinds["optimizer"]
        unchanged = {
            path: v
            for path, v in self.classifier.variables.items()
            if path not in set(self._saved_paths())
        }
        different = [
            path
            for path, value in audit.hash_variables(unchanged).items()
            if self.state.phase_hashes.get(path, value) != value
        ]
        if different:
            raise CheckpointError(
                f"{len(different)} frozen variables are not those the run began with "
                f"({different[0]}); expected the same pretrained weights; restore them or use "
                "--resume=never"
            )
        return True

    def _logits_bytes(self):
        """Returns how much of a checkpoint is what the selected weights say to the validation
        images.
        """
        return 4 * len(self._validation) * self.classifier.head.units

    def _assign(self, arrays, paths):
        variables = self.classifier.variables
        different = [
            path
            for path in paths
            if path not in arrays or arrays[path].shape != tuple(variables[path].shape)
        ]
        if different:
            raise CheckpointError(
                f"the checkpoint does not fit the network at {', '.join(different[:5])}; expected "
                "its own run; use --resume=never"
            )
        for path in paths:
            variables[path].assign(arrays[path])

    # Training.

    def run(self, summaries):
        """Trains all phases that are left; afterwards the classifier has the selected weights.

        Args:
            summaries: `tl_research.reporting.summaries.Summaries`.

        Raises:
            AuditError, NonFiniteError, OutOfMemoryError, StorageError, Interrupted: See
                `tl_research.errors`.
        """
        self._summaries = summaries
        restored = bool(self.state.phase_hashes)
        # weights, those of the best epoch and of the phase before, and two slots, at most
        if not restored:
            num_parameters = _num_parameters(
                self.classifier.variables[path] for path in self._saved_paths()
            )
            copies = 6 if self._config.ema_decay else 5
            checkpoints.check_room(
                self._directory.path, copies * 4 * num_parameters + self._logits_bytes()
            )
        if not summaries.has("train", "first_batch", 0):
            self._show_first_batch()
        for index, phase in enumerate(self._plan):
            if index < self.state.phase_index or not phase.epochs or self.state.test:
                continue
            with memory_errors(self._config, f"phase {phase.name}"):
                self._run_phase(index, phase, resume=restored and index == self.state.phase_index)
            restored = False
        self._profiler.stop()
        if self.state.selected:
            self._assign(self._arrays["selected"], self._saved_paths())

    def _show_first_batch(self):
        """Shows the first batch of the first epoch as the network sees it."""
        live = self.cache.live_source("train", self.classifier.boundary())
        epoch = self._epoch_inputs(live)
        row = tf.boolean_mask(epoch.indices[0], epoch.weights[0] > 0)
        mixing = epoch.mixing and [tf.gather(of_all, row) for of_all in epoch.mixing]
        images = live.read(row, epoch.view, epoch.draws, self._train.images(row.numpy()), mixing)
        pages.first_batch(
            self._summaries,
            images.numpy(),
            self.classifier.preprocessing(images),
            self.classifier.spec.preprocessing,
        )

    def _run_phase(self, index, phase, resume):
        phase_start = time.perf_counter()
        config, state = self._config, self.state
        opened = self.classifier.unfreeze(phase.unfreeze)
        previous, self._optimizer = self._optimizer, self._make_optimizer(phase)
        self._recent_losses.clear()
        if not resume:
            if self._arrays["selected"]:
                self._assign(self._arrays["selected"], self._saved_paths())
            state.phase_index = index
            state.begin_phase(audit.hash_variables(self.classifier.variables))
            self._arrays["best"] = {}
            if previous:
                self._optimizer.carry_over(previous)
            self._optimizer.restart_averages()  # of the weights that the phase before selected
        else:
            self._optimizer.load_state(self._restored_optimizer)
        description, start = (
            self.describe_phase(phase, self._optimizer, opened),
            state.global_step - state.phase_step,
        )
        print(description, flush=True)
        pages.phase_begins(
            self._summaries, start, description, self._optimizer.groups, phase.learning_rate
        )
        boundary = self.classifier.boundary()
        with self._timed("features"):
            source, validation = (
                self.cache.source(side, boundary) for side in ("train", "validation")
            )
        steps_per_epoch = -(-len(self._train) // config.batch_size)
        num_steps = steps_per_epoch * phase.epochs
        warmup_steps, warning = schedules.clip_warmup(phase.warmup_steps, num_steps)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        compile_start = time.perf_counter()
        first = self._first_arguments(source, self._steps_per_call(source, steps_per_epoch))

        def make_step():
            return self._make_step(
                dataclasses.replace(phase, warmup_steps=warmup_steps),
                self._optimizer,
                source,
                num_steps,
            )

        step, xla = self.prepared(make_step, *first), self.xla
        evaluate = self.prepared(
            lambda: EvalStep(self.classifier, validation, config.batch_size, self.xla)
        )
        if xla != self.xla:  # a resumed run would have neither
            step = self.prepared(make_step, *first)
        compile_seconds = time.perf_counter() - compile_start
        state.compile_seconds += compile_seconds
        print(
            f"phase {phase.name}: steps traced and compiled in {compile_seconds:.1f} s, XLA "
            f"{'on' if self.xla else 'off'}",
            flush=True,
        )
        seconds_before = state.seconds
        with self._signals.held():
            if not resume:
                self.save()
            while not state.phase_over(phase):
                self._run_epoch(phase, source, step, steps_per_epoch)
                self._finish_epoch(phase, evaluate)
                state.seconds = seconds_before + time.perf_counter() - phase_start
                self.save()
                self._stop_if_signalled()
        self._finish_phase(phase, evaluate)
        # Not saved here: the next commit is the start of the next phase, and doing this again
        # changes nothing.
        state.finished[-1]["seconds"] = seconds_before + time.perf_counter() - phase_start

    def _make_step(self, phase, optimizer, source, num_steps):
        """Returns the `TrainStep` of a phase."""
        return TrainStep(
            self.classifier,
            optimizer,
            source,
            phase,
            num_steps,
            label_smoothing=self._config.label_smoothing,
            class_weights=self._class_weights,
            xla=self.xla,
        )

    def _epoch_inputs(self, source):
        """Returns the `EpochInputs` of the next epoch; of the last one, when all are done."""
        config, mixing = self._config, None
        epoch = min(self.state.epoch + 1, max(1, sum(phase.epochs for phase in self._plan)))
        indices, weights = pipeline.make_batches(
            pipeline.epoch_order(config.seed, epoch, len(self._train)), config.batch_size
        )
        view = self.cache.views.of_epoch(epoch)
        if config.mixup:
            mixing = tuple(
                map(
                    tf.constant,
                    pipeline.mixup_draws(config.seed, epoch, len(self._train), config.mixup),
                )
            )
        return EpochInputs(*map(tf.constant, (indices, weights, source.draws(view), view)), mixing)

    def _steps_per_call(self, source, steps_per_epoch):
        """Returns the largest number of steps in one call."""
        default = _CACHED_STEPS_PER_CALL if source.cached else _LIVE_STEPS_PER_CALL
        if source.cached and source.boundary == (self.classifier.graph.output,):
            # only the head is computed: an epoch takes a fraction of a second
            default = steps_per_epoch
        per_call = min(self._config.steps_per_call or default, steps_per_epoch)
        # of its batches so many are in memory
        return min(per_call, default) if source.streamed else per_call

    def _run_epoch(self, phase, source, step, steps_per_epoch):
        """Takes the steps of one epoch that are left."""
        config, state = self._config, self.state
        inputs = self._epoch_inputs(source)
        stream = (
            iter(source.stream(inputs.indices[state.epoch_step :].numpy(), int(inputs.view)))
            if source.streamed
            else None
        )
        per_call = self._steps_per_call(source, steps_per_epoch)
        with progress_bar(
            f"{phase.name} epoch {state.epoch + 1}", unit="images", scale=config.batch_size
        ) as progress:
            while state.epoch_step < steps_per_epoch:
                count = self._profiler.limit(
                    state.global_step, min(per_call, steps_per_epoch - state.epoch_step)
                )
                if config.checkpoint_every_steps:
                    count = min(
                        count,
                        config.checkpoint_every_steps
                        - state.global_step % config.checkpoint_every_steps,
                    )
                start = time.perf_counter()
                streamed = stack([next(stream) for _ in range(count)], per_call) if stream else None
                waited = time.perf_counter() - start
                with self._profiler.mark(state.global_step):
                    totals = step(
                        inputs,
                        state.epoch_step,
                        count,
                        state.global_step,
                        state.phase_step,
                        streamed,
                        state.scaling,
                    )
                    totals = {name: tensor.numpy() for name, tensor in totals.items()}
                elapsed = time.perf_counter() - start
                self._account(phase, step, totals, elapsed, waited)
                progress(state.epoch_step, steps_per_epoch)
                # the epoch's end is saved with its evaluation
                if self._save_is_due() and state.epoch_step < steps_per_epoch:
                    self.save()
                self._stop_if_signalled()

    def _save_is_due(self):
        """Returns whether --checkpoint_every_steps or --checkpoint_every_seconds ask for a
        checkpoint now.
        """
        steps, seconds = self._config.checkpoint_every_steps, self._config.checkpoint_every_seconds
        return bool(
            steps
            and self.state.global_step % steps == 0
            or seconds
            and time.monotonic() - self._saved_at >= seconds
        )

    def _account(self, phase, step, totals, elapsed, waited):
        """Adds the metrics of one call to the state."""
        state, steps = self.state, int(totals["steps"])
        state.epoch_step += steps
        state.phase_step += steps
        state.global_step += steps
        state.traces = max(state.traces, step.traces)
        state.train_seconds += elapsed
        state.run_seconds["train"] += elapsed
        paths = [path for group in self._optimizer.groups for path in group.paths]
        for path, peak in zip(paths, totals["gradient_peak"].tolist()):
            state.gradient_peaks[path] = max(state.gradient_peaks.get(path, 0.0), peak)
        state.moved = list(
            dict.fromkeys(
                [*state.moved, *(path for path, moved in zip(paths, totals["moved"]) if moved)]
            )
        )
        state.largest_rate = max(state.largest_rate, float(totals["largest_rate"]))
        norms = {
            group.name: float(norm)
            for group, norm in zip(self._optimizer.groups, totals["gradient_norm_sum"])
        }
        if scaled := "loss_scale" in totals:
            state.scaling = {name: float(totals[name]) for name in state.scaling}
            state.skipped_steps += int(totals["skipped_steps"])
            if not totals["finite"]:
                raise NonFiniteError(
                    f"{loss_scale.MAX_SKIPPED} steps in a row had gradients that are not finite in "
                    f"float16, the last at phase {phase.name} step {state.global_step + 1}, loss "
                    f"scale {state.scaling['loss_scale']:g}; expected finite numbers at some "
                    "scale; none of them was applied and the last good checkpoint is "
                    f"{checkpoints.step_name(self._saved_step)}; try a lower --learning_rate or "
                    "another --precision"
                )
        if not totals["finite"]:
            infinite = [name for name, norm in norms.items() if not math.isfinite(norm)]
            raise NonFiniteError(
                f"non-finite {'gradient in group ' + infinite[0] if infinite else 'loss'} at phase "
                f"{phase.name} step {state.global_step + 1}; expected finite numbers; the update "
                "was not applied and the last good checkpoint is "
                f"{checkpoints.step_name(self._saved_step)}; try a lower --learning_rate or "
                "--clip_norm=1"
            )
        sums = state.epoch_totals
        for name in ("loss_sum", "correct", "examples", *(("skipped_steps",) if scaled else ())):
            sums[name] = sums.get(name, 0.0) + float(totals[name])
        if totals["examples"]:
            self._warn_of_an_explosion(phase, float(totals["loss_sum"] / totals["examples"]))
        sums["seconds"] = sums.get("seconds", 0.0) + elapsed
        sums["waited"] = sums.get("waited", 0.0) + waited
        sums["learning_rate"] = float(totals["learning_rate"])
        rates = self._optimizer.learning_rates(float(totals["learning_rate"]))
        applied = steps - int(totals.get("skipped_steps", 0))
        for (name, rate), ratio in zip(rates.items(), totals["update_ratio"]):
            self._summaries.scalar("train", f"learning_rate/{name}", rate, state.global_step)
            if applied:
                self._summaries.scalar(
                    "train", f"gradient_norm/{name}", norms[name] / applied, state.global_step
                )
                self._summaries.scalar("train", f"update_ratio/{name}", ratio, state.global_step)
        if scaled:
            self._summaries.scalar(
                "train", "loss_scale", state.scaling["loss_scale"], state.global_step
            )
            self._summaries.scalar("train", "skipped_steps", state.skipped_steps, state.global_step)
        self._summaries.graph(
            "train", f"step/{phase.name}", step.graph, state.global_step - state.phase_step
        )

    def _warn_of_an_explosion(self, phase, loss):
        """Says so if the mean loss of a call is over 100 times the median of those before it."""
        if len(self._recent_losses) >= 5 and loss > 100 * max(np.median(self._recent_losses), 0.01):
            print(
                f"warning: the loss of phase {phase.name} rose to {loss:.4g} at step "
                f"{self.state.global_step}, from a median of "
                f"{np.median(self._recent_losses):.4g}; the likely cause: the learning rate "
                f"{phase.learning_rate:g} is too high",
                file=sys.stderr,
            )
            self._recent_losses.clear()
        self._recent_losses.append(loss)

    def _finish_epoch(self, phase, evaluate):
        """Evaluates, records the epoch, and keeps its weights if they are the best of the phase."""
        state, sums = self.state, self.state.epoch_totals
        with self._timed("evaluate"), self._averaged():
            logits = evaluate()
            loss, accuracy = results.loss_and_accuracy(logits, self._validation.labels)
            # NaN is never best; a tie keeps the earlier epoch, so that it does not matter where a
            # run was cut.
            best = math.isfinite(loss) and (state.best is None or loss < state.best["val_loss"])
            if best:
                self._arrays["best"] = {
                    path: self.classifier.variables[path].numpy() for path in self._saved_paths()
                }
        state.epoch += 1
        state.phase_epoch += 1
        examples = sums["examples"] or math.nan  # none, if every step was skipped for its loss
        row = {
            "phase": phase.name,
            "epoch": state.epoch,
            "step": state.global_step,
            "train_loss": sums["loss_sum"] / examples,
            "train_accuracy": sums["correct"] / examples,
            "val_loss": loss,
            "val_accuracy": accuracy,
            "images_per_second": sums["examples"] / sums["seconds"],
            "seconds": sums["seconds"],
            "learning_rate": sums["learning_rate"],
        }
        scaling = {}
        if "skipped_steps" in sums:
            scaling = {
                "loss_scale": state.scaling["loss_scale"],
                "skipped_steps": int(sums["skipped_steps"]),
            }
        state.epoch_step, state.epoch_totals = 0, {}
        if state.phase_epoch == 1 and state.selected and math.isfinite(loss):
            self._warn_of_a_fall(phase, state.selected, row)
        if best:
            state.best, state.wait = (
                {"epoch": state.epoch, "val_loss": loss, "val_accuracy": accuracy},
                0,
            )
        else:
            state.wait += 1
        state.history.append({**row, **scaling})
        self._directory.write_text(
            "metrics.csv", csv_text((*results.METRICS_COLUMNS, *scaling), state.history)
        )
        for side, prefix in (("train", "train"), ("validation", "val")):
            for tag in ("loss", "accuracy"):
                self._summaries.scalar(side, tag, row[f"{prefix}_{tag}"], state.global_step)
        self._summaries.scalar(
            "train", "images_per_second", row["images_per_second"], state.global_step
        )
        self._summaries.scalar(
            "train", "waiting_for_data", sums["waited"] / sums["seconds"], state.global_step
        )
        pages.epoch_ends(
            self._summaries, state.global_step, logits, self._validation.labels, self._classes
        )
        print(
            f"{phase.name} epoch {state.epoch}: loss {row['train_loss']:.4f}, accuracy "
            f"{row['train_accuracy']:.4f}, val_loss {loss:.4f}, val_accuracy "
            f"{accuracy:.4f}{' (best)' if best else ''}, {row['images_per_second']:.0f} images/s, "
            f"{row['seconds']:.1f} s"
            + (
                ", loss scale {loss_scale:g}, {skipped_steps} steps skipped".format(**scaling)
                if scaling
                else ""
            ),
            flush=True,
        )

    @contextlib.contextmanager
    def _averaged(self):
        """Inside, the trained variables have their averages, if --ema_decay asks for them."""
        averages = self._optimizer.averages()
        trained = {path: self.classifier.variables[path].numpy() for path in averages}
        self._assign(averages, averages)
        try:
            yield
        finally:
            self._assign(trained, trained)

    def _warn_of_a_fall(self, phase, before, row):
        """Says so if validation falls at a phase switch by more than two standard errors of its
        accuracy.
        """
        share, count = before["val_accuracy"], len(self._validation)
        noise = 2 * math.sqrt(max(share * (1 - share), 1 / count) / count)
        if row["val_accuracy"] < share - noise:
            cause = (
                "BatchNorm runs in training mode"
                if self._config.batchnorm == "training"
                else f"the learning rate {phase.learning_rate:g} is too high for the open layers"
            )
            print(
                f"warning: val_accuracy fell from {share:.4f} to {row['val_accuracy']:.4f} at the "
                f"switch to {phase.name}, more than noise; the likely cause: {cause}",
                file=sys.stderr,
            )

    def _finish_phase(self, phase, evaluate):
        """Audits the phase, restores and re-evaluates its best weights, and selects between it and
        the ones before.
        """
        state, variables = self.state, self.classifier.variables
        counts = audit.audit_phase(
            phase.name,
            state.phase_hashes,
            variables,
            state.moved,
            self.classifier.batchnorm_statistics(),
            audit.largest_updates(
                self._config.optimizer,
                self._optimizer.groups,
                state.gradient_peaks,
                state.largest_rate,
            ),
            statistics_may_move=self._config.batchnorm == "training",
        )
        if state.best is None:
            raise NonFiniteError(
                f"val_loss was never finite in phase {phase.name}; expected a number; try a lower "
                "--learning_rate"
            )
        self._assign(self._arrays["best"], self._saved_paths())
        with self._timed("evaluate"):
            logits = evaluate()
            loss, accuracy = results.loss_and_accuracy(logits, self._validation.labels)
        pages.phase_ends(
            self._summaries,
            state.global_step,
            counts,
            self._optimizer.groups,
            pages.worst_mistakes(logits, self._validation, self._classes),
        )
        trainable, total = (
            _num_parameters(self._optimizer.variables),
            _num_parameters(variables.values()),
        )
        skipped = [
            row["skipped_steps"]
            for row in state.history
            if row["phase"] == phase.name and "skipped_steps" in row
        ]
        state.finished.append(
            {
                "name": phase.name,
                "epochs": state.phase_epoch,
                "best_epoch": state.best["epoch"],
                "val_accuracy": accuracy,
                "val_loss": loss,
                "trainable_parameters": trainable,
                "frozen_parameters": total - trainable,
                "traces": state.traces,
                "compile_seconds": state.compile_seconds,
                "images_per_second": state.phase_epoch * len(self._train) / state.train_seconds,
                "seconds": 0.0,
                "audit": counts,
                **({"skipped_steps": sum(skipped)} if skipped else {}),
            }
        )
        print(
            f"audit {phase.name}: {counts['trainable_changed']}/{counts['trainable_total']} "
            f"trainable variables changed, {counts['frozen_changed']}/{counts['frozen_total']} "
            f"frozen changed, {counts['batchnorm_stats_changed']} BatchNorm statistics changed; "
            f"traced {state.traces} time; best weights of epoch {state.best['epoch']}: val_loss "
            f"{loss:.4f}, val_accuracy {accuracy:.4f}",
            flush=True,
        )
        if state.selected and loss >= state.selected["val_loss"]:
            print(
                f"{phase.name} did not improve val_loss ({loss:.4f} vs "
                f"{state.selected['val_loss']:.4f}); keeping phase {state.selected['phase']}, "
                f"epoch {state.selected['epoch']}",
                flush=True,
            )
        else:
            state.selected = {
                "phase": phase.name,
                "epoch": state.best["epoch"],
                "val_loss": loss,
                "val_accuracy": accuracy,
            }
            self._arrays["selected"], self._arrays["logits"] = (
                self._arrays["best"],
                {"selected": logits},
            )

    def _stop_if_signalled(self):
        """Ends the run after a checkpoint if a signal came in, here or at another worker."""
        number = max(distribution.of_all_workers(self._signals.number or 0))
        if not number:
            return
        self.save()
        raise Interrupted(
            f"interrupted by signal {number} after step {self.state.global_step}; everything is "
            f"saved; go on with {self._signals.resume}",
            number,
        )


def stack(batches, size):
    """Returns tensors [size, B, ...] of batches, or lists of tensors.

    Filled up, so that a step is traced once.
    """
    return tf.nest.map_structure(
        lambda *tensors: tf.stack(tensors), *batches, *batches[-1:] * (size - len(batches))
    )


def balanced_weights(labels, num_classes):
    """Returns float64 [num_classes], N / (num_classes N_c): classes count alike, and the mean over
    all examples is 1.
    """
    return len(labels) / (num_classes * np.maximum(np.bincount(labels, minlength=num_classes), 1))


def _num_parameters(variables):
    return sum(math.prod(variable.shape) for variable in variables)
