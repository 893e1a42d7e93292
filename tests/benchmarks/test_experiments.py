import json
import os

import experiments
import pytest

from tl_research.errors import UserError


def _result(accuracy, loss, test, seconds=10.0):
    return {
        "phases": [
            {"name": "head", "val_accuracy": 0.1, "val_loss": 9.0},
            {"name": "finetune", "val_accuracy": accuracy, "val_loss": loss},
        ],
        "selected_phase": "finetune",
        "test": {"accuracy": test, "loss": 1.0},
        "seconds": {"total": seconds},
    }


def test_table_has_means_of_the_selected_phase():
    rows = {
        "--a=1": {0: _result(0.9, 0.4, 0.8), 1: _result(0.8, 0.6, 0.7, 30.0)},
        "--a=2": {1: _result(0.84, 0.3, 0.9)},
    }
    lines = experiments.table(rows).splitlines()
    assert lines[2:] == [
        (
            "| `--a=1` | 0, 1 | 0.850 (0.900, 0.800) | 0.500 (0.400, 0.600) |  | 0.750 (0.800, "
            "0.700) | 20 |"
        ),
        "| `--a=2` | 1 | 0.840 | 0.300 | +4.0 points, -50.0 %, within noise | 0.900 | 10 |",
    ]


def _row(*accuracies, loss=0.5):
    return {seed: _result(accuracy, loss, 0.8) for seed, accuracy in enumerate(accuracies)}


def test_rows_are_ranked_by_paired_differences_with_their_standard_error():
    rows = {
        "first": _row(0.90, 0.80, 0.70),
        # differences -1, -2, -3 points: mean -2, standard error 1 / sqrt(3) = 0.58
        "worse": _row(0.89, 0.78, 0.67, loss=0.6),
        # 0, 2, 1: mean 1, the same standard error, 0.58 x 2 > 1
        "perhaps": _row(0.90, 0.82, 0.71),
        # 2, 3, 4: though its own accuracies scatter by 9 points
        "better": _row(0.92, 0.83, 0.74, loss=0.4),
        # 9 and 9 points, of two seeds
        "two": _row(0.99, 0.89),
        "none": {7: _result(0.99, 0.5, 0.8)},
    }
    lines = [line.split(" | ") for line in experiments.table(rows).splitlines()[2:]]
    assert [(line[0].strip("| `"), line[4].strip()) for line in lines] == [
        ("first", ""),
        ("two", "+9.0 (0.0) points, +0.0 %, within noise"),
        ("better", "+3.0 (0.6) points, -20.0 %"),
        ("perhaps", "+1.0 (0.6) points, +0.0 %, within noise"),
        ("worse", "-2.0 (0.6) points, +20.0 %"),
        ("none", ""),
    ]


def test_runs_what_is_missing_and_only_reads_what_is_finished(write_images, one_layer, tmp_path):
    photographs = write_images(tmp_path / "photographs", count=10, size=32)
    base = (
        f"--dataset=directory --data_dir={photographs} --extension={one_layer} "
        "--image_size=32 --phases=head --epochs=1 --unfreeze=0% --learning_rate=1e-3 --patience=0"
    )
    settings = experiments.Settings(
        runs=str(tmp_path / "runs"), base=base, row=("--augment=none",), seeds="3"
    )
    rows = experiments.measure(settings)
    place = tmp_path / "runs" / "augment=none" / "seed3"
    written = json.loads((place / "results.json").read_text())
    assert rows == {"--augment=none": {3: written}} and written["test"]["reads"] == 1
    flags = (place / "flags.txt").read_text().splitlines()
    assert {"--augment=none", "--seed=3", "--split_seed=3"} <= set(flags)
    before = os.stat(place / "results.json").st_mtime_ns
    assert (
        experiments.measure(settings) == rows
        and os.stat(place / "results.json").st_mtime_ns == before
    )


def test_failures_and_missing_flags_are_errors(tmp_path):
    with pytest.raises(UserError, match="exit code 1"):
        experiments.measure(
            experiments.Settings(
                runs=str(tmp_path), base="--no_such_flag", row=("--seed=1",), seeds="0"
            )
        )
    with pytest.raises(UserError, match="--runs or --row is missing"):
        experiments.Settings(runs=str(tmp_path))
