"""Several seeds in one command, by the program as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tl_research import metrics, seeds
from tl_research.config import Config
from tl_research.errors import UserError

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _train(*flags):
    return subprocess.run(
        [sys.executable, os.path.join(_ROOT, "train.py"), *flags],
        capture_output=True,
        text=True,
        timeout=300,
    )


def _contents(accuracy, test, selected="head"):
    return {
        "phases": [
            {"name": "head", "val_accuracy": accuracy, "val_loss": 0.5},
            {"name": "other", "val_accuracy": 0.0, "val_loss": 9.0},
        ],
        "selected_phase": selected,
        "test": {"accuracy": test, "loss": 0.25},
        "seconds": {"total": 8.0},
    }


def test_summary_has_mean_range_and_students_interval():
    summary = seeds.summarize([_contents(0.9, 0.8), _contents(0.8, 0.8), _contents(0.7, 0.8)])
    assert summary["val_accuracy"]["values"] == [0.9, 0.8, 0.7]
    assert summary["val_accuracy"]["mean"] == pytest.approx(0.8) and (
        summary["val_accuracy"]["min"],
        summary["val_accuracy"]["max"],
    ) == (0.7, 0.9)
    # 0.8 - 4.3027 * 0.1 / sqrt(3), and 1.048 is no accuracy
    assert summary["val_accuracy"]["ci95"] == pytest.approx([0.8 - 0.248416, 1.0], abs=1e-5)
    assert summary["test_accuracy"]["ci95"] == [0.8, 0.8] and summary["seconds"]["mean"] == 8.0
    assert "| val_accuracy | 0.8 | 0.7-0.9 | 0.5516-1 |" in seeds.table(summary)


def test_what_a_seed_does_not_have_is_left_out():
    without = {
        **_contents(0.9, 0.5),
        "selected_phase": None,
        "test": {"accuracy": 0.5, "loss": None},
    }
    assert set(seeds.summarize([without, _contents(0.9, 0.7)])) == {"test_accuracy", "seconds"}


def test_calibration_is_summarized_where_every_seed_has_it():
    found = {"temperature": 1.5, "reason": None, "ece_after": 0.01}
    others = [{**_contents(0.9, 0.8), "calibration": {**found, "ece_after": e}} for e in (0, 0.05)]
    runs = [{**_contents(0.9, 0.8), "calibration": found}, *others]
    summary = seeds.summarize(runs)
    assert summary["temperature"]["mean"] == 1.5 and "reason" not in summary
    # 0.02 -+ 4.3027 * 0.026458 / sqrt(3)
    assert summary["ece_after"]["ci95"] == pytest.approx([0.0, 0.085725], abs=1e-5)
    assert "temperature" not in seeds.summarize([*runs, _contents(0.9, 0.8)])


def test_interval_of_a_loss_is_not_cut_at_1():
    runs = [_contents(0.9, 0.8) for _ in range(3)]
    for contents, loss in zip(runs, (0.1, 1.0, 1.9)):
        contents["test"]["loss"] = loss
    assert seeds.summarize(runs)["test_loss"]["ci95"][1] == pytest.approx(1 + 4.3027 * 0.9 / 3**0.5)


def test_one_or_two_values_have_no_interval_and_many_that_of_the_normal_distribution():
    assert metrics.student_interval([0.5]) is metrics.student_interval([0.5, 0.6]) is None
    assert "| test_accuracy | 0.7 | 0.6-0.8 |  |" in seeds.table(
        seeds.summarize([_contents(0.9, 0.6), _contents(0.9, 0.8)])
    )
    low, high = metrics.student_interval([0.0, 1.0] * 50)
    assert high - low == pytest.approx(2 * 1.96 * 0.502519 / 10, rel=1e-5)


def test_seeds_are_checked():
    assert (
        Config().seeds == ()
        and Config(seeds="0,2").seeds == (0, 2)
        and Config(seeds="").seeds == ()
    )
    with pytest.raises(UserError, match="--seeds=0,1 with --distribute=multi_worker"):
        Config(seeds="0,1", distribute="multi_worker", workdir="w")
    for wrong in ("1,1", "-1", "a", "1,,2"):
        with pytest.raises(UserError, match="--seeds"):
            Config(seeds=wrong)
    assert "seeds" not in Config(seeds="0,1").to_flags()


_PARENT = """
import sys
from tl_research import seeds
print("started", flush=True)
child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
seeds._finish([sys.executable, "-c", child])
"""


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # nobody asked how it ended
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_child_ends_with_its_parent_however_that_ends():
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"started\n"
        child = int(parent.stdout.readline())
        assert _is_running(child)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 5
        while _is_running(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_running(child)


def test_each_seed_is_the_run_that_it_is_alone(run_train, write_images, one_layer, tmp_path):
    flags = [
        "--dataset=directory",
        f"--data_dir={write_images(tmp_path / 'photographs', count=10, size=32)}",
        f"--extension={one_layer}",
        "--image_size=32",
        "--phases=head",
        "--epochs=1",
        "--unfreeze=0%",
        "--learning_rate=1e-3",
        "--patience=0",
        "--data_audit=off",
    ]
    together = [*flags, "--seeds=1,2", f"--workdir={tmp_path / 'both'}", "--split_seed=7"]
    broken = subprocess.Popen(
        [sys.executable, os.path.join(_ROOT, "train.py"), *together],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "both" / "seed1" / "run.json").exists() and broken.poll() is None:
        time.sleep(0.1)
    broken.send_signal(signal.SIGTERM)
    _, said = broken.communicate(timeout=100)
    assert broken.returncode == 143, said
    assert said.endswith(
        "stopped by SIGTERM, signal 15; nothing is lost. To continue:\n"
        f"  the same command with --workdir={tmp_path / 'both'}\n"
    )
    done = _train(*together)  # not refused, since the one of seed 1 has ended too
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert printed == json.loads((tmp_path / "both" / "seeds.json").read_text())
    assert printed["seeds"] == [1, 2] and printed["seeds_split"] == "separate"
    assert printed["runs"]["2"] == json.loads(
        (tmp_path / "both" / "seed2" / "results.json").read_text()
    )
    assert printed["summary"]["test_accuracy"]["values"] == [
        printed["runs"][seed]["test"]["accuracy"] for seed in "12"
    ]
    assert json.loads((tmp_path / "both" / "seed2" / "split.json").read_text())["seed"] == 2
    alone = [*flags, "--seed=2", "--split_seed=2", f"--workdir={tmp_path / 'alone'}"]
    ((code, _, said),) = run_train(alone)
    assert code == 0, said
    assert (
        json.loads((tmp_path / "alone" / "results.json").read_text())["weights_sha256"]
        == printed["runs"]["2"]["weights_sha256"]
    )
    # Again, with the gate on the mean: nothing is trained, and one split for both is another run.
    before = os.stat(tmp_path / "both" / "seed1" / "results.json").st_mtime_ns
    gated = _train(*together, "--min_test_accuracy=1")
    assert gated.returncode == (3 if printed["summary"]["test_accuracy"]["mean"] < 1 else 0)
    assert os.stat(tmp_path / "both" / "seed1" / "results.json").st_mtime_ns == before
    other = _train(*together, "--seeds_split=same", "--debug")
    assert other.stderr.count("Traceback") == 2  # of the seed's process and of this one
    assert (
        other.returncode == 7
        and "--split_seed=1" in other.stderr
        and "seed 1 ended with exit code 7" in other.stderr
    )
    taken = _train(*flags, "--seeds=2", f"--workdir={tmp_path / 'alone'}")
    assert taken.returncode == 8 and "is a run of one seed" in taken.stderr
