import itertools
import json
import os
import subprocess
import sys
import types

import gpu
import gpu_checks
import keras
import pytest

from tl_research.errors import UserError
from tl_research.optim import loss_scale

_MACHINE = {"float32": 100.0, "bfloat16": 200.0, "copy": 10.0}


@pytest.fixture
def settings(tiny_backbone, monkeypatch, tmp_path):
    """A function to `Settings` of the tiny backbone on the CPU, whose peaks are given."""
    monkeypatch.setattr(gpu.limits, "probe", lambda rounds: _MACHINE)

    def make(**more):
        return gpu.Settings(
            **{
                "device": "cpu",
                "backbones": "Tiny@16",
                "images": 8,
                "batch_size": 4,
                "seconds": 0.01,
                "checks": "none",
                "output_json": str(tmp_path / "gpu.json"),
                **more,
            }
        )

    yield make
    keras.config.set_dtype_policy("float32")


def test_program_runs_on_a_cpu(settings, tmp_path, capsys):
    rows = gpu.measure(settings(checks="precision", cells=3))
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows
    precision, machine, *cells = rows
    assert (machine["device"], machine["published"], machine["copy"]) == ("CPU", None, 10.0)
    assert precision["passed"] and precision["detail"].startswith(
        "auto is float32; mixed_bfloat16: bfloat16 and float32,"
    )
    assert [(row["kind"], row["phase"], row["precision"], row["xla"]) for row in cells] == [
        (kind, "finetune", "float32", False) for kind in ("live", "fit", "cached")
    ]
    live, fit, cached = cells
    assert cached["bytes_per_image"] < live["bytes_per_image"] == fit["bytes_per_image"]
    for row in cells:
        assert (
            row["range"][0] <= row["images_per_second"] <= row["range"][1]
            and row["first_epoch_seconds"] > 0
        )
        assert row["roofline"] == pytest.approx(
            row["images_per_second"] * row["bytes_per_image"] / 10e9
        )
        assert row["over_fit"] == pytest.approx(row["images_per_second"] / fit["images_per_second"])
    lines = gpu.table(rows).splitlines()
    assert len(lines) == 8 and {line.count("|") for line in lines[3:]} == {9}
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == lines[:2] and all(
        line.startswith("| Tiny@16, finetune | ") for line in printed[2:]
    )


def test_several_checks_are_processes_side_by_side(settings, capfd):
    rows = gpu.measure(settings(checks="xla,parity", backbones="NoSuch@16", cells=0))
    assert [row["check"] for row in rows] == ["xla", "parity"]
    assert all(row["error"].startswith("UserError: No backbone is called 'NoSuch'") for row in rows)
    printed, started = capfd.readouterr()
    # both had begun before the first one was waited for
    assert [line.count("--checks=") for line in started.splitlines()][:2] == [1, 1]
    assert [line.split(":")[0] for line in printed.splitlines()] == ["check xla", "check parity"]


def test_check_that_does_not_end_in_time_is_a_row_with_its_error(settings):
    rows = gpu.measure(settings(checks="xla,parity", cells=0), started=-1e9)
    assert [row["check"] for row in rows] == ["xla", "parity"]
    error = "RuntimeError: no result in time; its process ended with -9"
    assert [row["error"] for row in rows] == [error, error]


@pytest.mark.parametrize(
    "name, told",
    [
        ("xla", "off by "),
        ("loss_scale", "from 2^30 to 2^"),
        ("determinism", "float32, XLA off: "),
        # on a CPU it is compared with itself
        ("parity", "logits and gradients are off by float32 0.0e+00 and 0.0e+00"),
    ],
)
def test_other_checks_pass_on_a_cpu(settings, name, told):
    passed, detail = gpu_checks.CHECKS[name](settings())
    assert passed and detail.startswith(told), detail


def _change(monkeypatch, name):
    """Makes what a check looks for wrong."""
    network, updates, number = gpu_checks.make_network, gpu_checks.weight_changes, itertools.count()
    if name == "precision":
        monkeypatch.setattr(
            gpu_checks, "make_network", lambda settings, precision: network(settings, "float32")
        )
    if name == "parity":  # other weights on the device
        monkeypatch.setattr(
            gpu_checks,
            "make_network",
            lambda settings, precision, weights=(): network(
                settings, precision, [1.5 * weight for weight in weights]
            ),
        )
    if name == "xla":
        monkeypatch.setattr(
            gpu_checks,
            "weight_changes",
            lambda settings, precision, xla=False: {
                path: value * (1.01 if xla else 1.0)
                for path, value in updates(settings, precision).items()
            },
        )
    if name == "determinism":
        monkeypatch.setattr(
            gpu_checks,
            "make_network",
            lambda *given, **more: network(*given, seed=next(number), **more),
        )
    if name == "loss_scale":  # shrinks by itself
        update = loss_scale.update
        monkeypatch.setattr(
            loss_scale,
            "update",
            lambda state, applied: {
                key: value / 2 if key == "loss_scale" else value
                for key, value in update(state, applied).items()
            },
        )


