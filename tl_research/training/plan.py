"""What all phases of a run share, decided before the first one."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from tl_research.config import Config, Phase
from tl_research.data.dataset import Dataset
from tl_research.data.mixing import MixUp
from tl_research.errors import UserError, suggestion
from tl_research.extension import Extension
from tl_research.models.classifier import Classifier
from tl_research.optim import schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.run.directory import RunDirectory
from tl_research.training import objective
from tl_research.training.batch import first_arguments
from tl_research.training.compiler import Compiler, memory_errors
from tl_research.training.feature_cache import FeatureCache
from tl_research.training.features import Source, make_views
from tl_research.training.profiler import Profiler
from tl_research.training.state import TrainState
from tl_research.training.steps import TrainStep


class Plan:
    """What all phases of a run share, decided before the first one.

    Args:
        config: Its settings.
        parts: The parts that a user's file replaces.
        classifier: With its initial weights.
        data: Images to train on, and those that select epochs and phases.
        directory: The open run directory.
        xla: Whether steps are compiled with XLA, where they can be.
        started: `time.perf_counter()` when the program began.

    Attributes:
        config, parts, classifier, started: As given.
        evaluated: `classifier` in float32, which all numbers but those of training are of: itself,
            or a copy that `update_evaluated` keeps up with it.
        train, validation: `Examples` of the data.
        num_test: Test images, which are read in the end.
        phases: One `Phase` each, in order.
        steps_per_epoch: Batches of the training images.
        objective: What is minimized, counted and reported.
        cache: Which features are kept.
        feature_mixing: What blends features, or None.
        compiler: What compiles the steps.
        profiler: What profiles some of them.
        saved_paths: Paths of the variables that the run may change.

    Raises:
        UserError: If a phase opens a layer that is not there, or what --feature_cache=memory asks
            for does not fit.
    """

    def __init__(
        self,
        config: Config,
        parts: Extension,
        classifier: Classifier,
        data: Dataset,
        directory: RunDirectory,
        *,
        xla: bool,
        started: float,
    ):
        self.config, self.parts, self.classifier = config, parts, classifier
        self.started, self.evaluated = started, classifier.in_float32()
        _check_step(parts.Step or TrainStep)
        self.train, self.validation, self.num_test = data.train, data.validation, len(data.test)
        self.phases = config.phase_plan
        longest = max(map(len, data.train.members.of_shard))
        self.steps_per_epoch = -(-longest // (config.batch_size // data.train.shards.count))
        self.objective = objective.make(config, data.train, parts.make_objective)
        self.compiler = Compiler(xla, config.xla == "on", directory)
        self.profiler = Profiler(config.profiled_steps, directory.file("train"))
        boundary, trained = self._ever_opened()
        statistics = classifier.batchnorm_statistics() if config.batchnorm == "training" else ()
        self.saved_paths = sorted({*trained, *statistics})
        views = make_views(config, parts.augmentations)
        self.cache = FeatureCache(self, boundary, directory.path, views)
        self.feature_mixing = MixUp(config.manifold_mixup) if config.manifold_mixup else None
        blend = views.mixing or (self.cache.plan.live and self.feature_mixing)
        if blend and data.train.pixels is None:
            raise UserError(
                f"{blend.name} with {len(data.train)} training images that do not fit into "
                f"--cache_pixels={config.cache_pixels}; expected them in memory; raise "
                "--cache_pixels or lower --image_size"
            )
        self.objective.begin(self)

    def _ever_opened(self):
        """Returns the cheapest boundary before all that any phase opens, and the paths of that."""
        classifier, opened = self.classifier, set()
        for phase in self.phases:
            opened.update(classifier.unfreeze(phase.unfreeze))
        for layer in classifier.backbone.layers:
            layer.trainable = layer in opened
        boundary = classifier.graph.cheapest_boundary(classifier.boundary())
        trained = list(classifier.trainable_variables())
        classifier.unfreeze("0%")
        return boundary, trained

    def phase(self, index: int, state: TrainState) -> Phase:
        """Returns a phase, with the epochs that --time_limit left it once that was decided."""
        phase = self.phases[index]
        epochs = state.past.time_limit.get(phase.name, phase.epochs)
        return dataclasses.replace(phase, epochs=epochs)

    def update_evaluated(self) -> None:
        """Gives `evaluated` the weights that `classifier` has now."""
        if self.evaluated is not self.classifier:
            self.evaluated.assign(self.classifier.values(self.saved_paths))

    def left(self, state: TrainState) -> Iterator[int]:
        """Yields the places of the phases that are left to train."""
        for index, phase in enumerate(self.phases):
            if index >= state.position.phase_index and phase.epochs and not state.past.test:
                yield index

    def check(self) -> None:
        """Raises UserError now, rather than hours later.

        It does if a phase names no layer, a pattern no variable, or, with --deterministic, a step
        cannot be repeated exactly.
        """
        self._check_selection()
        joined: dict[str, str] = {}
        previous = None
        for phase in self.phases:
            self.classifier.unfreeze(phase.unfreeze)
            joined = self.joined(phase, joined)
            optimizer = self.make_optimizer(joined)
            if previous:
                optimizer.carry_over(previous)
            previous = optimizer
            if self.config.deterministic and phase.epochs:
                source = self.cache.live_source("train", self.classifier.boundary())
                with memory_errors(self.config, f"phase {phase.name}"):
                    rate_at = schedules.make_schedule(phase, 1)
                    make = self.step_maker(optimizer, source, rate_at)
                    self.compiler.prepared(make, *first_arguments(self, source, 0, 1))
        self.classifier.unfreeze("0%")

    def _check_selection(self):
        """Tries `epoch_ends`, on logits of zeros, and looks for what the run selects by."""
        by = self.config.select_by
        logits = np.zeros((len(self.validation), self.classifier.num_classes), np.float32)
        found = self.validated(logits)
        known = (*found, *self.own_numbers(_plausible_row(self, found), logits))
        if by not in known:
            raise unmeasured(by, known, ", or a column of an extension")

    def validated(self, logits: np.ndarray) -> dict[str, float]:
        """Returns {`val_<name>`: number} of validation logits, float32 [N, K]."""
        found = self.objective.evaluate(logits, self.validation.labels)
        return {f"val_{name}": value for name, value in found.items()}

    def own_numbers(self, row: dict, logits: np.ndarray) -> dict[str, float]:
        """Returns what the extension's `epoch_ends` makes of an epoch.

        Raises:
            UserError: If that is anything but numbers under names of their own.
        """
        if not self.parts.epoch_ends:
            return {}
        numbers = self.parts.epoch_ends(self, dict(row), logits.copy())
        if not isinstance(numbers, Mapping):
            numbers = {None: numbers}
        for name, value in numbers.items():
            is_number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"
            if not isinstance(name, str) or not is_number or name in row:
                raise UserError(
                    f"epoch_ends returned {value!r} as {name!r}; expected {{name: number}}, with "
                    "names that metrics.csv does not have yet; correct it"
                )
        return {name: float(value) for name, value in numbers.items()}

    def joined(self, phase: Phase, before: dict[str, str]) -> dict[str, str]:
        """Returns {path: phase since which the variable trains}, in order of joining.

        A variable that was closed meanwhile joins anew: its moments are of another time.
        """
        trainable = self.classifier.trainable_variables()
        joined = {path: name for path, name in before.items() if path in trainable}
        return joined | {path: phase.name for path in trainable if path not in joined}

    def make_optimizer(self, joined: dict[str, str]) -> GroupedOptimizer:
        """Returns the optimizer of what is open now."""
        config, classifier = self.config, self.classifier
        groups = make_param_groups(
            classifier.trainable_variables(),
            classifier.variable_blocks(),
            list(classifier.variables),
            config,
            joined,
        )
        return GroupedOptimizer(groups, config, self.parts.make_optimizer)

    def step_maker(
        self, optimizer: GroupedOptimizer, source: Source, rate_at: Callable[[tf.Tensor], tf.Tensor]
    ) -> Callable[[bool], TrainStep]:
        """Returns a function that makes the training step, with XLA or without."""
        kind = self.parts.Step or TrainStep

        def make(xla: bool) -> TrainStep:
            step = kind(self.classifier, optimizer, source, self.objective, rate_at, xla=xla)
            known = {id(variable.value) for variable in self.classifier.variables.values()}
            for part in (step, self.objective):
                _check_state(part, known)
            return step

        return make


def unmeasured(by: str, known: Iterable[str], more: str = "") -> UserError:
    """Returns the error where a run selects by what is not measured.

    Args:
        by: What --select_by names.
        known: What is measured.
        more: The end of the text.
    """
    known = list(known)
    return UserError(
        f"--select_by={by} is not measured; expected one of {', '.join(known)}"
        f"{suggestion(by, known)}{more}",
        flag="select_by",
    )


def _plausible_row(plan, found):
    """Returns a row of `metrics.csv` that an epoch could have, with these validation metrics."""
    counted, phase = plan.objective.counted.values(), plan.phases[0]
    trained = {f"train_{name}": 1.0 for name in ("loss", *counted)}
    row = {"phase": phase.name, "epoch": 1, "step": plan.steps_per_epoch, **trained, **found}
    return row | {"images_per_second": 1.0, "seconds": 1.0, "learning_rate": phase.learning_rate}


def _check_state(part, known):
    """Raises UserError if a part keeps variables of its own, which no checkpoint would hold."""
    for name, value in vars(part).items():
        for leaf in tf.nest.flatten(value):
            if isinstance(leaf, (tf.Variable, keras.Variable)) and id(leaf) not in known:
                raise UserError(
                    f"{type(part).__name__}.{name} is a variable of its own, which a resumed run "
                    "would lack; expected none; keep constants as tensors, made in the "
                    "objective's begin(plan), and draw from batch.step"
                )


def _check_step(kind):
    """Raises UserError unless a class can be called as `TrainStep` is."""
    if not (isinstance(kind, type) and issubclass(kind, TrainStep)):
        raise UserError(
            f"extension: Step is {kind!r}; expected a subclass of training.steps.TrainStep; "
            "derive it from that"
        )
    for name in ("step", "summed_gradients", "gradients", "logits", "update"):
        received, expected = (inspect.signature(getattr(k, name)) for k in (kind, TrainStep))
        try:
            received.bind(*expected.parameters)
        except TypeError as error:
            raise UserError(
                f"extension: Step.{name}{received} ({error}); expected "
                f"({', '.join(expected.parameters)}); write it so"
            ) from error
