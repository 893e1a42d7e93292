"""The loop: which epoch and phase are kept, what goes on from phase to phase, and that a resumed
run is an unbroken one.
"""

import csv
import glob
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research import artefacts, experiment
from tl_research.config import Config
from tl_research.errors import (
    AuditError,
    CheckpointError,
    GateError,
    Interrupted,
    NonFiniteError,
    OutOfMemoryError,
    StorageError,
    UserError,
)
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.optim import loss_scale
from tl_research.reporting import results
from tl_research.reporting.summaries import Summaries
from tl_research.signals import Signals
from tl_research.training import audit, checkpoints, feature_cache, features, loop, steps
from tl_research.training.feature_cache import FeatureCache
from tl_research.training.run_directory import RunDirectory


class _Crash(BaseException):
    """Stands for the process's sudden end."""


class _Script:
    """Gives the validation loss that was written down for each epoch, and the same again for the
    same weights.
    """

    def __init__(self, losses, accuracies=()):
        self._losses, self._accuracies, self._seen = list(losses), list(accuracies), {}

    def __call__(self, logits, labels):
        return self._seen.setdefault(
            np.asarray(logits).tobytes(),
            (
                self._losses[min(len(self._seen), len(self._losses) - 1)],
                ([*self._accuracies, 0.5, 0.5] * 9)[len(self._seen)],
            ),
        )


@pytest.fixture
def float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def train(tiny_backbone, make_examples, tmp_path, monkeypatch):
    """A function that trains the tiny classifier on 10 images.

    Returns (trainer, weights after each epoch).
    """

    def train(val_losses=None, accuracies=(), change=None, **settings):
        settings = {
            "epochs": (2, 2),
            "unfreeze": ("0%", "block3"),
            "learning_rate": (1e-2, 1e-3),
            "batch_size": 4,
            "image_size": 16,
            "patience": 0,
            "augment": "none",
            "feature_cache": "off",
            **settings,
        }
        config = Config(
            dataset="drawn_flowers",
            backbone="Tiny",
            workdir=str(tmp_path / "run"),
            resume="never",
            **settings,
        )
        classifier = Classifier(
            "Tiny", "none", 16, 3, augmentation=config.augmentation, dropout=0.2, seed=0
        )
        if change:
            change(classifier)
        if val_losses is not None:
            monkeypatch.setattr(results, "loss_and_accuracy", _Script(val_losses, accuracies))
        epochs = []
        finish = loop.Trainer._finish_epoch
        with RunDirectory(config) as directory, monkeypatch.context() as patch:

            def record(trainer, *args):
                epochs.append(
                    {path: variable.numpy() for path, variable in classifier.variables.items()}
                )
                finish(trainer, *args)

            patch.setattr(loop.Trainer, "_finish_epoch", record)
            trainer = loop.Trainer(
                config,
                classifier,
                make_examples(10),
                make_examples(5, seed=1),
                directory,
                xla=False,
                signals=Signals(),
            )
            summaries = Summaries(directory.path, None)
            trainer.run(summaries)
            summaries.close()
        return trainer, epochs

    return train


def _assert_weights(trainer, expected):
    for path, value in expected.items():
        np.testing.assert_array_equal(
            trainer.classifier.variables[path].numpy(), value, err_msg=path
        )


# What is kept.


def test_patience_ends_a_phase_and_its_best_weights_are_restored_and_evaluated_again(train, capsys):
    trainer, epochs = train(
        [0.9, 0.5, 0.6, 0.7, 0.1],
        epochs=(9,),
        phases=("only",),
        unfreeze="block3",
        patience=2,
        learning_rate=1e-2,
    )
    assert len(epochs) == 4
    (phase,) = trainer.state.finished
    # 0.5 again: those weights were evaluated
    assert (phase["epochs"], phase["best_epoch"], phase["val_loss"]) == (4, 2, 0.5)
    _assert_weights(trainer, epochs[1])
    assert (epochs[1]["head/kernel"] != epochs[3]["head/kernel"]).any()
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if " epoch " in line and "val_loss" in line
    ]
    assert [" (best)" in line for line in lines if line.startswith("only epoch")] == [
        True,
        True,
        False,
        False,
    ]


def test_without_patience_all_epochs_are_trained_and_the_best_restored(train):
    trainer, epochs = train(
        [0.9, 0.5, 0.6, 0.7], epochs=(4,), phases=("only",), unfreeze="block3", learning_rate=1e-2
    )
    assert len(epochs) == 4 and trainer.state.finished[0]["epochs"] == 4
    _assert_weights(trainer, epochs[1])


def test_tie_keeps_the_earlier_epoch(train):
    trainer, epochs = train(
        [0.9, 0.5, 0.5], epochs=(3,), phases=("only",), unfreeze="0%", learning_rate=1e-2
    )
    assert trainer.state.finished[0]["best_epoch"] == 2
    _assert_weights(trainer, epochs[1])


