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
            backbone="EfficientNetLite0@64",
            batch_size=8,
            epochs="1,1",
        )
    )


def test_copied_line_moves_statistics_under_fit_and_nothing_of_ours_does(trap, result):
    changed = {name: column["statistics_changed"] for name, column in result["columns"].items()}
    assert changed[trap.TRAP] > 0
    assert changed[trap.LOOP] == changed[trap.HELD] == 0
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
    ]
    assert all(line.count("|") == 5 for line in lines)
    trap.save_figure(tmp_path / "figure.png", result)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
