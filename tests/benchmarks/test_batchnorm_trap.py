import importlib.util
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def trap():
    spec = importlib.util.spec_from_file_location(
        "batchnorm_trap", os.path.join(ROOT, "benchmarks", "batchnorm_trap.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(trap, write_images, tmp_path_factory):
    photographs = write_images(tmp_path_factory.mktemp("photographs"), count=10)
    return trap.compare(
        trap.Settings(
            dataset="directory",
            data_dir=photographs,
            image_size=64,
            batch_size=8,
            head_epochs=1,
            finetune_epochs=1,
        )
    )


def test_copied_line_moves_statistics_under_fit_and_nothing_of_ours_does(trap, result):
    changed = {name: column["statistics_changed"] for name, column in result["columns"].items()}
    assert changed[trap.TRAP] > 0
    assert changed[trap.LOOP] == changed[trap.HELD] == 0
    changes = {
        name: column["largest_relative_change"] for name, column in result["columns"].items()
    }
    assert changes[trap.TRAP] > 0 and changes[trap.LOOP] == changes[trap.HELD] == 0
    # 49 layers, mean and variance
    assert {column["statistics_total"] for column in result["columns"].values()} == {98}


def test_all_columns_begin_alike(trap, result):
    starts = [column["start"] for column in result["columns"].values()]
    assert [start["val_accuracy"] for start in starts] == pytest.approx(
        [starts[1]["val_accuracy"]] * 3
    )
    assert [start["val_loss"] for start in starts] == pytest.approx(
        [starts[1]["val_loss"]] * 3, rel=1e-4
    )


def test_table_and_figure_show_every_epoch_of_every_column(trap, result, tmp_path):
    lines = trap.table(result).splitlines()
    assert [line.split("|")[1].strip()[:2] for line in lines] == [
        "ep",
        "--",
        "1,",
        "2,",
        "mo",
        "la",
    ]
    assert all(line.count("|") == 5 for line in lines)
    trap.save_figure(tmp_path / "figure.png", result)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_conclusion_follows_the_numbers(trap):
    def column(changed, *accuracies):
        rows = [
            {
                "epoch": 9 + i,
                "train_accuracy": accuracy - 0.1,
                "val_accuracy": accuracy,
                "val_loss": 1 - accuracy,
            }
            for i, accuracy in enumerate(accuracies)
        ]
        return {"rows": rows, "statistics_changed": changed, "statistics_total": 98}

    start = {"epoch": 8, "train_accuracy": 0.95, "val_accuracy": 0.9, "val_loss": 0.3}
    # two standard errors of 0.9: 2 sqrt(0.09 / 400) = 0.03
    result = {
        "start": start,
        "validation_images": 400,
        "columns": {
            trap.TRAP: column(32, 0.84, 0.85),
            trap.LOOP: column(0, 0.92, 0.93),
            trap.HELD: column(0, 0.9, 0.91),
        },
    }
    text = trap.conclusion(result)
    assert "32 of 98 moving statistics change" in text
    assert (
        "training accuracy changes by -21.0 points, validation accuracy by -6.0 (two standard "
        "errors are 3.0) and validation loss by -0.140; at epoch 10 validation stands -5.0 points "
        "and -0.150 in loss"
    ) in text
    assert "ends +6.0 points in validation accuracy and -0.060 in loss" in text
    result["columns"][trap.TRAP] = column(0, 0.92, 0.93)
    assert "Statistics moved in: none of the three." in trap.conclusion(result)