def test_later_phase_that_never_is_better_is_not_kept(train, capsys):
    trainer, epochs = train([0.5, 0.4, 0.6, 0.4000001])
    assert trainer.state.selected == {
        "phase": "head",
        "epoch": 2,
        "val_loss": 0.4,
        "val_accuracy": 0.5,
    }
    _assert_weights(trainer, epochs[1])
    assert (
        "finetune did not improve val_loss (0.4000 vs 0.4000); keeping phase head, epoch 2"
        in capsys.readouterr().out
    )
    assert trainer.state.finished[1]["best_epoch"] == 4


def test_later_phase_that_is_better_is_kept_and_epochs_go_on_counting(train):
    trainer, epochs = train([0.5, 0.4, 0.3, 0.6])
    assert trainer.state.selected["phase"] == "finetune" and trainer.state.selected["epoch"] == 3
    _assert_weights(trainer, epochs[2])
    assert [row["epoch"] for row in trainer.state.history] == [1, 2, 3, 4]
    assert [row["step"] for row in trainer.state.history] == [3, 6, 9, 12]


def test_phase_begins_with_the_best_weights_of_the_ones_before(train, monkeypatch):
    starts, original = [], loop.Trainer._run_epoch

    def spy(trainer, phase, *args):
        starts.append((phase.name, trainer.classifier.variables["head/kernel"].numpy()))
        original(trainer, phase, *args)

    monkeypatch.setattr(loop.Trainer, "_run_epoch", spy)
    _, epochs = train([0.4, 0.5, 0.6, 0.6])
    assert [name for name, _ in starts] == ["head", "head", "finetune", "finetune"]
    np.testing.assert_array_equal(starts[2][1], epochs[0]["head/kernel"])


def test_nan_is_never_best_and_counts_as_no_improvement(train):
    nan = float("nan")
    trainer, epochs = train(
        [nan, 0.5, nan, 0.6, 0.1],
        epochs=(9,),
        phases=("only",),
        unfreeze="0%",
        patience=2,
        learning_rate=1e-2,
    )
    assert trainer.state.finished[0]["best_epoch"] == 2 and len(epochs) == 4
    _assert_weights(trainer, epochs[1])
    assert results.without_nan(trainer.state.history)[0]["val_loss"] is None


def test_validation_that_never_is_finite_is_an_error(train):
    with pytest.raises(NonFiniteError, match="val_loss was never finite in phase head") as error:
        train([float("nan")])
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    "epochs, trained", [((0, 2), ["finetune"]), ((2, 0), ["head"]), ((0, 0), [])]
)
def test_phase_of_no_epochs_is_skipped(train, epochs, trained):
    trainer, weights = train(epochs=epochs)
    assert [phase["name"] for phase in trainer.state.finished] == trained
    assert [row["epoch"] for row in trainer.state.history] == list(range(1, len(weights) + 1))
    assert bool(trainer.state.selected) == bool(trained)


def test_fall_at_a_phase_switch_is_said_in_one_line(train, capsys):
    train([0.5, 0.4, 0.9, 0.9], accuracies=[1.0, 1.0, 0.0, 0.0])
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")
    ]
    assert warnings == [
        (
            "warning: val_accuracy fell from 1.0000 to 0.0000 at the switch to finetune, more than "
            "noise; the likely cause: the learning rate 0.001 is too high for the open layers"
        )
    ]


def test_small_fall_is_not_worth_a_line(train, capsys):
    # of 5 images: one standard error is 0.22
    train([0.5, 0.4, 0.9, 0.9], accuracies=[0.6, 0.6, 0.4, 0.4])
    assert "fell" not in capsys.readouterr().err


# What a phase carries over, and proves.


def test_group_that_goes_on_keeps_its_state_and_a_new_one_starts_from_zero(train, monkeypatch):
    saved, save = [], checkpoints.save

    def spy(directory, state, arrays):
        saved.append(
            (state["phase_index"], {name: np.array(array) for name, array in arrays.items()})
        )
        save(directory, state, arrays)

    monkeypatch.setattr(checkpoints, "save", spy)
    train([0.5, 0.4, 0.3, 0.2])
    end_of_head = [arrays for phase, arrays in saved if phase == 0][-1]
    start_of_finetune, end_of_finetune = [arrays for phase, arrays in saved if phase == 1][::2]
    slots = [name for name in end_of_head if name.startswith("optimizer/head/")]
    assert len(slots) == 5  # two moments of kernel and bias, and the step count
    for name in slots:
        np.testing.assert_array_equal(start_of_finetune[name], end_of_head[name])
    assert start_of_finetune["optimizer/head/iterations"] == 6
    assert end_of_finetune["optimizer/head/iterations"] == 12
    backbone = [name for name in start_of_finetune if name.startswith("optimizer/backbone")]
    assert len(backbone) == 5 and all((start_of_finetune[name] == 0).all() for name in backbone)
    (count,) = [name for name in backbone if name.endswith("/iterations")]
    assert end_of_finetune[count] == 6


