"""Checks that a checkpoint is one that this program could have saved in a run: its hashes prove
nothing about who wrote it.
"""

import dataclasses
from typing import Any

import numpy as np

from tl_research.files import Json
from tl_research.training.plan import Plan
from tl_research.training.state import Arrays, History, PhaseProgress, Position, TrainState

_KINDS = ("variables", "optimizer", "best", "selected", "logits")  # of arrays
# The schema of `state.json`, by types: an `int` is 0 or more, a `float` any number. A list has any
# number of entries of one kind; in a dict, `...` stands for all other names; a tuple means that the
# value may also be None.
_FOUND: dict[Any, Any] = {"epoch": int, ...: float}  # an epoch, and its metrics
_RELIABILITY = [[float]]
_ENTRIES: Json = {
    **{
        each.name: each.type
        for part in (Position, PhaseProgress, History)
        for each in dataclasses.fields(part)
        if each.type in (int, float)
    },
    "run": [str],
    "scaling": {"loss_scale": float, "good_steps": float, "skipped_in_a_row": float},
    "epoch_totals": {...: float},
    "phase_hashes": {...: str},
    "gradient_peaks": {...: float},
    "moved": [str],
    "best": (_FOUND,),
    "selected": ({"phase": str, **_FOUND},),
    "joined": {...: str},
    "finished": [{"name": str, "epochs": int, "best_epoch": int, "audit": {...: int}, ...: float}],
    "history": [{"phase": str, "epoch": int, "step": int, "train_loss": float, ...: float}],
    "data_audit": ({"data_audit": object, ...: object},),
    "head_start": ({...: float},),
    "time_limit": {...: int},
    "test": ({"n": int, "reads": int, "accuracy": (float,), "ci95": ([float],), ...: float},),
    "calibration": ({"temperature": float, "reason": (str,), ...: float},),
    "reliability": ({"n": int, "before": _RELIABILITY, "after": _RELIABILITY},),
    "run_seconds": {...: float},
}


def check_entries(contents: Json) -> None:
    """Raises ValueError if an entry of `state.json` does not fit the schema.

    Missing and unknown names are not checked.
    """
    for name in _ENTRIES.keys() & contents.keys():
        _check(contents[name], _ENTRIES[name], name)


def _check(value, kind, place):
    if isinstance(kind, tuple):
        if value is not None:
            _check(value, kind[0], place)
    elif isinstance(kind, list) and isinstance(value, list):
        for index, entry in enumerate(value):
            _check(entry, kind[0], f"{place}[{index}]")
    elif isinstance(kind, dict) and isinstance(value, dict):
        for name in value.keys() | (kind.keys() - {...}):
            _check(value.get(name), kind.get(name, kind.get(..., object)), f"{place}.{name}")
    elif not _is_of(value, kind):
        raise ValueError(f"{place} is {str(value)[:80]!a}")


def _is_of(value, kind):
    if kind is float:
        return type(value) in (int, float)
    if kind is int:
        return type(value) is int and value >= 0
    return isinstance(kind, type) and isinstance(value, kind)


def check_position(state: TrainState, plan: Plan) -> None:
    """Raises ValueError if a state is inconsistent or not a position of its run."""
    position, progress, past, weights = state.position, state.progress, state.past, state.weights
    if position.phase_index >= len(plan.phases):
        raise ValueError(f"phase_index is {position.phase_index} of {len(plan.phases)} phases")
    each, step = plan.steps_per_epoch, position.epoch_step
    follows = {
        "phase_step": position.phase_step == position.phase_epoch * each + step,
        "global_step": position.global_step == position.epoch * each + step,
        "history": len(past.history) == position.epoch,
        "epoch_step": step <= each,
        "phase_epoch": position.phase_epoch <= plan.phases[position.phase_index].epochs,
        "selected": bool(past.selected) == bool(weights.selected),
        "logits": bool(past.selected) == bool(weights.logits),
        "best": bool(progress.best) == bool(weights.best),
        "epoch_totals": bool(progress.epoch_totals) == (step > 0),
        "phase_hashes": progress.phase_hashes.keys() == plan.classifier.variables.keys(),
    }
    for name, is_so in follows.items():
        if not is_so:
            raise ValueError(f"{name} contradicts the rest of the state")
    totals = {"loss_sum", "examples", "seconds", "waited", "learning_rate", *plan.objective.counted}
    first = past.history[0] if past.history else {}
    curves = {name for name in first if name.startswith(("train_", "val_"))}
    needed = {
        "best": (progress.best, {plan.config.select_by, "epoch"}),
        "selected": (past.selected, {plan.config.select_by, "epoch"}),
        "epoch_totals": (progress.epoch_totals, totals),
        **{f"history[{i}]": (row, curves) for i, row in enumerate(past.history)},
    }
    for name, (found, names) in needed.items():
        if found and not names <= found.keys():
            raise ValueError(f"{name} lacks {', '.join(sorted(names - found.keys()))}")


def sorted_arrays(arrays: Arrays, plan: Plan) -> dict[str, Arrays]:
    """Returns {kind: {name: array}} of a checkpoint's arrays.

    Args:
        arrays: {`<kind>/<name>`: array}.
        plan: Of the run.

    Raises:
        ValueError: If a kind is unknown, a number is not finite, or weights do not fit the network.
    """
    kinds: dict[str, Arrays] = {kind: {} for kind in _KINDS}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind not in kinds:
            raise ValueError(f"{name!a} is of an unknown kind")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
        kinds[kind][rest] = array
    _check_weights(kinds, plan)
    shape = (len(plan.validation), plan.classifier.num_classes)
    for name, array in kinds["logits"].items():
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(f"logits/{name} are {array.dtype} {array.shape}")
    return kinds


def _check_weights(kinds, plan):
    """Raises ValueError if the weights among the arrays do not fit the network."""
    weights = {path: plan.classifier.variables[path] for path in plan.saved_paths}
    expected = {path: (np.dtype(v.dtype), tuple(v.shape)) for path, v in weights.items()}
    for kind in ("variables", "best", "selected"):
        found = {path: (array.dtype, array.shape) for path, array in kinds[kind].items()}
        if found != expected and (found or kind == "variables"):
            different = sorted(path for path, _ in found.items() ^ expected.items())
            raise ValueError(f"{kind} do not fit the network at {', '.join(different[:5])!a}")
