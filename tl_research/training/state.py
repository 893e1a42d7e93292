"""All that decides the future of a run, and nothing more: what a checkpoint holds besides arrays."""

import dataclasses

from tl_research.optim import loss_scale


@dataclasses.dataclass
class TrainState:
    """Position, early stopping, and what earlier phases left. JSON-serializable.

    Order, augmentation and dropout are functions of (seed, epoch, example or step), so that these integers are the
    position in the data too. Attributes of the current epoch and phase come first.

    Attributes:
        epoch_step: Steps done in the current epoch.
        epoch_totals: Sums over these steps, as `TrainStep` returns them.
        phase_index: Place of the current phase in `--phases`.
        phase_epoch: Epochs done in it.
        phase_step: Steps done in it.
        phase_hashes: {path: SHA-256} of every variable at its start.
        gradient_peaks: {path: largest norm of the trainable variable's gradient in it, after clipping}.
        moved: Paths of the variables that a step in it moved.
        largest_rate: Largest learning rate in it, before multipliers.
        best: {"epoch", "val_loss", "val_accuracy"} of its best epoch so far.
        wait: Epochs since then.
        traces: How often its training step was traced.
        compile_seconds: Time for tracing and compiling its steps.
        train_seconds: Time inside train calls in it.
        seconds: Wall time of it, without evaluation of other phases.
        global_step: Steps done in all.
        scaling: State of the loss scale (`tl_research.optim.loss_scale`), which only float16 moves.
        skipped_steps: How many of all steps were skipped for gradients that float16 could not hold.
        epoch: Epochs done in all.
        joined: {path: name of the phase in which the variable first trained}.
        selected: {"phase", "epoch", "val_loss", "val_accuracy"} of the best weights of all finished phases.
        finished: The entries of `results.json` of the finished phases.
        history: The rows of `metrics.csv`.
        test: The test metrics, once they were read.
        run_seconds: Wall time by kind of work, in earlier processes of this run too.
    """

    epoch_step: int = 0
    epoch_totals: dict = dataclasses.field(default_factory=dict)
    phase_index: int = 0
    phase_epoch: int = 0
    phase_step: int = 0
    phase_hashes: dict = dataclasses.field(default_factory=dict)
    gradient_peaks: dict = dataclasses.field(default_factory=dict)
    moved: list = dataclasses.field(default_factory=list)
    largest_rate: float = 0.0
    best: dict | None = None
    wait: int = 0
    traces: int = 0
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    seconds: float = 0.0
    global_step: int = 0
    scaling: dict = dataclasses.field(default_factory=loss_scale.initial)
    skipped_steps: int = 0
    epoch: int = 0
    joined: dict = dataclasses.field(default_factory=dict)
    selected: dict | None = None
    finished: list = dataclasses.field(default_factory=list)
    history: list = dataclasses.field(default_factory=list)
    test: dict | None = None
    run_seconds: dict = dataclasses.field(default_factory=lambda: {"features": 0.0, "train": 0.0, "evaluate": 0.0})

    def phase_over(self, phase):
        """Returns whether the current phase, a `Phase`, has no epoch left."""
        return self.phase_epoch >= phase.epochs or bool(phase.patience and self.wait >= phase.patience)

    def begin_phase(self, hashes):
        """Resets what belongs to one phase."""
        fresh = TrainState()
        for name in ("epoch_step", "epoch_totals", "phase_epoch", "phase_step", "gradient_peaks", "moved", "largest_rate", "best",
                     "wait", "traces", "compile_seconds", "train_seconds", "seconds"):
            setattr(self, name, getattr(fresh, name))
        self.phase_hashes = hashes