def test_phases_report_what_they_did(train):
    trainer, _ = train()
    head, finetune = trainer.state.finished
    total = sum(int(np.prod(v.shape)) for v in trainer.classifier.variables.values())
    # 10 x 3 + 3
    assert (head["trainable_parameters"], head["frozen_parameters"]) == (33, total - 33)
    assert finetune["trainable_parameters"] == 33 + 8 * 10 + 10
    assert head["traces"] == finetune["traces"] == 1
    count = len(trainer.classifier.variables)
    assert head["audit"] == {
        "trainable_changed": 2,
        "trainable_total": 2,
        "frozen_changed": 0,
        "frozen_total": count - 2,
        "batchnorm_stats_changed": 0,
    }
    assert finetune["audit"]["trainable_changed"] == finetune["audit"]["trainable_total"] == 4
    for phase in (head, finetune):
        assert phase["images_per_second"] > 0 and phase["seconds"] > 0


@pytest.mark.parametrize("path", ["backbone/block1_conv/kernel", "backbone/block2_bn/moving_mean"])
def test_frozen_variable_that_moves_in_a_phase_fails_its_audit(train, monkeypatch, path):
    def disturb(trainer, *args):
        variable = trainer.classifier.variables[path]
        variable.assign(np.nextafter(variable.numpy(), np.float32(99)))
        original(trainer, *args)

    original = loop.Trainer._finish_epoch
    monkeypatch.setattr(loop.Trainer, "_finish_epoch", disturb)
    with pytest.raises(AuditError, match=path):
        train()


def test_audit_looks_at_the_last_step_and_not_at_the_restored_weights(train, monkeypatch):
    """The best epoch of a phase may be weights that hardly moved.

    The audit is about what the steps did.
    """
    hashes, original = [], audit.audit_phase

    def spy(phase, before, variables, *args, **kwargs):
        hashes.append(audit.weights_sha256(variables))
        return original(phase, before, variables, *args, **kwargs)

    monkeypatch.setattr(audit, "audit_phase", spy)
    _, epochs = train([0.1, 0.5, 0.6, 0.7])
    assert hashes == [audit.weights_sha256(epochs[1]), audit.weights_sha256(epochs[3])]


def test_loss_that_is_not_finite_ends_the_run_with_the_step(train):
    def spoil(classifier):
        classifier.variables["head/bias"].assign([0.0, np.inf, 0.0])

    with pytest.raises(
        NonFiniteError,
        match=(
            "non-finite .* at phase head step 1; .*the update was not applied and the last good "
            "checkpoint is step-00000000;"
        ),
    ) as error:
        train(change=spoil)
    assert error.value.exit_code == 5


def test_loss_that_explodes_is_named_with_its_step(train, monkeypatch, capsys):
    call, calls = steps.TrainStep.__call__, []

    def explode(step, *args):
        totals = call(step, *args)
        calls.append(len(calls))
        return {**totals, "loss_sum": totals["loss_sum"] * (1e4 if len(calls) in (9, 13) else 1.0)}

    monkeypatch.setattr(steps.TrainStep, "__call__", explode)
    train(epochs=(6, 0), steps_per_call=1)  # 3 steps an epoch; the first call only compiles
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("warning: the loss")
    ]
    assert (
        len(lines) == 1
        and lines[0].startswith("warning: the loss of phase head rose to ")
        and "at step 8, from a median of" in lines[0]
    )