@pytest.mark.parametrize("name", list(gpu_checks.CHECKS))
def test_each_check_can_fail(settings, monkeypatch, name):
    _change(monkeypatch, name)
    passed, detail = gpu_checks.CHECKS[name](settings())
    assert not passed, detail


def test_what_fails_is_a_row(settings, monkeypatch, tmp_path):
    def fail(settings):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setitem(gpu_checks.CHECKS, "xla", fail)
    rows = gpu.measure(settings(checks="xla", backbones="NoSuch@16", cells=2))
    assert rows[0]["error"] == "RuntimeError: no kernel for this"
    lines = gpu.table(rows).splitlines()
    assert lines[0] == "check xla: RuntimeError: no kernel for this"
    monkeypatch.setitem(gpu_checks.CHECKS, "parity", lambda settings: (False, "off by 1"))
    failed = gpu.measure(settings(checks="parity", cells=0))
    assert gpu.table(failed).splitlines()[0] == "check parity: FAILED: off by 1"
    assert [line.split(", XLA off: ")[0] for line in lines[-2:]] == [
        f"NoSuch@16, finetune, {kind}, float32" for kind in ("live", "fit")
    ]
    assert all("UserError" in line for line in lines[-2:])
    with pytest.raises(UserError, match="--checks has speed; expected any of precision, xla"):
        gpu.measure(settings(checks="xla,speed"))


def test_what_may_not_end_in_time_is_skipped_and_listed(settings, monkeypatch, tmp_path):
    now = [0.0]  # seconds

    def measure_cell(settings, **cell):
        now[0] += 40
        saved = json.loads((tmp_path / "gpu.json").read_text())["rows"]  # all before this one
        return {
            "images_per_second": float(len(saved)),
            "range": [1.0, 1.0],
            "first_epoch_seconds": 1.0,
            "bytes_per_image": 1,
        }

    monkeypatch.setattr(gpu, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(gpu, "measure_cell", measure_cell)
    # 110 s are left: the third cell begins after 80, and a fourth would after 120
    rows = gpu.measure(settings(cells=5, minutes=2.0), started=-10.0)
    found = [row.get("images_per_second") or row["skipped"] for row in rows[1:]]
    assert found == [1.0, 2.0, 3.0, True, True]
    skipped = "Tiny@16, finetune, fit, mixed_bfloat16, XLA off: skipped"
    assert gpu.table(rows).splitlines()[-1] == skipped
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows


def test_shares_and_ratios_are_of_the_same_work():
    cell = {
        "backbone": "A",
        "image_size": 16,
        "phase": "head",
        "precision": "float32",
        "bytes_per_image": 10**7,
    }
    rows = [
        {"machine": True, "published": 2.0, "copy": 1.0},  # GB/s
        {**cell, "kind": "live", "images_per_second": 100.0},
        {**cell, "kind": "fit", "images_per_second": 40.0},
        {**cell, "kind": "fit", "images_per_second": 50.0},
        {**cell, "kind": "fit", "images_per_second": 99.0, "phase": "finetune"},
        {**cell, "kind": "live", "images_per_second": 100.0, "precision": "mixed_bfloat16"},
    ]
    gpu.compare(rows)
    assert rows[1]["roofline"] == 0.5 and rows[1]["over_fit"] == 2.0
    assert rows[-1]["over_fit"] is None


def test_one_backbone_comes_first_in_all_variants_and_then_others_in_the_best(monkeypatch):
    monkeypatch.setattr(gpu_checks, "resolved", lambda settings: ("mixed_bfloat16", True))  # a GPU
    cells = gpu.make_cells(gpu.Settings(backbones="A@16,B@32"))
    assert len(cells) == len({tuple(cell.values()) for cell in cells}) == 2 * 2 * 3 * 3 * 2

    def best(cell):
        return cell["precision"] == "mixed_bfloat16" and cell["xla"]

    assert [cell["backbone"] for cell in cells] == 36 * ["A"] + 36 * ["B"]
    told = [(cell["phase"], cell["kind"], cell["precision"], cell["xla"]) for cell in cells[:6]]
    assert told == [
        ("finetune", kind, "mixed_bfloat16", xla)
        for xla in (True, False)
        for kind in ("live", "fit", "cached")
    ]
    assert [cell["phase"] for cell in cells[:36]] == 18 * ["finetune"] + 18 * ["head"]
    assert all(best(cell) for cell in cells[36:42]) and not any(best(cell) for cell in cells[42:])


def test_without_a_gpu_the_program_says_so_and_ends(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.path.dirname(os.path.dirname(gpu.__file__)),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, gpu.__file__],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "no GPU here: nothing was checked or measured; --device=cpu runs the program on the CPU\n"
    )
