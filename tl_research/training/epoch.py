"""One epoch: its batches, passed to calls of the compiled loop."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tl_research.training.batch import epoch_inputs, stack, streamed_rows
from tl_research.training.phase import PhaseSetup
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState, timed


class Call(NamedTuple):
    """The results of a call of the compiled loop."""

    totals: dict[str, np.ndarray]  # see `StepLoop.__call__`
    seconds: float  # its duration, reading included
    waited: float  # seconds of it spent waiting for images or features that are not in memory


def calls(setup: PhaseSetup, state: TrainState, resume: Resume) -> Iterator[Call]:
    """Yields a `Call` for each call in the rest of the epoch.

    The caller must add each to the state before the next one, which begins at the state's position
    and ends early for a checkpoint that is due or for the profiler.

    Args:
        setup: The phase.
        state: Where the run is.
        resume: Knows when the next checkpoint is due, and when a signal may interrupt.
    """
    plan, position = setup.plan, state.position
    with timed(state, "features"), resume.signals.released():
        inputs = epoch_inputs(plan, setup.source, position.epoch + 1)
    stream = streamed_rows(setup.source, inputs, slice(position.epoch_step, None))
    while position.epoch_step < plan.steps_per_epoch:
        left = plan.steps_per_epoch - position.epoch_step
        due = resume.steps_until_due(position.global_step)
        count = min(setup.steps_per_call, left, due)
        count = plan.profiler.limit(position.global_step, count)
        start = time.perf_counter()
        streamed = None
        if stream:
            with resume.interruptible():
                batches = [next(stream) for _ in range(count)]
            streamed = stack(batches, setup.steps_per_call)
        waited = time.perf_counter() - start
        with plan.profiler.mark(position.global_step):
            totals = setup.step(
                inputs,
                position.epoch_step,
                count,
                position.global_step,
                position.phase_step,
                streamed,
                state.scaling,
            )
            totals = {name: tensor.numpy() for name, tensor in totals.items()}
        yield Call(totals, time.perf_counter() - start, waited)