def test_out_of_memory_names_the_batch_size_to_try(train, monkeypatch):
    def exhaust(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(steps.TrainStep, "__call__", exhaust)
    with pytest.raises(
        OutOfMemoryError, match="out of memory in phase head at batch_size 4.*--batch_size=2"
    ) as error:
        train()
    assert error.value.exit_code == 10


def test_out_of_memory_elsewhere_names_it_too(train, monkeypatch):
    monkeypatch.setattr(steps.EvalStep, "__call__", lambda step: bytearray(1 << 62))
    with pytest.raises(
        OutOfMemoryError,
        match="out of memory in phase head at batch_size 1.*try a smaller --image_size",
    ):
        train(batch_size=1)


def test_operation_that_cannot_be_repeated_is_named_before_the_run(train, monkeypatch):
    def refuse(*args):
        raise tf.errors.UnimplementedError(None, None, "Determinism is not yet supported for X")

    trainer, _ = train(deterministic=True, epochs=(1, 1))
    before = audit.weights_sha256(trainer.classifier.variables)
    trainer.check_plan()  # its trial steps change nothing
    assert (
        audit.weights_sha256(trainer.classifier.variables) == before
        and trainer.state.global_step == 6
    )
    monkeypatch.setattr(steps.TrainStep, "__call__", refuse)
    with pytest.raises(
        UserError,
        match="--deterministic in phase head: Determinism is not yet supported for X; expected",
    ) as error:
        trainer.check_plan()
    assert error.value.exit_code == 1


def test_checkpoints_are_due_by_time_too(train, monkeypatch):
    saved, save = [], checkpoints.save
    monkeypatch.setattr(
        checkpoints,
        "save",
        lambda directory, state, arrays: (
            saved.append(state["global_step"]),
            save(directory, state, arrays),
        ),
    )
    train(steps_per_call=1, epochs=(2, 0), checkpoint_every_seconds=1e-9)
    assert saved == [0, 1, 2, 3, 4, 5, 6]  # 3 is an epoch's end, and saved once
    saved.clear()
    train(steps_per_call=1, epochs=(2, 0), checkpoint_every_seconds=1e9)
    assert saved == [0, 3, 6]


def test_number_of_steps_in_a_call_changes_no_weight(train):
    first, _ = train()  # calls of 3 steps, which is an epoch
    second, _ = train(steps_per_call=2)
    assert audit.weights_sha256(first.classifier.variables) == audit.weights_sha256(
        second.classifier.variables
    )


def test_balanced_weights_make_classes_count_alike():
    weights = loop.balanced_weights(np.array([0, 1, 1, 1, 2, 2]), 3)
    np.testing.assert_allclose(weights, [6 / 3 / 1, 6 / 3 / 3, 6 / 3 / 2])


def test_profiled_steps_run_one_at_a_time_and_change_no_weight(train):
    first, _ = train()
    second, _ = train(profile_steps="4:6")
    assert audit.weights_sha256(first.classifier.variables) == audit.weights_sha256(
        second.classifier.variables
    )
    assert glob.glob(second._directory.file("train", "plugins", "profile", "*", "*.xplane.pb"))


def test_plan_of_the_cache_comes_from_sizes(train, monkeypatch):
    trainer, _ = train(epochs=(0, 0))

    def plan(**settings):
        config = Config(
            **{"dataset": "drawn_flowers", "image_size": 16, "epochs": (2, 2), **settings}
        )
        cache = FeatureCache(
            config,
            trainer.classifier,
            trainer._train,
            trainer._validation,
            trainer._earliest_boundary(),
            "nowhere",
        )
        return cache.plan, cache.in_use

    text, used = plan(augment_views=0)
    assert used == "off" and "a fresh view every epoch; validation cached" in text
    text, used = plan(augment_views=2)
    assert used == "memory" and "2 views" in text
    assert plan(augment_views=2, cache_bytes=1000)[1] == "off"
    assert plan(augment_views=2, feature_cache="off") == ("cache: off (--feature_cache=off)", "off")
    assert plan(augment_views=4)[1] == "off"  # each view would be used once
    assert plan(augment="none")[1] == "memory"
    # asked for, though it does not pay
    assert plan(augment_views=4, feature_cache="memory")[1] == "memory"
    with pytest.raises(
        UserError,
        match="--feature_cache=memory: 2 views of .* need 0.0 GiB and --cache_bytes allows 0.0",
    ):
        plan(augment_views=2, feature_cache="memory", cache_bytes=1000)
    text, used = plan(augment_views=2, feature_cache="disk", cache_bytes=1000)
    assert used == "disk" and text.endswith("GiB on disk")
    halved = plan(augment_views=2, cache_dtype="float16")[0]
    size = int(plan(augment_views=2, image_size=16)[0].split(" KiB")[0].split()[-1])
    assert "float16" in halved and int(halved.split(" KiB")[0].split()[-1]) == size // 2
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "_free_memory", lambda: 1000)
        assert "more than the 0.0 GiB of memory that are free" in plan(augment_views=2)[0]
    assert 2**20 < feature_cache._free_memory() < 2**50


# Resuming, through the whole experiment.

_EPOCHS, _STEPS = (2, 2), 5  # of 34 training images in batches of 8


@pytest.fixture
def run(tiny_backbone, write_images, tmp_path, capsys):
    """A function of (workdir, settings) that runs the experiment; returns (results, its stderr)."""
    photos = write_images(tmp_path / "photos", count=15, size=16)

    def run(name, **settings):
        settings = {
            "epochs": _EPOCHS,
            "unfreeze": ("0%", "block3"),
            "learning_rate": (1e-2, 1e-3),
            "batch_size": 8,
            **settings,
        }
        experiment.run(
            Config(
                dataset="directory",
                data_dir=photos,
                image_size=16,
                backbone="Tiny",
                weights="none",
                workdir=str(tmp_path / name),
                **settings,
            )
        )
        with open(tmp_path / name / "results.json") as file:
            return json.load(file)

    yield run
    keras.config.set_dtype_policy("float32")


