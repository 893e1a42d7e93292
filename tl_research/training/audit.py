"""Proves exactly what a phase changed, from the SHA-256 of every variable before and after."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_research import distribution
from tl_research.errors import AuditError
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.training.state import TrainState

if TYPE_CHECKING:  # they import this module
    from tl_research.training.phase import PhaseSetup

# Keras' epsilon of 1e-7 relative to the gradient in the first steps: added to sqrt(v), v = (1 -
# 0.999) g^2, in Adam, and under the root in RMSprop.
_EPSILON = {"adam": 3.2e-6, "adamw": 3.2e-6, "rmsprop": 3.2e-4, "lion": 0.0}
# A user's optimizer makes at least this share of the smaller of sgd's and adam's updates.
_OWN = 0.01


def hash_variables(variables: Mapping[str, Any]) -> dict[str, str]:
    """Returns {path: SHA-256 of dtype, shape and bytes, hexadecimal}.

    Args:
        variables: {path: keras.Variable or array}.
    """
    hashes = {}
    for path, variable in variables.items():
        array = np.asarray(variable)
        digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        hashes[path] = digest.hexdigest()
    return hashes


def weights_sha256(variables: Mapping[str, Any]) -> str:
    """Returns one SHA-256 over the names and contents of all variables, hexadecimal."""
    hashes = hash_variables(variables)
    return hashlib.sha256(
        "".join(f"{path} {hashes[path]}\n" for path in sorted(hashes)).encode()
    ).hexdigest()


def audit_phase(
    phase: str,
    before: Mapping[str, str],
    variables: Mapping[str, Any],
    moved: Iterable[str],
    statistics: Iterable[str],
    largest_updates: Mapping[str, float],
    *,
    statistics_may_move: bool = False,
) -> dict[str, int]:
    """Compares the start of a phase with its last step.

    Args:
        phase: Name of the phase, for the message.
        before: {path: SHA-256} at its start.
        variables: {path: variable} of the whole network, now.
        moved: Paths of the trainable variables that a step moved, even if they moved back.
        statistics: Paths of the BatchNorm statistics.
        largest_updates: {path: estimate of the largest change that one step made to an element},
            for all trainable variables.
        statistics_may_move: Whether BatchNorm was asked to run in training mode.

    Returns:
        dict of counts: trainable_changed, trainable_total, frozen_changed, frozen_total (with the
        statistics), batchnorm_stats_changed.

    Raises:
        AuditError: If a frozen variable or a statistic moved, or a trainable variable did not
            although its updates exceeded half the spacing of its floats.
    """
    after = hash_variables(variables)
    changed = {path for path in after if after[path] != before[path]} | set(moved)
    trainable = set(largest_updates)
    frozen = set(after) - trainable
    moved_statistics = changed & set(statistics)
    wrong = (changed & frozen) - (moved_statistics if statistics_may_move else set())

    def should_move(path: str) -> bool:
        largest = np.max(np.abs(np.asarray(variables[path], np.float32)))
        return largest_updates[path] > 0.5 * np.spacing(largest)

    stuck = set(filter(should_move, trainable - changed))
    problems = {"frozen variables moved": wrong, "trainable variables did not": stuck}
    if failed := [
        f"{len(paths)} {what} ({', '.join(sorted(paths)[:3])})"
        for what, paths in problems.items()
        if paths
    ]:
        raise AuditError(
            f"audit of phase {phase} failed: {' and '.join(failed)}; expected exactly the "
            "trainable set to change; nothing was exported, and the last checkpoint is intact"
        )
    return {
        "trainable_changed": len(changed & trainable),
        "trainable_total": len(trainable),
        "frozen_changed": len(changed & frozen - moved_statistics),
        "frozen_total": len(frozen),
        "batchnorm_stats_changed": len(moved_statistics),
    }


def largest_updates(
    optimizer: GroupedOptimizer, max_gradient_norms: Mapping[str, float], largest_rate: float
) -> dict[str, float]:
    """Returns {path: estimate of the largest change that one step made to an element}.

    Args:
        optimizer: A `GroupedOptimizer`.
        max_gradient_norms: {path: largest norm of its gradient}.
        largest_rate: Largest learning rate, before group multipliers.
    """
    updates = {}
    for group, kind in zip(optimizer.groups, optimizer.kinds):
        for path, variable in zip(group.paths, group.variables):
            # root mean square
            gradient = max_gradient_norms.get(path, 0.0) / math.sqrt(
                max(1, math.prod(variable.shape))
            )
            update = gradient if kind == "sgd" else _OWN * min(gradient, 1.0)
            if kind in _EPSILON:
                # these divide by the gradient's size: about 1 unless it is small beside epsilon
                update = gradient / max(gradient + _EPSILON[kind], 1e-30)
            updates[path] = largest_rate * group.lr_multiplier * update
    return updates


def check(setup: "PhaseSetup", state: TrainState) -> dict[str, int]:
    """Returns the counts of `audit_phase` for a finished phase.

    Raises:
        AuditError: As for `audit_phase`, or if the weights of the processes differ.
    """
    classifier, progress = setup.plan.classifier, state.progress
    if distribution.is_multi_worker():
        what = f"the weights after phase {setup.phase.name}"
        distribution.check_equal(what, weights_sha256(classifier.variables), AuditError)
    return audit_phase(
        setup.phase.name,
        progress.phase_hashes,
        classifier.variables,
        progress.moved,
        classifier.batchnorm_statistics(),
        largest_updates(setup.optimizer, progress.gradient_peaks, progress.largest_rate),
        statistics_may_move=setup.plan.config.batchnorm == "training",
    )
