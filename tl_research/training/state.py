"""All that decides the future of a run: what a checkpoint holds beside the variables.

What is made of it, and of the variables, stands in one place, `resume.Resume.save`.
Order, augmentation and dropout are functions of (seed, epoch, example or step), so that the whole
numbers of `Position` are the position in the data too.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tl_research.optim import loss_scale
from tl_research.optim.grouped_optimizer import GroupedOptimizer

Arrays = dict[str, np.ndarray]  # by the path of a variable, or by another name


@dataclasses.dataclass
class Position:
    """Where the run is."""

    phase_index: int = 0  # place of the current phase in `--phases`
    phase_epoch: int = 0  # epochs done in it
    phase_step: int = 0  # steps done in it
    epoch: int = 0  # epochs done in all
    epoch_step: int = 0  # steps done in the current epoch
    global_step: int = 0  # steps done in all


@dataclasses.dataclass
class PhaseProgress:
    """What the current phase did, for early stopping, its audit and its entry in the results."""

    epoch_totals: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # of this epoch's steps
    phase_hashes: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # {path: SHA-256} at its start
    # {path: largest norm of the trainable variable's gradient, after clipping}
    gradient_peaks: dict[str, float] = dataclasses.field(default_factory=dict)
    moved: list[str] = dataclasses.field(default_factory=list)  # paths of what a step moved
    largest_rate: float = 0.0  # before multipliers
    best: dict[str, Any] | None = None  # {"epoch", "val_loss", ...} of its best epoch so far
    wait: int = 0  # epochs since then
    traces: int = 0  # how often its training step was traced
    compile_seconds: float = 0.0  # of tracing and compiling its steps
    train_seconds: float = 0.0  # inside train calls
    seconds: float = 0.0  # wall time, without evaluation of other phases


@dataclasses.dataclass
class History:
    """What the epochs and phases before left."""

    skipped_steps: int = 0  # of all steps, for gradients that float16 could not hold
    joined: dict[str, str] = dataclasses.field(default_factory=dict)  # {path: phase that opened it}
    selected: dict[str, Any] | None = None  # {"phase", "epoch", "val_loss", ...} of the best phase
    # the phases of `results.json`
    finished: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # rows of `metrics.csv`
    # what the audit of the images adds to `results.json`, once it was made
    data_audit: dict[str, Any] | None = None
    # of a head solved in closed form: how, and what its validation metrics were
    head_start: dict[str, float] | None = None
    # {phase: epochs that --time_limit left it}, of the phases that began
    time_limit: dict[str, int] = dataclasses.field(default_factory=dict)
    test: dict[str, Any] | None = None  # the test metrics, once they were read
    # what `calibration.of_run` found then
    calibration: dict[str, Any] | None = None
    reliability: dict[str, Any] | None = None
    # wall time by kind of work, in earlier processes of this run too
    run_seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        kinds = ("features", "compile", "train", "evaluate", "export", "figures")
        self.run_seconds = dict.fromkeys(kinds, 0.0) | self.run_seconds  # older code had fewer


@dataclasses.dataclass
class KeptWeights:
    """Weights to come back to, and what the selected ones say to the validation images."""

    best: Arrays = dataclasses.field(default_factory=dict)  # of the best epoch of this phase
    selected: Arrays = dataclasses.field(default_factory=dict)  # of the best phase
    logits: Arrays = dataclasses.field(default_factory=dict)  # {"selected": float32 [N, K]}


@dataclasses.dataclass
class TrainState:
    """Position, progress and history as JSON; kept weights and the optimizer as arrays."""

    position: Position = dataclasses.field(default_factory=Position)
    progress: PhaseProgress = dataclasses.field(default_factory=PhaseProgress)
    past: History = dataclasses.field(default_factory=History)
    # of float16 only
    scaling: dict[str, float] = dataclasses.field(default_factory=loss_scale.initial)
    weights: KeptWeights = dataclasses.field(default_factory=KeptWeights)
    optimizer: GroupedOptimizer | None = None  # of the current phase
    slots: Arrays | None = None  # of a checkpoint, until its phase has an optimizer to hold them

    def begin_phase(self, index: int, hashes: dict[str, str]) -> None:
        """Resets what belongs to one phase."""
        before = self.position
        self.position = Position(index, epoch=before.epoch, global_step=before.global_step)
        self.progress = PhaseProgress(phase_hashes=hashes)
        self.weights.best = {}

    def to_json(self) -> dict[str, Any]:
        """Returns all but the arrays, in one dict."""
        parts = (self.position, self.progress, self.past)
        return {"scaling": self.scaling} | {
            name: value for part in parts for name, value in dataclasses.asdict(part).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Returns the state that `to_json` wrote.

        Raises:
            TypeError: If names are missing or unknown.
        """
        values, parts = dict(values), dict[str, Any]()
        for part, kind in (("position", Position), ("progress", PhaseProgress), ("past", History)):
            names = {field.name for field in dataclasses.fields(kind)} & values.keys()
            parts[part] = kind(**{name: values.pop(name) for name in names})
        return cls(**parts, **values)


@contextlib.contextmanager
def timed(state: TrainState, kind: str) -> Iterator[None]:
    """Adds the time spent inside to the run's seconds of that kind of work."""
    start = time.perf_counter()
    try:
        yield
    finally:
        state.past.run_seconds[kind] += time.perf_counter() - start