def _without_times(value):
    if isinstance(value, dict):
        return {
            key: _without_times(item)
            for key, item in value.items()
            if key not in ("seconds", "compile_seconds", "images_per_second")
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _metrics(path):
    with open(path) as file:
        return [_without_times(row) for row in csv.DictReader(file)]


def _events(path, side):
    """Returns {tag: [(step, value or None)]} of all event files of one side."""
    found = {}
    for file in sorted(glob.glob(os.path.join(path, side, "*tfevents*"))):
        for record in tf.data.TFRecordDataset(file):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                number = tf.make_ndarray(value.tensor)
                is_scalar = number.dtype == np.float32 and number.shape == ()
                found.setdefault(value.tag, []).append(
                    (event.step, float(number) if is_scalar else None)
                )
    return found


def _at_step(monkeypatch, step, action):
    """Calls `action` as soon as the loop has taken that many steps."""
    original = loop.Trainer._account

    def account(trainer, *args):
        original(trainer, *args)
        if trainer.state.global_step == step:
            monkeypatch.setattr(loop.Trainer, "_account", original)
            action()

    monkeypatch.setattr(loop.Trainer, "_account", account)


def _at_epoch_end(monkeypatch, epoch, action):
    original = loop.Trainer._finish_epoch

    def finish(trainer, *args):
        original(trainer, *args)
        if trainer.state.epoch == epoch:
            monkeypatch.setattr(loop.Trainer, "_finish_epoch", original)
            action()

    monkeypatch.setattr(loop.Trainer, "_finish_epoch", finish)


def _crash():
    raise _Crash


def _assert_equal_runs(tmp_path, first, second):
    with (
        open(tmp_path / first / "results.json") as one,
        open(tmp_path / second / "results.json") as other,
    ):
        one, other = json.load(one), json.load(other)
    assert _without_times(one) == _without_times(other)
    assert one["weights_sha256"] == other["weights_sha256"] and one["selected_phase"]
    assert _metrics(tmp_path / first / "metrics.csv") == _metrics(tmp_path / second / "metrics.csv")
    for side in ("train", "validation"):
        expected, received = _events(tmp_path / first, side), _events(tmp_path / second, side)
        for tag in ("images_per_second", "waiting_for_data"):
            expected.pop(tag, None)
            received.pop(tag, None)
        assert received == expected
        for tag, records in received.items():
            assert len({step for step, _ in records}) == len(records), tag


def test_resumed_run_ends_as_an_unbroken_one(run, tmp_path, monkeypatch, capsys):
    """Cut off at steps and epoch ends of both phases, by signals and by crashes, some of them in
    one run.
    """
    steps_of_call = {"steps_per_call": 2}  # calls of 2, 2 and 1 steps
    run("unbroken", **steps_of_call)
    assert len(_metrics(tmp_path / "unbroken" / "metrics.csv")) == sum(_EPOCHS)
    total = int(_metrics(tmp_path / "unbroken" / "metrics.csv")[-1]["step"])
    per_epoch = total // sum(_EPOCHS)
    assert per_epoch == _STEPS

    # In mid-epoch, at the end of a phase, at an epoch's last step; what lies behind a crash's last
    # checkpoint is done again.
    for place, when, number, code, said in (
        (_at_step, 2, signal.SIGTERM, 143, "phase head, epoch 1, step 2"),
        (_at_epoch_end, 1, None, None, None),
        (_at_epoch_end, 2, signal.SIGINT, 130, f"phase head, epoch 2, step {2 * _STEPS}"),
        (_at_step, 2 * _STEPS + 4, None, None, None),
        (_at_step, 3 * _STEPS, signal.SIGHUP, 129, f"phase finetune, epoch 3, step {3 * _STEPS}"),
    ):
        place(monkeypatch, when, (lambda: signal.raise_signal(number)) if number else _crash)
        with pytest.raises(Interrupted if number else _Crash) as error:
            run("broken", **steps_of_call)
        if not number:
            continue
        assert (
            f"interrupted by signal {int(number)} after step " in str(error.value)
            and error.value.exit_code == code
        )
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # handlers are given back
        # look at what the resumed run says, then stop it before its first step
        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "run", lambda *args: _crash())
            capsys.readouterr()
            with pytest.raises(_Crash):
                run("broken", **steps_of_call)
            assert f"resumed {said}\n" in capsys.readouterr().err
    run("broken", **steps_of_call)
    _assert_equal_runs(tmp_path, "unbroken", "broken")


