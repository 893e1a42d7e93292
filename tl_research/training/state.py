"""The state of a run: everything in a checkpoint besides the variables.

`resume.Resume.save` writes it. Order, augmentation and dropout are functions of (seed, epoch,
example or step), so the integers of `Position` are the position in the data too.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from tl_research.files import Json
from tl_research.optim import loss_scale
from tl_research.optim.grouped_optimizer import GroupedOptimizer

Arrays = dict[str, np.ndarray]  # by the path of a variable, or by another name


@dataclass
class Position:
    """Where the run is."""

    phase_index: int = 0  # index of the current phase in `--phases`
    phase_epoch: int = 0  # epochs done in it
    phase_step: int = 0  # steps done in it
    epoch: int = 0  # epochs done in total
    epoch_step: int = 0  # steps done in the current epoch
    global_step: int = 0  # steps done in total


@dataclass
class PhaseProgress:
    """What the current phase has done, for early stopping, its audit and the results."""

    epoch_totals: dict[str, float] = field(default_factory=dict)  # over this epoch's steps
    phase_hashes: dict[str, str] = field(default_factory=dict)  # {path: SHA-256} at its start
    # {path: max_gradient_norm, after clipping, of a trainable variable}; the name in checkpoints
    gradient_peaks: dict[str, float] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)  # paths of variables that a step moved
    largest_rate: float = 0.0  # before group multipliers
    best: Json | None = None  # {"epoch", "val_loss", ...} of its best epoch so far
    wait: int = 0  # epochs without improvement; the name that checkpoints have
    traces: int = 0  # how often its training step was traced
    compile_seconds: float = 0.0  # spent tracing and compiling its steps
    train_seconds: float = 0.0  # spent inside training calls
    seconds: float = 0.0  # wall time of the phase


@dataclass
class History:
    """The results of earlier epochs and phases."""

    skipped_steps: int = 0  # in total, because of gradients that float16 could not represent
    joined: dict[str, str] = field(default_factory=dict)  # {path: phase that unfroze it}
    selected: Json | None = None  # {"phase", "epoch", "val_loss", ...} of the best phase
    # the phases of `results.json`
    finished: list[Json] = field(default_factory=list)
    history: list[Json] = field(default_factory=list)  # rows of `metrics.csv`
    # what the audit of the images adds to `results.json`
    data_audit: Json | None = None
    # how the head was solved in closed form, and its validation metrics
    head_start: dict[str, float] | None = None
    # {phase: epochs within --time_limit} of the phases that began
    time_limit: dict[str, int] = field(default_factory=dict)
    test: Json | None = None  # the test metrics, once measured
    # the result of `calibration.of_run`
    calibration: Json | None = None
    reliability: Json | None = None
    # wall time by kind of work, including earlier processes of this run
    run_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        kinds = ("features", "compile", "train", "evaluate", "export", "figures")
        self.run_seconds = dict.fromkeys(kinds, 0.0) | self.run_seconds  # older versions had fewer


@dataclass
class KeptWeights:
    """Weights to restore, and the validation logits of the selected ones."""

    best: Arrays = field(default_factory=dict)  # of the best epoch of this phase
    selected: Arrays = field(default_factory=dict)  # of the best phase
    logits: Arrays = field(default_factory=dict)  # {"selected": float32 [N, K]}


@dataclass
class TrainState:
    """Position, progress and history as JSON; kept weights and the optimizer as arrays."""

    position: Position = field(default_factory=Position)
    progress: PhaseProgress = field(default_factory=PhaseProgress)
    past: History = field(default_factory=History)
    # of float16 only
    scaling: dict[str, float] = field(default_factory=loss_scale.initial)
    weights: KeptWeights = field(default_factory=KeptWeights)
    optimizer: GroupedOptimizer | None = None  # of the current phase
    slots: Arrays | None = None  # from a checkpoint, until its phase has an optimizer

    def begin_phase(self, index: int, hashes: dict[str, str]) -> None:
        """Resets what belongs to one phase."""
        before = self.position
        self.position = Position(index, epoch=before.epoch, global_step=before.global_step)
        self.progress = PhaseProgress(phase_hashes=hashes)
        self.weights.best = {}

    def to_json(self) -> Json:
        """Returns everything except the arrays, in one dict."""
        parts = (self.position, self.progress, self.past)
        return {"scaling": self.scaling} | {
            name: value for part in parts for name, value in asdict(part).items()
        }

    @classmethod
    def from_json(cls, values: Json) -> "TrainState":
        """Returns the state from the output of `to_json`.

        Raises:
            TypeError: If names are missing or unknown.
        """
        values, parts = dict(values), Json()
        for part, kind in (("position", Position), ("progress", PhaseProgress), ("past", History)):
            names = {each.name for each in fields(kind)} & values.keys()
            parts[part] = kind(**{name: values.pop(name) for name in names})
        return cls(**parts, **values)


@contextlib.contextmanager
def timed(state: TrainState, kind: str) -> Iterator[None]:
    """Adds the time spent inside to the run's seconds for a kind of work."""
    start = time.perf_counter()
    try:
        yield
    finally:
        state.past.run_seconds[kind] += time.perf_counter() - start
