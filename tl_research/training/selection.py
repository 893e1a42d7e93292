"""Evaluates epochs and phases, and selects the best of each."""

import contextlib
import math
from collections.abc import Iterator

from tl_research.config import Phase, lower_is_better
from tl_research.errors import NonFiniteError
from tl_research.files import Json
from tl_research.models.classifier import num_parameters
from tl_research.training.events import EpochEnded, PhaseEnded
from tl_research.training.phase import PhaseSetup
from tl_research.training.plan import Plan, unmeasured
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState, timed


def over(state: TrainState, phase: Phase) -> bool:
    """Returns whether a phase has no epoch left, or ran out of patience."""
    is_out_of_patience = 0 < phase.patience <= state.progress.wait
    return is_out_of_patience or state.position.phase_epoch >= phase.epochs


def end_epoch(setup: PhaseSetup, state: TrainState, resume: Resume) -> EpochEnded:
    """Evaluates an epoch, adds its row to the history, and keeps its weights if they are the best.

    Args:
        setup: The phase.
        state: Changed in place, unless a signal interrupts the evaluation.
        resume: Decides whether a signal may do so.
    """
    position, progress, plan = state.position, state.progress, setup.plan
    with timed(state, "evaluate"), _averaged(setup):
        logits, found = _evaluated(setup, resume.interruptible())
        row = _row(setup, state, found)
        more = plan.own_numbers(row, logits)
        row |= more
        value = _value(plan, row)
        # NaN is never best.
        is_best = math.isfinite(value) and _is_better(plan, row, progress.best)
        if is_best:
            state.weights.best = plan.classifier.values(plan.saved_paths)
    position.epoch += 1  # from here on no user code is called: the state stays consistent
    position.phase_epoch += 1
    progress.wait += 1
    if is_best:
        progress.best = {"epoch": position.epoch, **found, plan.config.select_by: value}
        progress.wait = 0
    waited = progress.epoch_totals["waited"] / progress.epoch_totals["seconds"]
    position.epoch_step, progress.epoch_totals = 0, {}
    state.past.history.append(row)
    measured = [f"train_{name}" for name in ("loss", *plan.objective.counted.values())]
    return EpochEnded(
        phase=setup.phase,
        row=row,
        history=tuple(state.past.history),
        measured=(*measured, *found, *more),
        logits=logits,
        is_best=is_best,
        is_first=position.phase_epoch == 1,
        selected=state.past.selected,
        waited=waited,
    )


def _value(plan: Plan, numbers: Json) -> float:
    """Returns the value of the metric that the run selects by.

    Raises:
        UserError: If there is no such metric.
    """
    by = plan.config.select_by
    if isinstance(numbers.get(by), float):
        return numbers[by]
    raise unmeasured(by, (name for name, value in numbers.items() if isinstance(value, float)))


def _is_better(plan, numbers, best):
    """Returns whether numbers are better than the best so far, if there are any.

    Of equal values, the lower validation loss is better; if that is equal too, the earlier is.
    """
    if not best:
        return True
    sign = 1 if lower_is_better(plan.config.select_by) else -1
    ours, theirs = ((sign * _value(plan, of), of["val_loss"]) for of in (numbers, best))
    return ours < theirs


def _row(setup: PhaseSetup, state: TrainState, found: Json) -> Json:
    """Returns the row of `metrics.csv` for an epoch that was evaluated but is not counted yet."""
    sums, position = state.progress.epoch_totals, state.position
    examples = sums["examples"] or math.nan  # 0 if every step was skipped because of its loss
    counted = setup.plan.objective.counted.items()
    trained = {f"train_{mean}": sums[name] / examples for name, mean in counted}
    of_both = {name: of for name, of in trained.items() if f"val{name[5:]}" in found}
    row = {
        "phase": setup.phase.name,
        "epoch": position.epoch + 1,
        "step": position.global_step,
        "train_loss": sums["loss_sum"] / examples,
        **of_both,
        **found,
        "images_per_second": sums["examples"] / sums["seconds"],
        "seconds": sums["seconds"],
        "learning_rate": sums["learning_rate"],
        **trained,  # metrics of training only come last
    }
    if "skipped_steps" in sums:
        row["loss_scale"] = state.scaling["loss_scale"]
        row["skipped_steps"] = int(sums["skipped_steps"])
    return row


def _evaluated(setup, interruptible=contextlib.nullcontext()):
    """Returns (validation logits, {`val_<name>`: number})."""
    setup.plan.update_evaluated()
    with interruptible:
        logits = setup.evaluate()
    return logits, setup.plan.validated(logits)


@contextlib.contextmanager
def _averaged(setup: PhaseSetup) -> Iterator[None]:
    """Sets the trained variables to their averages inside, if --ema_decay is used."""
    averages = setup.optimizer.averages()
    trained = setup.plan.classifier.values(averages)
    setup.plan.classifier.assign(averages)
    try:
        yield
    finally:
        setup.plan.classifier.assign(trained)


def end_phase(setup: PhaseSetup, state: TrainState, counts: dict[str, int]) -> PhaseEnded:
    """Restores and evaluates the best weights of a phase, and selects it if it is the best so far.

    Args:
        setup: The phase, which is finished.
        state: Changed in place.
        counts: The counts of the phase's audit.

    Raises:
        NonFiniteError: If the selection metric was finite in no epoch of the phase.
    """
    progress, past, plan = state.progress, state.past, setup.plan
    if progress.best is None:
        raise NonFiniteError(
            f"{plan.config.select_by} was never finite in phase {setup.phase.name}; expected a "
            "number; try a lower --learning_rate"
        )
    plan.classifier.assign(state.weights.best, plan.saved_paths)
    with timed(state, "evaluate"):
        logits, found = _evaluated(setup)
    trainable = num_parameters(setup.optimizer.variables)
    rows = [row for row in past.history if row["phase"] == setup.phase.name]
    result = {
        "name": setup.phase.name,
        "epochs": state.position.phase_epoch,
        "best_epoch": progress.best["epoch"],
        **dict(sorted(found.items())),
        "trainable_parameters": trainable,
        "frozen_parameters": num_parameters(plan.classifier.variables.values()) - trainable,
        "traces": progress.traces,
        "compile_seconds": progress.compile_seconds,
        "images_per_second": state.position.phase_epoch * len(plan.train) / progress.train_seconds,
        "seconds": setup.seconds(),
        "audit": counts,
    }
    if "skipped_steps" in rows[0]:
        result["skipped_steps"] = sum(row["skipped_steps"] for row in rows)
    past.finished.append(result)
    kept, measured = past.selected, {**progress.best, **found}
    value = _value(plan, measured)
    if _is_better(plan, measured, kept):
        kept, by = None, {plan.config.select_by: value}
        past.selected = {"phase": setup.phase.name, "epoch": progress.best["epoch"], **found, **by}
        state.weights.selected, state.weights.logits = state.weights.best, {"selected": logits}
    return PhaseEnded(
        phase=setup.phase,
        step=state.position.global_step,
        result=result,
        measured=tuple(found),
        value=value,
        logits=logits,
        kept=kept,
    )
