"""What an observer is told and the recorder makes of it: event files, `metrics.csv`, warnings."""

import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from tl_research.run import checkpoints
from tl_research.training.step_loop import StepLoop

_CALL_ENDS = [2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20]  # of 2, 2 and 1 steps


@pytest.fixture
def recorded(unbroken):
    """A run in `run` whose head has a group of its own, with constant rates."""
    settings = {"lr_schedule": "constant", "warmup": 0, "data_audit": "on"}
    unbroken("run", steps_per_call=2, lr_multiplier=("head/=3",), **settings)


def test_event_files_have_the_tags_of_the_contract(recorded, events):
    sides, metrics = ("validation", "test"), ("accuracy", "loss")
    assert set(events("run", "validation")) == {
        *("loss", "accuracy", "confusion_matrix", "confusion_matrix_numbers", "worst_mistakes"),
        *(f"zz_hparams/{side}_{metric}" for side in sides for metric in metrics),
        *("_hparams_/experiment", "_hparams_/session_start_info"),
    }
    kinds = ("learning_rate", "gradient_norm", "update_ratio")
    assert set(events("run", "train")) == {
        "loss",
        "plain_loss",  # without the label smoothing that is the default
        *("accuracy", "images_per_second", "waiting_for_data"),
        *("plan", "data_audit", "labels_in_doubt", "groups", "audit", "test", "calibration"),
        *("first_batch", "input_statistics", "step/head", "step/finetune"),
        *(f"{kind}/{group}" for kind in kinds for group in ("head[head/]", "backbone")),
    }


def test_metrics_have_the_columns_of_the_contract_and_the_numbers_of_the_events(
    recorded, metrics, events, tmp_path
):
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header == (
        "phase,epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,images_per_second,"
        "seconds,learning_rate"
    )
    rows = metrics("run")
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    for side, prefix in (("train", "train"), ("validation", "val")):
        for tag in ("loss", "accuracy"):
            steps, values = zip(*events("run", side)[tag])
            assert list(steps) == [5, 10, 15, 20]
            expected = [float(row[f"{prefix}_{tag}"]) for row in rows]
            np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_rate_of_each_group_is_recorded_where_it_trains(recorded, events):
    train = events("run", "train")
    steps, rates = zip(*train["learning_rate/head[head/]"])
    assert list(steps) == _CALL_ENDS
    np.testing.assert_allclose(rates, 6 * [3e-2] + 6 * [3e-3], rtol=1e-6)
    assert [step for step, _ in train["learning_rate/backbone"]] == _CALL_ENDS[6:]
    assert all(value > 0 for _, value in train["gradient_norm/backbone"])


def test_records_are_on_the_disk_before_the_checkpoint_that_follows_them(run, events, monkeypatch):
    """What a crash took of them, a resumed run would not write again."""
    found, save = [], checkpoints.save

    def spy(directory, state, arrays):
        train = events("run", "train")
        steps = train.get("learning_rate/head", [(0, None)])
        found.append((state["global_step"], steps[-1][0], len(train.get("loss", ())), len(train)))
        save(directory, state, arrays)

    monkeypatch.setattr(checkpoints, "save", spy)
    run("run", epochs=(1, 1), checkpoint_every_steps=2, data_audit="on")
    # The beginning of each phase, steps 2 and 4 of its 5, and its end; then the test.
    at, written, epochs, tags = zip(*found)
    assert at == written == (0, 2, 4, 5, 5, 6, 8, 10, 10)
    assert epochs == (0, 0, 0, 1, 1, 1, 1, 2, 2)
    # plan, first batch, input statistics, the audit of the images and its picture, groups and the
    # graph of the step
    assert tags[0] == 7


def test_fall_at_a_phase_switch_is_said_in_one_line(train, capsys):
    train([0.5, 0.4, 0.9, 0.9], accuracies=[1.0, 1.0, 0.0, 0.0])
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")
    ]
    assert warnings == [
        (
            "warning: val_accuracy fell from 1.0000 to 0.0000 at the switch to finetune, more than "
            "chance explains; likely cause: the learning rate 0.001 is too high for the trainable "
            "layers"
        )
    ]


def test_small_fall_is_not_worth_a_line(train, capsys):
    # of 5 images: one standard error is 0.22
    train([0.5, 0.4, 0.9, 0.9], accuracies=[0.6, 0.6, 0.4, 0.4])
    assert "fell" not in capsys.readouterr().err


def test_loss_that_explodes_is_named_with_its_step(train, monkeypatch, capsys):
    call, calls = StepLoop.__call__, []

    def explode(step, *args):
        totals = call(step, *args)
        calls.append(len(calls))
        return {**totals, "loss_sum": totals["loss_sum"] * (1e4 if len(calls) in (9, 13) else 1.0)}

    monkeypatch.setattr(StepLoop, "__call__", explode)
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


def test_run_goes_on_without_tensorboard(run, metrics, tmp_path, capsys):
    os.makedirs(tmp_path / "run")
    # a run of ours, with a file where a directory should be
    (tmp_path / "run" / "flags.txt").write_text("")
    (tmp_path / "run" / "validation").write_text("in the way")
    assert run("run")["phases"]
    assert (
        capsys.readouterr().err.count("warning: nothing more is written for TensorBoard to ") == 1
    )
    assert len(metrics("run")) == 4


def test_further_runs_of_a_process_say_nothing_of_their_traces(run, monkeypatch):
    logger, records = tf.get_logger(), []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logger, "handlers", [handler])
    for name in "abc":  # of which TensorFlow would say it 7 times
        run(name, epochs=(1, 1))
    assert not [text for text in map(logging.LogRecord.getMessage, records) if "retracing" in text]
