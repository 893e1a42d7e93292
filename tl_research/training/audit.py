"""Exact proof of what a phase changed: by the SHA-256 of every variable before and after."""

import hashlib

import numpy as np

from tl_research.errors import AuditError


def hash_variables(variables):
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


def weights_sha256(variables):
    """Returns one SHA-256 over the names and contents of all variables, hexadecimal."""
    hashes = hash_variables(variables)
    return hashlib.sha256("".join(f"{path} {hashes[path]}\n" for path in sorted(hashes)).encode()).hexdigest()


def audit_phase(phase, before, variables, trainable, statistics, largest_updates, *, statistics_may_move=False):
    """Compares the start of a phase with its last step.

    Args:
        phase: Name of the phase, for the message.
        before: {path: SHA-256} at its start.
        variables: {path: variable} of the whole network, now.
        trainable: Paths of the variables that the phase trained.
        statistics: Paths of the BatchNorm statistics.
        largest_updates: {path: estimate of the largest change that one step made to an element}, for the trainable ones.
        statistics_may_move: Whether BatchNorm was asked to run in training mode.

    Returns:
        dict of counts: trainable_changed, trainable_total, frozen_changed, frozen_total, batchnorm_stats_changed; the
        statistics are counted among the frozen too.

    Raises:
        AuditError: If a frozen variable or a statistic moved, or a trainable variable did not although its updates were
            larger than half the spacing of its floats.
    """
    after = hash_variables(variables)
    changed = {path for path in after if after[path] != before[path]}
    trainable = set(trainable)
    frozen = set(after) - trainable
    moved_statistics = changed & set(statistics)
    moved = (changed & frozen) - (moved_statistics if statistics_may_move else set())
    stuck = [path for path in sorted(trainable - changed)
             if largest_updates[path] > 0.5 * np.spacing(np.max(np.abs(np.asarray(variables[path], np.float32))))]
    if moved or stuck:
        problems = ([f"{len(moved)} frozen variables moved ({', '.join(sorted(moved)[:3])})"] if moved else []) + (
            [f"{len(stuck)} trainable variables did not ({', '.join(stuck[:3])})"] if stuck else [])
        raise AuditError(f"audit of phase {phase} failed: {' and '.join(problems)}; expected exactly the trainable set to "
                         "change; nothing was exported, and the last checkpoint is whole")
    return {"trainable_changed": len(changed & trainable), "trainable_total": len(trainable),
            "frozen_changed": len(changed & frozen - moved_statistics), "frozen_total": len(frozen),
            "batchnorm_stats_changed": len(moved_statistics)}
