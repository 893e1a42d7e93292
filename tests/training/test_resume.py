"""A resumed run is an unbroken one, wherever it was broken off, or it is refused."""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import threading

import numpy as np
import pytest
import tensorflow as tf

import tl_research
from tl_research import artefacts, machine
from tl_research.data import pipeline
from tl_research.errors import CheckpointError, GateError, Interrupted, StorageError
from tl_research.extension import package_sha256
from tl_research.models import backbones
from tl_research.optim import loss_scale
from tl_research.run import checkpoints
from tl_research.signals import Signals
from tl_research.training import epoch, evaluation, feature_cache, loop, selection
from tl_research.training.resume import Resume

STEPS = 5  # of 39 training images in batches of 8
_BY = {
    signal.SIGTERM: "SIGTERM, signal 15",
    signal.SIGINT: "Ctrl-C",
    signal.SIGHUP: "SIGHUP, signal 1",
}


def test_resumed_run_ends_as_an_unbroken_one(run, broken, metrics, assert_equal_runs, capsys):
    """Cut off at steps and epoch ends of both phases, by signals and by crashes, some of them in
    one run.
    """
    settings = {"steps_per_call": 2, "data_audit": "on"}  # calls of 2, 2 and 1 steps
    run("unbroken", **settings)
    assert len(metrics("unbroken")) == 4
    total = int(metrics("unbroken")[-1]["step"])
    per_epoch = total // 4
    assert per_epoch == STEPS

    # In mid-epoch, at the end of a phase, at an epoch's last step; what lies behind a crash's last
    # checkpoint is done again.
    resumed = None
    for place, when, number, code, said in (
        ("step", 2, signal.SIGTERM, 143, "phase head, epoch 1, step 2"),
        ("epoch", 1, None, None, None),
        ("epoch", 2, signal.SIGINT, 130, f"phase head, epoch 2, step {2 * STEPS}"),
        ("step", 2 * STEPS + 4, None, None, None),
        ("step", 3 * STEPS, signal.SIGHUP, 129, f"phase finetune, epoch 3, step {3 * STEPS}"),
    ):
        capsys.readouterr()
        error = broken("broken", **{place: when}, signal=number, **settings)
        if resumed:
            assert f"resumed {resumed}\n" in capsys.readouterr().err
        resumed = said
        if number:
            assert f"stopped by {_BY[number]} after step " in str(error) and error.exit_code == code
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # handlers are given back
    capsys.readouterr()
    run("broken", **settings)
    assert f"resumed {resumed}\n" in capsys.readouterr().err
    assert_equal_runs("unbroken", "broken")


@pytest.mark.parametrize(
    "settings",
    [
        {"ema_decay": 0.9, "class_weights": "balanced", "class_share": ("ant=0.9",)},
        {"mixup": 0.4},
        {"manifold_mixup": 0.4, "feature_cache": "memory"},
        {"precision": "mixed_bfloat16"},
    ],
)
def test_settings_for_research_are_resumed_bit_for_bit(
    run, broken, unbroken, metrics, assert_equal_runs, settings
):
    settings = {**settings, "steps_per_call": 2, "checkpoint_every_steps": 2}
    whole = run("unbroken", copies={"broken": 4}, **settings)
    total = int(metrics("unbroken")[-1]["step"])
    broken("broken", step=total - 2, signal=signal.SIGTERM, **settings)
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")
    assert whole["weights_sha256"] != unbroken("plain", steps_per_call=2)["weights_sha256"]


def test_checkpoints_in_mid_epoch_are_resumed_bit_for_bit(run, broken, assert_equal_runs):
    settings = {"checkpoint_every_steps": 3}
    # just before they would be saved: 7 to 9 and 13 to 15 are done again
    run("unbroken", copies={"crashed": 9}, **settings)
    broken("crashed", step=15, **settings)
    run("crashed", **settings)
    assert_equal_runs("unbroken", "crashed")


