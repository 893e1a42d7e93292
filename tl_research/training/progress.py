"""Adds the results of a call to the state, and stops at a step that is not finite."""

import math

from tl_research.errors import NonFiniteError
from tl_research.optim import loss_scale
from tl_research.run import checkpoints
from tl_research.training.epoch import Call
from tl_research.training.phase import PhaseSetup
from tl_research.training.state import TrainState


def add(state: TrainState, setup: PhaseSetup, call: Call, saved_step: int) -> None:
    """Adds a call of the compiled loop to the state.

    Args:
        state: Changed in place.
        setup: The phase that trains.
        call: What the call did.
        saved_step: Global step of the last checkpoint, for the message.

    Raises:
        NonFiniteError: If the call ended with a step that is not finite; earlier steps are counted.
    """
    totals, position, progress = call.totals, state.position, state.progress
    steps = int(totals["steps"])
    position.epoch_step += steps
    position.phase_step += steps
    position.global_step += steps
    progress.traces = max(progress.traces, setup.step.traces)
    progress.train_seconds += call.seconds
    state.past.run_seconds["train"] += call.seconds
    _add_evidence(progress, setup, totals)
    if "loss_scale" in totals:
        state.scaling = {name: float(totals[name]) for name in state.scaling}
        state.past.skipped_steps += int(totals["skipped_steps"])
    if not totals["finite"]:
        raise NonFiniteError(_reason(state, setup, totals, checkpoints.step_name(saved_step)))
    sums = progress.epoch_totals
    counted = ("loss_sum", "examples", "skipped_steps", *setup.plan.objective.counted)
    added = {name: float(totals[name]) for name in counted if name in totals}
    for name, value in {**added, "seconds": call.seconds, "waited": call.waited}.items():
        sums[name] = sums.get(name, 0.0) + value
    sums["learning_rate"] = float(totals["learning_rate"])


def _add_evidence(progress, setup, totals):
    """Adds the evidence that the audit of the phase needs."""
    paths = [path for group in setup.optimizer.groups for path in group.paths]
    for path, peak in zip(paths, totals["max_gradient_norm"].tolist()):
        progress.gradient_peaks[path] = max(progress.gradient_peaks.get(path, 0.0), peak)
    moved = [path for path, moved in zip(paths, totals["moved"]) if moved]
    progress.moved = list(dict.fromkeys([*progress.moved, *moved]))
    progress.largest_rate = max(progress.largest_rate, float(totals["largest_rate"]))


def _reason(state, setup, totals, checkpoint):
    """Returns the message for a step that is not finite."""
    place = f"at phase {setup.phase.name} step {state.position.global_step + 1}"
    if "loss_scale" in totals:
        return (
            f"{loss_scale.MAX_SKIPPED} steps in a row had gradients that are not finite in "
            f"float16, the last {place}, loss scale {state.scaling['loss_scale']:g}; expected "
            "finite numbers at some scale; none was applied and the last good checkpoint is "
            f"{checkpoint}; try a lower --learning_rate or another --precision"
        )
    norms = zip(setup.optimizer.groups, totals["gradient_norm_sum"].tolist())
    infinite = [group.name for group, norm in norms if not math.isfinite(norm)]
    what = f"gradient in group {infinite[0]}" if infinite else "loss"
    return (
        f"non-finite {what} {place}; expected finite numbers; the update was not applied and the "
        f"last good checkpoint is {checkpoint}; try a lower --learning_rate or --clip_norm=1"
    )
