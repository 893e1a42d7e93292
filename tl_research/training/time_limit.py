"""Shortens the phases of a run to the epochs that `--time_limit` leaves room for.

A phase is laid out before its first step, from what this machine was measured to need, so that its
schedule comes down within it. The decision is part of the state: a resumed phase keeps it.
"""

import itertools
import time
from collections.abc import Iterable

from tl_research import distribution
from tl_research.config import Phase
from tl_research.training.batch import first_arguments
from tl_research.training.events import Observer, PhaseLaidOut
from tl_research.training.phase import PhaseSetup, prepare
from tl_research.training.plan import Plan
from tl_research.training.state import TrainState

# What export, the check of it and the figures take, in times of what compiling the steps of a phase
# took: an estimate from a few runs, of which loaded ones had 1.3 to 2.5. The same of the network's
# layers are traced in both.
_END = 1.6


def prepared(plan: Plan, index: int, state: TrainState, tell: Observer) -> PhaseSetup | None:
    """Returns a phase that is ready to train the epochs that there is time for.

    Args:
        plan: What all phases share.
        index: Place of the phase.
        state: Changed in place.
        tell: Tells observers.

    Returns:
        The phase; None if no epoch of it fits, though something was selected before it.
    """
    limit = plan.config.time_limit
    if not limit:
        return prepare(plan, index, state, tell)
    # An epoch takes about as long as the features of a view: without time for it, compile nothing.
    soonest = time.perf_counter() - plan.started + plan.cache.seconds["train"]
    late = soonest >= limit and state.past.selected is not None
    if max(distribution.of_all_workers(int(late))) and state.slots is None:
        _lay_out(plan.phases[index], 0, plan, state, tell)
        return None
    setup = prepare(plan, index, state, tell)
    if setup.is_resumed:
        return setup
    epochs = _epochs_that_fit(setup, state)
    if state.past.selected is None:
        epochs = max(epochs, 1)
    epochs = min(distribution.of_all_workers(epochs))
    _lay_out(setup.phase, epochs, plan, state, tell)
    if not epochs:
        return None
    setup.num_steps.assign(plan.steps_per_epoch * epochs)
    return setup._replace(phase=plan.phase(index, state))


def _lay_out(phase: Phase, epochs: int, plan: Plan, state: TrainState, tell: Observer) -> None:
    """Records what was decided."""
    state.past.time_limit[phase.name] = epochs
    tell(PhaseLaidOut(phase, epochs, plan.config.time_limit))


def _epochs_that_fit(setup: PhaseSetup, state: TrainState) -> int:
    """Returns how many epochs of a phase fit into its share of the time that is left.

    Phases share it by their epochs, after the end of the run and their compilation are taken off.
    """
    plan, position, phase, cache = setup.plan, state.position, setup.phase, setup.plan.cache
    arguments = first_arguments(plan, setup.source, position.epoch, setup.steps_per_call)
    step = setup.step.seconds(setup.steps_per_call, *arguments)
    evaluation = setup.evaluate.seconds()
    later = [other.epochs for other in plan.phases[position.phase_index + 1 :] if other.epochs]
    end = seconds_of_end(
        plan.num_test / len(plan.validation) * (cache.seconds["validation"] + evaluation),
        state.progress.compile_seconds,
        len(later),
    )
    left = plan.config.time_limit - (time.perf_counter() - plan.started) - end
    epochs = range(position.epoch + 1, position.epoch + 1 + phase.epochs)
    return epochs_within(
        left * phase.epochs / (phase.epochs + sum(later)) - evaluation,  # of the best, once more
        plan.steps_per_epoch * step + evaluation,
        [cache.seconds["train"] * is_new for is_new in cache.are_new(epochs)],
    )


def seconds_of_end(test: float, compiling: float, phases: int) -> float:
    """Returns the seconds of what is not an epoch of this phase or of a later one.

    Args:
        test: Seconds of the test images, which are computed as validation images are: in float32,
            from their pixels.
        compiling: Seconds that compiling the steps of a phase took.
        phases: How many come later.
    """
    return test + (_END + phases) * compiling


def epochs_within(seconds: float, epoch: float, before: Iterable[float]) -> int:
    """Returns how many epochs end within some seconds.

    Args:
        seconds: There are.
        epoch: Seconds of an epoch: its steps and its evaluation.
        before: For each epoch, the seconds of what is computed before it.
    """
    ends = itertools.accumulate(extra + epoch for extra in before)
    return sum(end <= seconds for end in ends)