def test_run_in_float16_is_resumed_with_its_loss_scale(
    run, broken, metrics, events, assert_equal_runs, monkeypatch, capsys
):
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**24)
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    settings = {
        "precision": "mixed_float16",
        "checkpoint_every_steps": 2,
        "epochs": (1, 3),
        "augment_views": 2,
    }
    result = run("unbroken", copies={"crashed": STEPS + 3}, **settings)
    said = capsys.readouterr().out
    rows, train = (
        metrics("unbroken"),
        events("unbroken", "train"),
    )
    skipped = [int(row["skipped_steps"]) for row in rows]
    assert list(rows[0])[-3:] == ["learning_rate", "loss_scale", "skipped_steps"]
    # the head, in float32, never overflows; the backbone does, until the scale fits
    assert skipped[0] == 0 < skipped[1]
    assert f"loss scale {float(rows[1]['loss_scale']):g}, {skipped[1]} steps skipped\n" in said
    assert train["skipped_steps"][-1] == (4 * STEPS, sum(skipped))
    scales = [value for _, value in train["loss_scale"]]
    assert len(train["loss_scale"]) == len(train["loss"]) * 3 and any(
        b > a for a, b in zip(scales, scales[1:])
    )
    assert [int(row["step"]) for row in rows] == [STEPS * number for number in (1, 2, 3, 4)]
    assert (
        result["phases"][1]["skipped_steps"] == sum(skipped[1:])
        and result["precision"] == "mixed_float16"
    )
    broken("crashed", step=3 * STEPS, **settings)
    run("crashed", **settings)
    assert_equal_runs("unbroken", "crashed")


def test_features_on_disk_train_the_same_weights_and_leave_nothing_behind(
    run, broken, unbroken, tmp_path
):
    expected = unbroken("memory", augment_views=2, feature_cache="memory")
    broken("disk", step=12, augment_views=2, feature_cache="disk", steps_per_call=1)
    received = run("disk", augment_views=2, feature_cache="disk")
    assert (
        received["feature_cache"] == "disk"
        and received["weights_sha256"] == expected["weights_sha256"]
    )
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {
        path.name for path in (tmp_path / "memory").iterdir()
    }


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_run_that_ends_after_its_last_epoch_is_finished_though_the_next_view_was_never_kept(
    run, unbroken, crashed, crash, monkeypatch, cache
):
    settings = {"augment_views": 4, "feature_cache": cache, "epochs": (1, 1)}
    expected = unbroken(**{**settings, "feature_cache": "memory"})
    end_phase = selection.end_phase
    with monkeypatch.context() as patch:
        patch.setattr(
            selection,
            "end_phase",
            lambda setup, *args: (
                crash() if setup.phase.name == "finetune" else end_phase(setup, *args)
            ),
        )
        crashed("broken", **settings)
    assert run("broken", **settings)["weights_sha256"] == expected["weights_sha256"]


def test_run_that_is_killed_again_and_again_makes_progress(broken, tmp_path):
    for step in (1, 2, 5):  # the last one in the second epoch
        broken("run", step=step + 1, checkpoint_every_steps=1)
        assert sorted(os.listdir(tmp_path / "run" / "checkpoints"))[-1] == checkpoints.step_name(
            step
        )


@pytest.mark.parametrize("view", [0, 1])
def test_signal_while_a_view_is_computed_ends_the_run_at_once(
    run, unbroken, monkeypatch, assert_equal_runs, view
):
    """View 0 before the first epoch, view 1 before the second; each has 5 batches."""
    settings = {"augment_views": 2, "feature_cache": "memory"}
    unbroken(**settings)
    seen = []

    def signalled(what):
        def progress(done, total):
            seen.append((what, done))
            if what == f"features of train, view {view + 1}":
                signal.raise_signal(signal.SIGTERM)

        return contextlib.nullcontext(progress)

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "progress_bar", signalled)
        where = " after step 5" * view
        with pytest.raises(Interrupted, match=f"SIGTERM, signal 15{where}; nothing is") as error:
            run("broken", **settings)
        assert error.value.exit_code == 143
    assert seen[-1] == (f"features of train, view {view + 1}", 1)
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")


@pytest.mark.parametrize("evaluation_of_run, step", [(1, STEPS), (4, 3 * STEPS)])
def test_signal_in_the_validation_pass_is_answered_there_and_all_is_saved(
    run, unbroken, monkeypatch, assert_equal_runs, evaluation_of_run, step
):
    """After the first epoch of each phase; the third evaluation is of the head's best weights."""
    settings = {"ema_decay": 0.9, "feature_cache": "off"}  # averages are evaluated, not saved
    unbroken(**settings)
    call, calls = evaluation.EvalStep.__call__, []

    def signalled(step):
        calls.append(step)
        if len(calls) < evaluation_of_run:
            return call(step)
        signal.raise_signal(signal.SIGTERM)
        return pytest.fail("went on")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.EvalStep, "__call__", signalled)
        with pytest.raises(Interrupted, match=f"after step {step}; nothing is lost") as error:
            run("broken", **settings)
        assert error.value.exit_code == 143
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")