@pytest.mark.parametrize(
    "settings",
    [{"ema_decay": 0.9, "class_weights": "balanced", "class_share": ("ant=0.5",)}, {"mixup": 0.4}],
)
def test_settings_for_research_are_resumed_bit_for_bit(run, tmp_path, monkeypatch, settings):
    settings = {**settings, "steps_per_call": 2}
    whole = run("unbroken", **settings)
    total = int(_metrics(tmp_path / "unbroken" / "metrics.csv")[-1]["step"])
    for step in (2, total // 2, total // 2 + 2, total - 1):
        _at_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run("broken", **settings)
    run("broken", **settings)
    _assert_equal_runs(tmp_path, "unbroken", "broken")
    assert whole["weights_sha256"] != run("plain", steps_per_call=2)["weights_sha256"]


def test_averages_are_evaluated_and_kept_and_training_goes_on_from_the_weights(train):
    trainer, epochs = train(
        ema_decay=0.5, epochs=(1, 0), unfreeze=("0%", "0%"), optimizer="sgd", momentum=0.0
    )
    averages = trainer._optimizer.averages()
    assert set(averages) == {"head/kernel", "head/bias"}
    for path, average in averages.items():
        # what the run ends with
        np.testing.assert_array_equal(trainer.classifier.variables[path], average)
        assert (epochs[0][path] != average).any()  # `epochs` has the weights as they were trained
    other, plain = train(epochs=(1, 0), unfreeze=("0%", "0%"), optimizer="sgd", momentum=0.0)
    np.testing.assert_array_equal(plain[0]["head/kernel"], epochs[0]["head/kernel"])


def test_mixup_trains_live_and_says_why(train, tmp_path):
    trainer, _ = train(
        mixup=0.2, feature_cache="auto", augment_views=1, augment="flip", epochs=(1, 1)
    )
    assert (
        "MixUp: images and labels are blended in shares of Beta(0.2, 0.2)" in trainer.unusual_plan
    )
    assert (
        "training live, since MixUp blends them anew every epoch" in trainer.cache.plan
        and trainer.cache.in_use == "off"
    )


def test_checkpoints_in_mid_epoch_are_resumed_bit_for_bit(run, tmp_path, monkeypatch):
    settings = {"checkpoint_every_steps": 3}
    run("unbroken", **settings)
    for step in (9, 15):  # just before they would be saved: 7 to 9 and 13 to 15 are done again
        _at_step(monkeypatch, step, _crash)
        with pytest.raises(_Crash):
            run("crashed", **settings)
    run("crashed", **settings)
    _assert_equal_runs(tmp_path, "unbroken", "crashed")


def test_run_in_float16_is_resumed_with_its_loss_scale(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**24)
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    settings = {
        "precision": "mixed_float16",
        "checkpoint_every_steps": 2,
        "epochs": (1, 3),
        "augment_views": 2,
    }
    result = run("unbroken", **settings)
    said = capsys.readouterr().out
    rows, train = (
        _metrics(tmp_path / "unbroken" / "metrics.csv"),
        _events(tmp_path / "unbroken", "train"),
    )
    skipped = [int(row["skipped_steps"]) for row in rows]
    assert list(rows[0])[-3:] == ["learning_rate", "loss_scale", "skipped_steps"]
    # the head, in float32, never overflows; the backbone does, until the scale fits
    assert skipped[0] == 0 < skipped[1]
    assert f"loss scale {float(rows[1]['loss_scale']):g}, {skipped[1]} steps skipped\n" in said
    assert train["skipped_steps"][-1] == (4 * _STEPS, sum(skipped))
    scales = [value for _, value in train["loss_scale"]]
    assert len(train["loss_scale"]) == len(train["loss"]) * 3 and any(
        b > a for a, b in zip(scales, scales[1:])
    )
    assert [int(row["step"]) for row in rows] == [_STEPS * epoch for epoch in (1, 2, 3, 4)]
    assert (
        result["phases"][1]["skipped_steps"] == sum(skipped[1:])
        and result["precision"] == "mixed_float16"
    )
    for step in (_STEPS + 1, _STEPS + 3, 3 * _STEPS):
        _at_step(monkeypatch, step, _crash)
        with pytest.raises(_Crash):
            run("crashed", **settings)
    run("crashed", **settings)
    _assert_equal_runs(tmp_path, "unbroken", "crashed")


def test_overflow_at_every_loss_scale_ends_the_run(train, float16):
    def poke(classifier):
        # more than float16 holds
        classifier.variables["backbone/block3_conv/bias"].assign(np.full(10, 1e6, np.float32))

    with pytest.raises(
        NonFiniteError,
        match=(
            "20 steps in a row had gradients that are not finite in float16, the last at phase "
            "head step 20, loss scale 1; .* last good checkpoint is step-00000018"
        ),
    ) as error:
        train(change=poke, epochs=(9, 1))
    assert error.value.exit_code == 5


def test_event_files_have_the_tags_of_the_contract(run, tmp_path):
    run("run", steps_per_call=2, lr_multiplier=("head/=3",))
    train, validation = _events(tmp_path / "run", "train"), _events(tmp_path / "run", "validation")
    final = {
        f"final/{side}_{metric}"
        for side in ("validation", "test")
        for metric in ("accuracy", "loss")
    }
    assert set(validation) == {
        "loss",
        "accuracy",
        "confusion_matrix",
        "confusion_matrix_numbers",
        "worst_mistakes",
        *final,
        "_hparams_/experiment",
        "_hparams_/session_start_info",
    }
    head, names = "head[head/]", ("head[head/]", "backbone")
    assert set(train) == {
        "loss",
        "accuracy",
        "images_per_second",
        "waiting_for_data",
        "plan",
        "groups",
        "audit",
        "test",
        "first_batch",
        "input_statistics",
        "step/head",
        "step/finetune",
        *(
            f"{kind}/{name}"
            for kind in ("learning_rate", "gradient_norm", "update_ratio", "weights")
            for name in names
        ),
    }
    rows = _metrics(tmp_path / "run" / "metrics.csv")
    for side, prefix in ((train, "train"), (validation, "val")):
        for tag in ("loss", "accuracy"):
            assert (
                [step for step, _ in side[tag]]
                == [int(row["step"]) for row in rows]
                == [5, 10, 15, 20]
            )
            np.testing.assert_allclose(
                [value for _, value in side[tag]],
                [float(row[f"{prefix}_{tag}"]) for row in rows],
                rtol=1e-6,
            )
    assert [step for step, _ in train[f"learning_rate/{head}"]] == [
        2,
        4,
        5,
        7,
        9,
        10,
        12,
        14,
        15,
        17,
        19,
        20,
    ]
    np.testing.assert_allclose(
        [value for _, value in train[f"learning_rate/{head}"]], 6 * [3e-2] + 6 * [3e-3], rtol=1e-6
    )
    assert [step for step, _ in train["learning_rate/backbone"]] == [12, 14, 15, 17, 19, 20]
    assert all(value > 0 for _, value in train["gradient_norm/backbone"])


def test_images_decoded_again_every_epoch_train_the_same_weights(run):
    assert run("memory")["weights_sha256"] == run("streamed", cache_pixels=0)["weights_sha256"]


def test_cached_views_train_as_the_same_views_live(run, tmp_path):
    cached = run("cached", augment_views=2)
    live = run("live", augment_views=2, feature_cache="off")
    assert cached["feature_cache"] == "memory" and live["feature_cache"] == "off"
    for one, other in zip(
        _metrics(tmp_path / "cached" / "metrics.csv"),
        _metrics(tmp_path / "live" / "metrics.csv"),
        strict=True,
    ):
        np.testing.assert_allclose(float(one["train_loss"]), float(other["train_loss"]), rtol=1e-5)
        np.testing.assert_allclose(float(one["val_loss"]), float(other["val_loss"]), rtol=1e-4)


def test_features_on_disk_train_the_same_weights_and_leave_nothing_behind(
    run, tmp_path, monkeypatch
):
    expected = run("memory", augment_views=2)
    _at_step(monkeypatch, 12, _crash)
    with pytest.raises(_Crash):
        run("disk", augment_views=2, feature_cache="disk", steps_per_call=1)
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
    run, monkeypatch, cache
):
    settings = {"augment_views": 4, "feature_cache": cache, "epochs": (1, 1)}
    expected = run("unbroken", **settings)
    finish = loop.Trainer._finish_phase

    def crash_in_the_last(trainer, phase, evaluate):
        if phase.name == "finetune":
            monkeypatch.setattr(loop.Trainer, "_finish_phase", finish)
            raise _Crash
        finish(trainer, phase, evaluate)

    monkeypatch.setattr(loop.Trainer, "_finish_phase", crash_in_the_last)
    with pytest.raises(_Crash):
        run("broken", **settings)
    assert run("broken", **settings)["weights_sha256"] == expected["weights_sha256"]


