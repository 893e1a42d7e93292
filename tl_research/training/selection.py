"""Which epoch and which phase are kept, and what their weights are worth in validation."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from tl_research.config import Phase, lower_is_better
from tl_research.errors import NonFiniteError, UserError, suggestion
from tl_research.models.classifier import num_parameters
from tl_research.training.events import EpochEnded, PhaseEnded
from tl_research.training.phase import PhaseSetup
from tl_research.training.plan import Plan
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState, timed


def over(state: TrainState, phase: Phase) -> bool:
    """Returns whether a phase has no epoch left, or has waited too long for a better one."""
    waited = bool(phase.patience) and state.progress.wait >= phase.patience
    return state.position.phase_epoch >= phase.epochs or waited


def end_epoch(setup: PhaseSetup, state: TrainState, resume: Resume) -> EpochEnded:
    """Evaluates an epoch, adds its row to the history, and keeps its weights if they are best.

    Args:
        setup: The phase.
        state: Changed in place; not, if a signal ends the evaluation.
        resume: Says when that may be.
    """
    position, progress, plan = state.position, state.progress, setup.plan
    with timed(state, "evaluate"), _averaged(setup):
        logits, found = _evaluated(setup, resume.interruptible())
        row = _row(setup, state, found)
        more = plan.own_numbers(row, logits)
        row |= more
        value = _value(plan, row)
        # NaN is never best; of a tie the earlier epoch is, wherever the run was cut.
        is_best = math.isfinite(value) and (
            progress.best is None or _is_better(plan, value, _value(plan, progress.best))
        )
        if is_best:
            state.weights.best = plan.classifier.values(plan.saved_paths)
    position.epoch += 1  # from here on nothing of the user's is called: the state is whole
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


def _value(plan: Plan, numbers: dict[str, Any]) -> float:
    """Returns the number that the run selects by.

    Raises:
        UserError: If there is none of that name.
    """
    by = plan.config.select_by
    if isinstance(numbers.get(by), float):
        return numbers[by]
    raise UserError(
        f"--select_by={by} is not measured; expected one of "
        f"{', '.join(name for name, value in numbers.items() if isinstance(value, float))}"
        f"{suggestion(by, numbers)}",
        flag="select_by",
    )


def _is_better(plan, value, other):
    return value < other if lower_is_better(plan.config.select_by) else value > other


def _row(setup: PhaseSetup, state: TrainState, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of `metrics.csv` of the epoch that was evaluated and is not counted yet."""
    sums, position = state.progress.epoch_totals, state.position
    examples = sums["examples"] or math.nan  # none, if every step was skipped for its loss
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
        **trained,  # what only training counts stands last
    }
    if "skipped_steps" in sums:
        row["loss_scale"] = state.scaling["loss_scale"]
        row["skipped_steps"] = int(sums["skipped_steps"])
    return row


def _evaluated(setup, interruptible=contextlib.nullcontext()):
    """Returns (logits of the validation images, {`val_<name>`: number})."""
    setup.plan.update_evaluated()
    with interruptible:
        logits = setup.evaluate()
    found = setup.plan.objective.evaluate(logits, setup.plan.validation.labels)
    return logits, {f"val_{name}": value for name, value in found.items()}


@contextlib.contextmanager
def _averaged(setup: PhaseSetup) -> Iterator[None]:
    """Inside, the trained variables have their averages, if --ema_decay asks for them."""
    averages = setup.optimizer.averages()
    trained = setup.plan.classifier.values(averages)
    setup.plan.classifier.assign(averages)
    try:
        yield
    finally:
        setup.plan.classifier.assign(trained)


def end_phase(setup: PhaseSetup, state: TrainState, counts: dict[str, int]) -> PhaseEnded:
    """Restores and evaluates the best weights of a phase; selects between it and those before.

    Args:
        setup: The phase, which is over.
        state: Changed in place.
        counts: What the audit of the phase counted.

    Raises:
        NonFiniteError: If no epoch of the phase could be evaluated.
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
    skipped = sum(row.get("skipped_steps", 0) for row in rows)
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
        **({"skipped_steps": skipped} if any("skipped_steps" in row for row in rows) else {}),
    }
    past.finished.append(result)
    kept, value = past.selected, _value(plan, {**progress.best, **found})
    if not kept or _is_better(plan, value, _value(plan, kept)):
        kept, by = None, {plan.config.select_by: value}
        past.selected = {"phase": setup.phase.name, "epoch": progress.best["epoch"], **found, **by}
        state.weights.selected, state.weights.logits = state.weights.best, {"selected": logits}
    return PhaseEnded(
        phase=setup.phase,
        step=state.position.global_step,
        groups=setup.optimizer.groups,
        result=result,
        measured=tuple(found),
        value=value,
        logits=logits,
        kept=kept,
    )


def apply(plan: Plan, state: TrainState) -> None:
    """Gives the classifier the weights that were selected."""
    if state.past.selected:
        plan.classifier.assign(state.weights.selected, plan.saved_paths)
