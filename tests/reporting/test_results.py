"""Numbers worked out by hand."""

import csv
import io
import json

from tl_research.files import csv_text
from tl_research.reporting import figures, results


def test_csv_has_the_columns_of_its_rows_with_every_digit():
    row = dict(
        phase="head",
        epoch=1,
        step=3,
        train_loss=0.1 + 0.2,
        train_accuracy=1.0,
        val_loss=float("nan"),
        val_accuracy=0.5,
        images_per_second=10.0,
        seconds=2.0,
        learning_rate=1e-3,
    )
    text = csv_text(row, [row, {**row, "epoch": 2}])
    assert text.splitlines()[0] == (
        "phase,epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,"
        "images_per_second,seconds,"
        "learning_rate"
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 2 and float(rows[0]["train_loss"]) == 0.1 + 0.2  # every digit
    assert "\r" not in text and csv_text(row, []).count("\n") == 1


def test_no_nan_in_json():
    value = {
        "a": [1.5, float("nan"), (float("inf"), True)],
        "b": {"c": -float("inf"), "d": "nan", "e": 3},
    }
    assert results.without_nan(value) == {
        "a": [1.5, None, [None, True]],
        "b": {"c": None, "d": "nan", "e": 3},
    }
    json.dumps(results.without_nan(value), allow_nan=False)


def test_curves_are_a_png(tmp_path):
    rows = [
        dict(
            phase=phase,
            epoch=epoch,
            train_loss=1 / epoch,
            val_loss=float("nan") if epoch == 2 else 0.5,
            train_accuracy=0.5,
            val_accuracy=0.6,
        )
        for epoch, phase in ((1, "head"), (2, "head"), (3, "finetune"))
    ]
    selected = {"epoch": 3, "val_loss": 0.5, "val_accuracy": 0.6}
    phases = [{"best_epoch": 1}, {"best_epoch": 3}]
    figures.save_curves(str(tmp_path / "curves.png"), rows, phases, selected, (8, 4))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def _time_line(seconds, earlier=0.0):
    summary = {
        "seconds": seconds,
        "substitutions": [],
        "test": {"accuracy": 0.75, "n": 4, "ci95": [0.3, 0.95]},
        "phases": [],
        "selected_phase": None,
        "head_start": None,
    }
    (line,) = [
        line for line in results.ending(summary, "/nowhere", earlier) if line.startswith("time: ")
    ]
    return line


def test_parts_of_the_time_add_up_to_all_of_it():
    seconds = {"total": 90.0, "start": 3.0, "data": 8.5, "features": 21.0, "compile": 20.0}
    seconds |= {"train": 4.5, "evaluate": 4.0, "export": 10.0, "figures": 1.0}
    # a twentieth is 4.5 s; the other 3 + 4 + 1 s, and 18 s that are no part, are 26 s
    assert _time_line(seconds) == (
        "time: 90 s (loading 8.5 s, features 21 s, compiling 20 s, training 4.5 s, export 10 s, "
        "other 26 s)"
    )
    # 30 of the seconds of these parts were spent before the run was resumed
    assert _time_line({**seconds, "total": 60.0}, 30.0) == (
        "time: 90 s (loading 8.5 s, features 21 s, compiling 20 s, training 4.5 s, export 10 s, "
        "other 26 s), of which 30 s before it was resumed"
    )
    # 4.5 s are no twentieth of these
    assert _time_line({**seconds, "total": 164.0}) == (
        "time: 164 s (loading 8.5 s, features 21 s, compiling 20 s, export 10 s, other 104 s)"
    )
    assert _time_line({"total": 7200.0, "train": 6000.0, "features": 900.0}) == (
        "time: 2.0 h (features 15 min, training 100 min, other 5 min)"
    )
    # of a finished run it is not known which process the parts belong to
    assert _time_line(seconds, None) == "time: 90 s"