def test_checkpoint_may_hold_the_logits_of_all_validation_images(train, monkeypatch):
    trainer, _ = train(epochs=(0, 0))
    seen = []
    monkeypatch.setattr(checkpoints, "load_newest", lambda directory, largest: seen.append(largest))
    for count in (5, 1_000_005):
        trainer._validation = range(count)
        assert trainer.restore() is False
    assert seen[1] - seen[0] == 4 * 3 * 1_000_000  # float32, 3 classes


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


def test_checkpoint_of_another_run_is_refused(run, tmp_path, monkeypatch):
    run("other", seed=1)
    _at_step(monkeypatch, 9, _crash)
    with pytest.raises(_Crash):
        run("run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(
        CheckpointError, match="of another run, which differs in --seed=0, --seed=1; "
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_run_of_a_version_without_a_setting_goes_on_as_with_its_default(run, tmp_path, monkeypatch):
    whole, save = run("unbroken"), checkpoints.save

    def without(lines):
        return [line for line in lines if not line.startswith("--mixup=")]

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints,
            "save",
            lambda path, state, arrays: save(path, {**state, "run": without(state["run"])}, arrays),
        )
        _at_epoch_end(patch, 2, _crash)
        with pytest.raises(_Crash):
            run("old")
    flags = tmp_path / "old" / "flags.txt"
    flags.write_text("\n".join(without(flags.read_text().split("\n"))))
    assert run("old")["weights_sha256"] == whole["weights_sha256"]


def test_float16_does_not_let_skipped_steps_move_statistics(run):
    with pytest.raises(UserError, match="--batchnorm=training in mixed_float16"):
        run("half", precision="mixed_float16", batchnorm="training")


def test_run_that_is_killed_again_and_again_makes_progress(run, tmp_path, monkeypatch):
    for step in range(1, 6):
        with monkeypatch.context() as patch:
            _at_step(patch, step + 1, _crash)
            with pytest.raises(_Crash):
                run("run", checkpoint_every_steps=1)
        assert sorted(os.listdir(tmp_path / "run" / "checkpoints"))[-1] == checkpoints.step_name(
            step
        )


