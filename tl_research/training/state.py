"""All that decides a run's future, and nothing more: what a checkpoint holds besides arrays."""

import dataclasses

from tl_research.optim import loss_scale


@dataclasses.dataclass
class TrainState:
    """Position, early stopping, and what earlier phases left. JSON-serializable.

    Order, augmentation and dropout are functions of (seed, epoch, example or step), so that these
    integers are the position in the data too. Attributes of the current epoch and phase come first.
    """

    epoch_step: int = 0  # steps done in the current epoch
    # sums over these steps, as `TrainStep` returns them
    epoch_totals: dict = dataclasses.field(default_factory=dict)
    phase_index: int = 0  # place of the current phase in `--phases`
    phase_epoch: int = 0  # epochs done in it
    phase_step: int = 0  # steps done in it
    # {path: SHA-256} of every variable at its start
    phase_hashes: dict = dataclasses.field(default_factory=dict)
    # {path: largest norm of the trainable variable's gradient in it, after clipping}
    gradient_peaks: dict = dataclasses.field(default_factory=dict)
    # paths of the variables that a step in it moved
    moved: list = dataclasses.field(default_factory=list)
    largest_rate: float = 0.0  # largest learning rate in it, before multipliers
    best: dict | None = None  # {"epoch", "val_loss", "val_accuracy"} of its best epoch so far
    wait: int = 0  # epochs since then
    traces: int = 0  # how often its training step was traced
    compile_seconds: float = 0.0  # time for tracing and compiling its steps
    train_seconds: float = 0.0  # time inside train calls in it
    seconds: float = 0.0  # wall time of it, without evaluation of other phases
    global_step: int = 0  # steps done in all
    # state of the loss scale (`tl_research.optim.loss_scale`), which only float16 moves
    scaling: dict = dataclasses.field(default_factory=loss_scale.initial)
    # how many of all steps were skipped for gradients that float16 could not hold
    skipped_steps: int = 0
    epoch: int = 0  # epochs done in all
    # {path: name of the phase in which the variable first trained}
    joined: dict = dataclasses.field(default_factory=dict)
    # {"phase", "epoch", "val_loss", "val_accuracy"} of the best weights of all finished phases
    selected: dict | None = None
    # the entries of `results.json` of the finished phases
    finished: list = dataclasses.field(default_factory=list)
    history: list = dataclasses.field(default_factory=list)  # the rows of `metrics.csv`
    test: dict | None = None  # the test metrics, once they were read
    # wall time by kind of work, in earlier processes of this run too
    run_seconds: dict = dataclasses.field(
        default_factory=lambda: {"features": 0.0, "train": 0.0, "evaluate": 0.0}
    )

    def phase_over(self, phase):
        """Returns whether the current phase, a `Phase`, has no epoch left."""
        return self.phase_epoch >= phase.epochs or bool(
            phase.patience and self.wait >= phase.patience
        )

    def begin_phase(self, hashes):
        """Resets what belongs to one phase."""
        fresh = TrainState()
        for name in (
            "epoch_step",
            "epoch_totals",
            "phase_epoch",
            "phase_step",
            "gradient_peaks",
            "moved",
            "largest_rate",
            "best",
            "wait",
            "traces",
            "compile_seconds",
            "train_seconds",
            "seconds",
        ):
            setattr(self, name, getattr(fresh, name))
        self.phase_hashes = hashes
