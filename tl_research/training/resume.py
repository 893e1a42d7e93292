"""When to save, what a checkpoint contains, and how a run continues from one."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tl_research import distribution
from tl_research.errors import CheckpointError, Interrupted
from tl_research.models.classifier import num_parameters
from tl_research.run import checkpoints
from tl_research.run.directory import RunDirectory
from tl_research.signals import Signals, interruption
from tl_research.training import audit, state_check
from tl_research.training.plan import Plan
from tl_research.training.state import KeptWeights, TrainState


class Resume:
    """Saves the state of a run, and restores it.

    Args:
        plan: What all phases share.
        directory: The open run directory.
        signals: The signals that end the run after a checkpoint.

    Attributes:
        signals: As given.
        saved_step: Global step of the last checkpoint.
    """

    def __init__(self, plan: Plan, directory: RunDirectory, signals: Signals):
        self._plan, self._directory, self.signals = plan, directory, signals
        self._identity = [*directory.identity(plan.config), *plan.objective.identity]
        self._paths = plan.saved_paths  # the rest comes from the pretrained weights
        self._logits_bytes = 4 * len(plan.validation) * plan.classifier.num_classes
        self.saved_step, self._saved_at = 0, time.monotonic()

    def save(self, state: TrainState) -> None:
        """Commits a checkpoint; of several workers, only the chief does."""
        if not distribution.is_chief():
            return
        kinds = {
            "variables": self._plan.classifier.values(self._paths),
            "optimizer": state.optimizer.state() if state.optimizer else {},
            **vars(state.weights),
        }
        arrays = {f"{kind}/{name}": a for kind, of in kinds.items() for name, a in of.items()}
        contents = {**state.to_json(), "run": self._identity}
        checkpoints.save(self._directory.file("checkpoints"), contents, arrays)
        self.saved_step, self._saved_at = state.position.global_step, time.monotonic()

    def steps_until_due(self, global_step: int) -> int:
        """Returns the number of steps before --checkpoint_every_steps requires a checkpoint."""
        every = self._plan.config.checkpoint_every_steps
        return every - global_step % every if every else sys.maxsize

    def save_if_due(self, state: TrainState) -> None:
        """Saves if --checkpoint_every_steps or --checkpoint_every_seconds requires it now."""
        config = self._plan.config
        steps, seconds = config.checkpoint_every_steps, config.checkpoint_every_seconds
        by_step = steps and state.position.global_step % steps == 0
        if by_step or (seconds and time.monotonic() - self._saved_at >= seconds):
            self.save(state)

    def stop_if_signalled(self, state: TrainState) -> None:
        """Raises Interrupted if a signal arrived here or at another worker; see `saving`."""
        number = max(distribution.of_all_workers(self.signals.number or 0))
        if number:
            raise self._interruption(state, number)

    @contextlib.contextmanager
    def saving(self, state: TrainState) -> Iterator[None]:
        """Saves if an interruption ends the code inside, where the state must be consistent."""
        try:
            yield
        except Interrupted as error:
            self.save(state)
            raise self._interruption(state, error.signal_number) from None

    def interruptible(self) -> contextlib.AbstractContextManager:
        """Lets a signal interrupt the code inside, within `signals.held`, at once; with several
        workers, which wait for each other there, after it.
        """
        is_shared = distribution.is_multi_worker()
        return contextlib.nullcontext() if is_shared else self.signals.released()

    def _interruption(self, state, number):
        where = f" after step {state.position.global_step}"
        return interruption(number, self.signals.resume, where)

    def check_room(self) -> None:
        """Raises StorageError if the checkpoints of a new run do not fit on the disk."""
        # At most: weights, those of the best epoch and of the best phase, and two slots.
        copies = 6 if self._plan.config.ema_decay else 5
        size = num_parameters(self._plan.classifier.variables[path] for path in self._paths)
        checkpoints.check_room(self._directory.path, copies * 4 * size + self._logits_bytes)

    def restore(self) -> TrainState | None:
        """Restores the newest checkpoint and returns its state, or None if there is none.

        Raises:
            CheckpointError: If none can be used, or it belongs to another run or network.
        """
        size = num_parameters(self._plan.classifier.variables.values())
        largest = 32 * size + self._logits_bytes + (64 << 20)  # weights, bests and slots
        loaded = checkpoints.load_newest(self._directory.file("checkpoints"), largest)
        if loaded is None:
            return None
        state, variables = self._checked(*loaded)
        self._plan.classifier.assign(variables, self._paths)
        self._check_frozen(state.progress.phase_hashes)
        self.saved_step = state.position.global_step
        return state

    def _checked(self, contents, arrays):
        """Returns (the state in a checkpoint, {path: array} of variables)."""
        try:
            state_check.check_entries(contents)
            self._check_identity(contents.pop("run", ()))
            state = TrainState.from_json(contents)
            kinds = state_check.sorted_arrays(arrays, self._plan)
            variables, state.slots = kinds.pop("variables"), kinds.pop("optimizer")
            state.weights = KeptWeights(**kinds)
            state_check.check_position(state, self._plan)
        except TypeError as error:
            raise CheckpointError(
                f"the checkpoint is from another version of this program ({error}); expected its "
                "own; use that version or --resume=never"
            ) from error
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint cannot be from this run: {error}; expected what the run saved; "
                "use --resume=never"
            ) from error
        return state, variables

    def _check_identity(self, recorded):
        if other := sorted(set(self._directory.with_defaults(recorded)) ^ set(self._identity)):
            raise CheckpointError(
                f"the checkpoint is from another run, which differs in {', '.join(other[:5])}; "
                "expected this run's; restore it or use --resume=never"
            )

    def _check_frozen(self, hashes):
        saved = set(self._paths)
        unchanged = {p: v for p, v in self._plan.classifier.variables.items() if p not in saved}
        different = [
            path
            for path, value in audit.hash_variables(unchanged).items()
            if hashes.get(path, value) != value
        ]
        if different:
            raise CheckpointError(
                f"{len(different)} frozen variables differ from those at the start of the run "
                f"({different[0]}); expected the same pretrained weights; restore them or use "
                "--resume=never"
            )