def test_signal_while_an_image_is_waited_for_is_answered_there_and_all_is_saved(
    run, monkeypatch, assert_equal_runs
):
    settings = {"cache_pixels": 0, "feature_cache": "off", "epochs": (1, 0), "data_audit": "off"}
    run("unbroken", **settings)
    original, slow = pipeline.Examples.original, threading.Event()

    def waiting(examples, index):
        if trained and not slow.wait(20):
            pytest.fail("was waited for")
        return original(examples, index)

    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Examples, "original", waiting)
        calls = epoch.calls

        def timed(*arguments):
            trained.append(threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)))
            trained[0].start()
            return calls(*arguments)

        patch.setattr(epoch, "calls", timed)
        with pytest.raises(Interrupted, match="after step 0; nothing is lost"):
            run("broken", **settings)
        slow.set()
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")


def test_test_images_are_read_once_though_the_run_ends_before_its_results(
    run, unbroken, crashed, crash, assert_equal_runs, monkeypatch
):
    expected = unbroken(data_audit="on")
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "save_keras", crash)
        crashed("broken", data_audit="on")
    monkeypatch.setattr(evaluation.EvalStep, "__call__", lambda step: pytest.fail("read again"))
    monkeypatch.setattr(loop, "train_phase", lambda *args: pytest.fail("trained again"))
    result = run("broken", data_audit="on")
    same = ("test", "calibration", "weights_sha256")
    assert [result[name] for name in same] == [expected[name] for name in same]
    assert_equal_runs("unbroken", "broken")


def test_resumed_run_keeps_its_precision_and_xla(run, begun, tmp_path):
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (recorded["precision"], recorded["xla"]) == ("float32", False)
    # as if it began on a GPU
    (tmp_path / "run" / "run.json").write_text(json.dumps({**recorded, "xla": True}))
    assert run("run")["xla"] is True


def test_resumed_run_says_that_it_began_with_other_versions(run, begun, tmp_path, capsys):
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    recorded["versions"]["tensorflow"], recorded["machine"]["cores"] = "2.99.0", 1000
    recorded["variables"]["TF_ENABLE_ONEDNN_OPTS"] = "0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(recorded))
    run("run", checkpoint_every_steps=7)
    out, err = capsys.readouterr()
    assert re.search(r"^time: .*, of which [\d.]+ s before it was resumed$", out, re.MULTILINE)
    lines = err.splitlines()
    assert (
        f"warning: the run began with tensorflow 2.99.0, now {tf.__version__}; cores 1000, now "
        f"{machine.cores()}; TF_ENABLE_ONEDNN_OPTS 0, now "
        f"{os.environ.get('TF_ENABLE_ONEDNN_OPTS', 'not set')}; results may differ from an "
        "uninterrupted run"
    ) in lines
    assert (
        f"note: {tmp_path / 'run'} continues with --checkpoint_every_steps=7 instead of "
        "--checkpoint_every_steps=0" in lines
    )
    assert "--checkpoint_every_steps=7" in (tmp_path / "run" / "flags.txt").read_text().splitlines()


def test_finished_run_trains_no_more_and_keeps_its_gate(run, tmp_path, capsys):
    first = run("run", epochs=(1, 0))
    before = {
        path: os.stat(path).st_mtime_ns for path in glob.glob(f"{tmp_path}/run/**", recursive=True)
    }
    capsys.readouterr()
    run("run", epochs=(1, 0))
    captured = capsys.readouterr()
    assert captured.out == "RESULT " + json.dumps(first) + "\n" and "is finished" in captured.err
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
    # nobody may pass by asking twice
    with pytest.raises(GateError, match="expected at least --min_test_accuracy=1.0"):
        run("run", epochs=(1, 0), min_test_accuracy=1.0)


# Another version, what is refused.


def test_run_of_a_version_without_a_setting_goes_on_as_with_its_default(
    run, broken, unbroken, tmp_path, monkeypatch
):
    whole, save = unbroken(), checkpoints.save

    def without(lines):
        return [line for line in lines if not line.startswith("--mixup=")]

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints,
            "save",
            lambda path, state, arrays: save(path, {**state, "run": without(state["run"])}, arrays),
        )
        broken("old", epoch=2)
    flags = tmp_path / "old" / "flags.txt"
    flags.write_text("\n".join(without(flags.read_text().split("\n"))))
    assert run("old")["weights_sha256"] == whole["weights_sha256"]


