"""What observers raise, and functions of an extension, ends a run and loses no finished step."""

import pytest

from tl_research.extension import Extension
from tl_research.run import checkpoints
from tl_research.training.events import CallEnded, EpochEnded, PhaseBegan, PhaseEnded


def test_what_raises_outside_the_loop_loses_no_finished_step(run, assert_equal_runs, tmp_path):
    """One run is ended at six places, one after the other, and goes on each time."""
    fails = set()

    def epoch_ends(run, row, logits):
        if row["epoch"] in fails and logits.any():  # not the trial before training
            raise ArithmeticError("epoch_ends")
        return {"score": row["epoch"] / 10}

    settings = {
        "epochs": (1, 2),
        "steps_per_call": 2,
        "parts": Extension(epoch_ends=epoch_ends),
        "select_by": "score",
    }
    whole = run("unbroken", **settings)

    def raising(kind, fits):
        def observer(event):
            if isinstance(event, kind) and fits(event):
                raise ArithmeticError(kind.__name__)

        return observer

    def saved():
        state, _ = checkpoints.load_newest(str(tmp_path / "broken" / "checkpoints"), 1 << 30)
        names = ("phase_index", "global_step", "epoch", "epoch_step", "finished")
        return [state[name] for name in names]

    for observer, expected in (
        (raising(CallEnded, lambda event: event.step == 2), [0, 2, 0, 2, []]),
        (None, [0, 5, 0, 5, []]),  # `epoch_ends` raises: the epoch is trained and not evaluated
        (raising(EpochEnded, lambda event: event.row["epoch"] == 1), [0, 5, 1, 0, []]),
        (raising(PhaseEnded, lambda event: event.phase.name == "head"), [0, 5, 1, 0, []]),
        (raising(PhaseBegan, lambda event: event.phase.name == "finetune"), [0, 5, 1, 0, []]),
        (raising(CallEnded, lambda event: event.step == 10), [1, 10, 1, 5, whole["phases"][:1]]),
    ):
        fails.update({1} if observer is None else ())
        with pytest.raises(ArithmeticError):
            run("broken", observers=[observer] if observer else [], **settings)
        fails.clear()
        position, finished = saved()[:4], saved()[4]
        assert position == expected[:4]
        assert [phase["name"] for phase in finished] == [phase["name"] for phase in expected[4]]
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")