def test_pretrained_weights_that_changed_meanwhile_are_noticed(run, monkeypatch):
    _at_step(monkeypatch, 9, _crash)
    with pytest.raises(_Crash):
        run("run")
    build = backbones.build_backbone
    monkeypatch.setattr(
        backbones,
        "build_backbone",
        lambda *args, seed, **kwargs: build(*args, seed=seed + 1, **kwargs),
    )
    with pytest.raises(
        CheckpointError, match="frozen variables are not those the run began with"
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_checkpoint_with_a_number_that_is_not_finite_is_refused(run, monkeypatch):
    _at_step(monkeypatch, 9, _crash)
    with pytest.raises(_Crash):
        run("run")
    load = checkpoints.load_newest

    def poked(*args):
        state, arrays = load(*args)
        return state, {
            **arrays,
            "variables/head/bias": np.full_like(arrays["variables/head/bias"], np.nan),
        }

    monkeypatch.setattr(checkpoints, "load_newest", poked)
    with pytest.raises(
        CheckpointError, match="numbers in variables/head/bias that are not finite"
    ) as error:
        run("run")
    assert error.value.exit_code == 7


def test_signal_while_the_cache_is_filled_ends_the_run_at_once(run, tmp_path, monkeypatch):
    expected = run("unbroken", augment_views=1)
    with monkeypatch.context() as patch:
        compute = features.compute_features
        patch.setattr(
            features,
            "compute_features",
            lambda source, views, size, progress, storage: compute(
                source,
                views,
                size,
                lambda done, total: signal.raise_signal(signal.SIGTERM),
                storage,
            ),
        )
        patch.setattr(
            loop.Trainer, "_run_epoch", lambda *args: pytest.fail("trained after the signal")
        )
        with pytest.raises(Interrupted, match="interrupted by signal 15; ") as error:
            run("broken", augment_views=1)
        assert error.value.exit_code == 143
    assert run("broken", augment_views=1)["weights_sha256"] == expected["weights_sha256"]


def test_test_images_are_read_once_though_the_run_ends_before_its_results(
    run, tmp_path, monkeypatch
):
    expected = run("unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "save_keras", lambda *args: _crash())
        with pytest.raises(_Crash):
            run("broken")
    monkeypatch.setattr(experiment, "_test", lambda *args: pytest.fail("read again"))
    monkeypatch.setattr(loop.Trainer, "_run_phase", lambda *args: pytest.fail("trained again"))
    result = run("broken")
    assert (result["test"], result["weights_sha256"]) == (
        expected["test"],
        expected["weights_sha256"],
    )
    _assert_equal_runs(tmp_path, "unbroken", "broken")


def test_resumed_run_keeps_its_precision_and_xla(run, tmp_path, monkeypatch):
    _at_step(monkeypatch, 9, _crash)
    with pytest.raises(_Crash):
        run("run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (recorded["precision"], recorded["xla"]) == ("float32", False)
    # as if it began on a GPU
    (tmp_path / "run" / "run.json").write_text(json.dumps({**recorded, "xla": True}))
    assert run("run")["xla"] is True


def test_resumed_run_says_that_it_began_with_other_versions(run, tmp_path, monkeypatch, capsys):
    _at_step(monkeypatch, 9, _crash)
    with pytest.raises(_Crash):
        run("run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    recorded["versions"]["tensorflow"], recorded["machine"]["cores"] = "2.99.0", 1000
    (tmp_path / "run" / "run.json").write_text(json.dumps(recorded))
    run("run", checkpoint_every_steps=7)
    lines = capsys.readouterr().err.splitlines()
    assert (
        f"warning: the run began with tensorflow 2.99.0, now {tf.__version__}; cores 1000, now "
        f"{os.cpu_count()}; what follows need not equal an unbroken run"
    ) in lines
    assert (
        f"note: {tmp_path / 'run'} goes on with --checkpoint_every_steps=7 instead of "
        "--checkpoint_every_steps=0" in lines
    )
    assert "--checkpoint_every_steps=7" in (tmp_path / "run" / "flags.txt").read_text().splitlines()


def test_run_goes_on_without_tensorboard(run, tmp_path, capsys):
    os.makedirs(tmp_path / "run")
    # a run of ours, with a file where a directory should be
    (tmp_path / "run" / "flags.txt").write_text("")
    (tmp_path / "run" / "validation").write_text("in the way")
    assert run("run")["phases"]
    assert (
        capsys.readouterr().err.count("warning: nothing more is written for TensorBoard to ") == 1
    )
    assert len(_metrics(tmp_path / "run" / "metrics.csv")) == 4


@pytest.mark.parametrize("place", ["export", "report"])
def test_what_cannot_be_written_is_a_storage_error(run, tmp_path, monkeypatch, place):
    monkeypatch.setattr(loop.Trainer, "run", lambda trainer, summaries: summaries.flush())
    monkeypatch.setattr(
        experiment,
        "_test",
        lambda *args: {"accuracy": 0.0, "loss": 0.0, "n": 1, "ci95": [0.0, 1.0], "reads": 1},
    )
    monkeypatch.setattr(loop.Trainer, "save", lambda trainer: None)
    os.makedirs(tmp_path / "run")
    # a run of ours, with a file where a directory should be
    (tmp_path / "run" / "flags.txt").write_text("")
    (tmp_path / "run" / place).write_text("in the way")
    with pytest.raises(
        StorageError, match="could not write .*; expected a writable place with room"
    ) as error:
        run("run")
    assert error.value.exit_code == 9