def test_checkpoint_may_hold_the_logits_of_all_validation_images(train, monkeypatch):
    trained, _ = train(epochs=(0, 0))
    seen = []
    monkeypatch.setattr(checkpoints, "load_newest", lambda directory, largest: seen.append(largest))
    for count in (5, 1_000_005):
        trained.plan.validation = range(count)
        assert Resume(trained.plan, trained.directory, Signals()).restore() is None
    assert seen[1] - seen[0] == 4 * 3 * 1_000_000  # float32, 3 classes


def test_checkpoint_of_another_run_is_refused(run, broken, begun, tmp_path):
    broken("other", step=9, seed=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(
        CheckpointError, match="from another run, which differs in --seed=0, --seed=1; "
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_run_goes_on_with_its_own_extension_wherever_that_lies(run, tmp_path):
    file, other = tmp_path / "own.py", tmp_path / "moved.py"
    file.write_text("def epoch_ends(run, row, logits):\n    return {'score': 0.5}\n")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    whole = run("unbroken", extension=str(file), copies={"run": 15})
    assert whole["run"] == str(tmp_path / "unbroken")
    record = {"file": str(file), "sha256": sha256, "parts": ["epoch_ends"]}
    assert whole["extension"] == record
    first, second, third = (tmp_path / "run" / "flags.txt").read_text().splitlines()[:3]
    package = f"# package {tl_research.__version__} of SHA-256 {package_sha256()}"
    assert (first, second) == (package, f"# extension {file} of SHA-256 {sha256}")
    assert third.startswith("--")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["extension"] == record
    assert recorded["package"] == {
        "version": tl_research.__version__,
        "sha256": package_sha256(),
    }
    assert (tmp_path / "run" / "extension.py").read_bytes() == file.read_bytes()
    other.write_text(file.read_text() + "# something else\n")
    changed = hashlib.sha256(other.read_bytes()).hexdigest()
    for extension, now in (
        (str(other), f"extension of SHA-256 {changed};"),
        (None, "no such setting"),
    ):
        with pytest.raises(
            CheckpointError,
            match=f"made with extension of SHA-256 {sha256}, this command has {now}",
        ) as error:
            run("run", extension=extension)
        assert error.value.exit_code == 7
    shutil.copy(file, other)
    result = run("run", extension=str(other))
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert result["extension"] == {**record, "file": str(other)}


def test_run_does_not_go_on_with_other_sources_of_the_package(run, begun, tmp_path):
    flags = tmp_path / "run" / "flags.txt"
    flags.write_text(flags.read_text().replace(package_sha256(), 64 * "0"))
    with pytest.raises(
        CheckpointError,
        match=f"made with package of SHA-256 {64 * '0'}, this command has package of SHA-256 "
        f"{package_sha256()}; ",
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_pretrained_weights_that_changed_meanwhile_are_noticed(run, begun, monkeypatch):
    build = backbones.build_backbone
    monkeypatch.setattr(
        backbones,
        "build_backbone",
        lambda *args, seed, **kwargs: build(*args, seed=seed + 1, **kwargs),
    )
    with pytest.raises(
        CheckpointError, match="frozen variables differ from those at the start of the run"
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_checkpoint_with_a_number_that_is_not_finite_is_refused(run, begun, monkeypatch):
    load = checkpoints.load_newest

    def poked(*args):
        state, arrays = load(*args)
        return state, {
            **arrays,
            "variables/head/bias": np.full_like(arrays["variables/head/bias"], np.nan),
        }

    monkeypatch.setattr(checkpoints, "load_newest", poked)
    with pytest.raises(
        CheckpointError, match="variables/head/bias has numbers that are not finite"
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_all_that_a_run_promises_is_on_the_disk_before_results_json_has_its_name(
    run, tmp_path, monkeypatch
):
    synced, missing, fsync, replace = {}, [], os.fsync, os.replace
    place = tmp_path / "new" / "run"

    def recorded(descriptor):
        status = os.fstat(descriptor)
        fsync(descriptor)
        synced[status.st_ino] = status.st_mtime_ns, status.st_size

    def named(source, target):
        if str(target).endswith("results.json"):
            paths = [path for path in place.rglob("*") if str(path) != source]
            found.extend(str(path.relative_to(place)) for path in paths)
            stats = {path: path.stat() for path in paths}
            missing.extend(
                path
                for path, status in stats.items()
                if synced.get(status.st_ino) != (status.st_mtime_ns, status.st_size)
            )
        replace(source, target)

    found = []
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", named)
    run("new/run", epochs=(1, 0), data_audit="on")
    assert missing == [] and {
        *("export/model.keras", "export/classes.json", "export/calibration.json", "metrics.csv"),
        *("report/curves.png", "report/confusion.png", "report/data_audit.png", "split.json"),
        *("checkpoints", "export", "report", "train", "flags.txt", "run.json", "bad_images.csv"),
    } <= set(found)
    # then the names: of the file, and of the folders that were made for the run
    status = place.stat()
    assert synced[status.st_ino] == (status.st_mtime_ns, status.st_size)
    assert {tmp_path.stat().st_ino, (tmp_path / "new").stat().st_ino} < synced.keys()


def _set(path, value):
    """Returns a change of a checkpoint's contents: the entry at `a.b.0` becomes `value`."""

    def change(state, arrays):
        *outer, last = [int(name) if name.isdecimal() else name for name in path.split(".")]
        for name in outer:
            state = state[name]
        state[last] = value

    return change


def _arrays(name, value):
    return lambda state, arrays: arrays.update({name: value})


_EDITS = [
    *(_set(name, "1") for name in ("phase_index", "epoch", "global_step", "largest_rate")),
    *(_set(name, 7) for name in ("phase_index", "phase_epoch", "phase_step", "epoch_step")),
    *(_set(name, -1) for name in ("phase_index", "wait", "skipped_steps", "time_limit.head")),
    *(_set(name, None) for name in ("history", "finished", "scaling", "moved", "run_seconds")),
    *(_set(name, ["a"]) for name in ("best", "selected", "test", "calibration", "data_audit")),
    *(_set(name, {}) for name in ("phase_hashes", "scaling", "history.0", "best", "selected")),
    _set("run", 5),
    _set("run", [5]),
    _set("epoch_totals", {"loss_sum": 1.0}),
    _set("best.val_loss", "low"),
    _set("best", {"epoch": 1}),
    _set("history.0.train_loss", None),
    _set("finished.0.audit", 3),
    _set("test", {"accuracy": 0.5}),
    _set("calibration", {"temperature": "hot", "reason": None}),
    _set("reliability", {"n": 1, "before": [1], "after": []}),
    _set("unknown", 1),
    lambda state, arrays: state["history"].pop(),
    lambda state, arrays: state["history"][1].pop("val_accuracy"),
    lambda state, arrays: arrays.pop("variables/head/bias"),
    lambda state, arrays: arrays.pop("logits/selected"),
    lambda state, arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("best/")],
    _arrays("else/x", np.zeros(1)),
    _arrays("best/head/bias", np.zeros(4, np.float32)),
    _arrays("selected/nothing/bias", np.zeros(3, np.float32)),
    _arrays("variables/head/bias", np.array(["a", "b", "c"])),
    _arrays("variables/head/bias", np.zeros(3)),
    _arrays("logits/selected", np.zeros((5, 4), np.float32)),
]


def test_checkpoint_edited_by_hand_with_valid_hashes_is_refused(train, capsys):
    trained, _ = train()
    resume = Resume(trained.plan, trained.directory, Signals())
    place = trained.directory.file("checkpoints")
    state, arrays = checkpoints.load_newest(place)
    assert resume.restore().position.global_step == state["global_step"] == 12
    for change in _EDITS:
        edited = json.loads(json.dumps(state)), dict(arrays)
        change(*edited)
        shutil.rmtree(place)
        checkpoints.save(place, {**edited[0], "global_step": 12}, edited[1])
        if not isinstance(edited[0]["global_step"], int):  # which names the checkpoint
            continue
        with pytest.raises(CheckpointError) as error:
            resume.restore()
        assert error.value.exit_code == 7 and "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["export", "report"])
def test_what_cannot_be_written_is_a_storage_error(run, tmp_path, place):
    os.makedirs(tmp_path / "run")
    # a run of ours, with a file where a directory should be
    (tmp_path / "run" / "flags.txt").write_text("")
    (tmp_path / "run" / place).write_text("in the way")
    with pytest.raises(
        StorageError, match="could not write .*; expected a writable place with room"
    ) as error:
        run("run", epochs=(0, 0))
    assert error.value.exit_code == 9
