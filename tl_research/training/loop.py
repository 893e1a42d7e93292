"""The explicit loop: phases, epochs, calls. Contains no math, no file format and no text.

solve the head in closed form, if requested
for each phase that is left:
    unfreeze its layers, make its optimizer; find its sources, compile its steps
    shorten it to the remaining time, if there is a limit
    until its epochs are done, or patience runs out:
        for each call of the compiled loop:     (many steps, see `step_loop`)
            add it to the state; tell observers; save if it is due; stop if a signal arrived
        evaluate; keep the best weights; tell observers; save; stop if a signal arrived
    (a signal is answered after a call, or at once while waiting for images or features or while
    computing validation logits; then everything is saved)
    audit what changed; restore the best weights of the phase; tell observers
end with the best weights of all phases
"""

import contextlib
from collections.abc import Sequence

from tl_research.training import audit, epoch, head_start, progress, selection, time_limit
from tl_research.training.compiler import memory_errors
from tl_research.training.events import CallEnded, Event, Observer
from tl_research.training.phase import PhaseSetup
from tl_research.training.plan import Plan
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState


def fit(
    plan: Plan, state: TrainState, *, resume: Resume, observers: Sequence[Observer] = ()
) -> None:
    """Trains the remaining phases and assigns the selected weights to the classifier.

    Args:
        plan: What all phases share.
        state: Where the run is; changed in place.
        resume: Saves it.
        observers: Each is told every event, in this order.

    Raises:
        AuditError, NonFiniteError, OutOfMemoryError, StorageError, Interrupted: See
            `tl_research.errors`.
    """
    tell = teller(observers)
    head_start.make(plan, state, tell)
    for index in plan.left(state):
        with memory_errors(plan.config, f"phase {plan.phases[index].name}"):
            if setup := time_limit.prepared(plan, index, state, tell):
                train_phase(setup, state, resume, tell)
    plan.profiler.stop()
    if state.past.selected:
        plan.classifier.assign(state.weights.selected, plan.saved_paths)


def teller(observers: Sequence[Observer]) -> Observer:
    """Returns a function that tells all observers."""

    def tell(event: Event) -> None:
        for observer in observers:
            observer(event)

    return tell


@contextlib.contextmanager
def _saved_if_it_fails(state, resume):
    """Saves if user code inside fails, where the state must be consistent."""
    try:
        yield
    except Exception:
        resume.save(state)
        raise


def train_phase(setup: PhaseSetup, state: TrainState, resume: Resume, tell: Observer) -> None:
    """Trains the remaining epochs of a phase, audits it and restores its best weights.

    Args:
        setup: The phase.
        state: Where the run is; changed in place.
        resume: Saves it.
        tell: Tells observers.
    """
    plan, position = setup.plan, state.position
    with resume.signals.held(), resume.saving(state):
        if not setup.is_resumed:
            resume.save(state)
        while not selection.over(state, setup.phase):
            for call in epoch.calls(setup, state, resume):
                progress.add(state, setup, call, resume.saved_step)
                ended = CallEnded(
                    phase=setup.phase,
                    step=position.global_step,
                    epoch=position.epoch + 1,
                    epoch_step=position.epoch_step,
                    steps_per_epoch=plan.steps_per_epoch,
                    groups=setup.optimizer.groups,
                    totals=call.totals,
                    skipped_steps=state.past.skipped_steps,
                )
                with _saved_if_it_fails(state, resume):
                    tell(ended)
                if position.epoch_step < plan.steps_per_epoch:  # the last is saved below
                    resume.save_if_due(state)
                resume.stop_if_signalled(state)
            with _saved_if_it_fails(state, resume):
                tell(selection.end_epoch(setup, state, resume))
            state.progress.seconds = setup.seconds()
            resume.save(state)
            resume.stop_if_signalled(state)
    counts = audit.check(setup, state)  # before the best weights are restored
    # Not saved: the next checkpoint is the start of the next phase, and this can be repeated.
    tell(selection.end_phase(setup, state, counts))
