"""examples/macro_f1.py: the score of the kept epoch, worked out from the definition."""

import os
import types

import numpy as np
import pytest

from tl_research import extension

EXAMPLES = os.path.join(os.path.dirname(__file__), "..", "..", "examples")


def test_score_is_measured_and_decides_what_is_kept(assert_resumes):
    results, rows = assert_resumes(
        "macro_f1.py",
        select_by="macro_f1",
        patience=1,
        epochs=(3, 3),
        learning_rate=(0.3, 3e-2),
        split=(0.5, 0.3, 0.2),
        precision="mixed_float16",
    )
    received = [float(row["macro_f1"]) for row in rows]
    assert all(0 < value <= 1 for value in received) and len(set(received)) > 1
    for phase in results["phases"]:
        of_phase = {
            int(r["epoch"]): float(r["macro_f1"]) for r in rows if r["phase"] == phase["name"]
        }
        best = max(of_phase.values())
        assert of_phase[phase["best_epoch"]] == best
        assert phase["best_epoch"] == min(epoch for epoch in of_phase if of_phase[epoch] == best)


def test_score_is_that_of_the_definition():
    """Three classes, one of which is never predicted, and one that is not there at all."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    logits = np.eye(4)[[0, 0, 1, 1, 1, 2, 1, 0]]
    # F1 of 0: 2 x 3 / (4 + 3); of 1: 2 x 3 / (4 + 4); of 2: 0 / 1; 3 does not count.
    expected = (6 / 7 + 6 / 8 + 0) / 3
    run = types.SimpleNamespace(validation=types.SimpleNamespace(labels=labels))
    part = extension.load(os.path.join(EXAMPLES, "macro_f1.py")).epoch_ends
    assert part(run, {}, logits) == {"macro_f1": pytest.approx(expected)}
