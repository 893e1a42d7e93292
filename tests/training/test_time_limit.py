"""Phases end within a time limit, exactly as phases of so many epochs do, wherever a run is cut."""

import time

import pytest

from tl_research import experiment
from tl_research.config import Config
from tl_research.training.time_limit import epochs_within, seconds_of_end

# Within a limit that is over at once, a run without a start has one epoch of its first phase.
_OVER = {"time_limit": 1e-3, "augment": ("none",), "data_audit": "off"}


def _numbers(rows):
    """Of `metrics.csv`; a length that is a variable rounds the rate otherwise than a constant."""
    return [
        float(row[name]) for row in rows for name in ("train_loss", "val_loss", "learning_rate")
    ]


@pytest.mark.parametrize(
    "seconds, before, expected",
    [
        (-1.0, [0, 0], 0),
        (9.9, [0, 0], 0),
        (10.0, [0, 0], 1),
        (39.0, [0, 15, 15], 2),  # 10, then 15 + 10; 4 are left
        (60.0, [0, 15, 15], 3),
        (59.9, [0, 15, 15], 2),
        (1e9, [0, 0, 0, 0], 4),
    ],
)
def test_epochs_within_seconds(seconds, before, expected):
    assert epochs_within(seconds, 10.0, before) == expected


def test_end_has_the_test_images_export_and_figures_and_later_phases():
    assert seconds_of_end(2.5, 4.0, 0) == pytest.approx(2.5 + 1.6 * 4.0)
    assert seconds_of_end(2.5, 4.0, 2) == pytest.approx(2.5 + 1.6 * 4.0 + 2 * 4.0)


def test_shortened_phase_is_a_phase_of_so_many_epochs(run, metrics, capsys):
    """Its schedule too: warm-up and cosine are of the steps that it has."""
    schedule = {"lr_schedule": "cosine", "warmup": 0.4}
    limited = run("limited", epochs=(4, 4), **_OVER, **schedule)
    said = capsys.readouterr().out
    assert "time limit 0.001 s: head shortened to 1 of 4 epochs\n" in said
    assert "time limit 0.001 s: finetune shortened to 0 of 4 epochs\n" in said
    assert limited["time_limit"] == {"seconds": 1e-3, "epochs": {"head": 1, "finetune": 0}}
    assert [(phase["name"], phase["traces"]) for phase in limited["phases"]] == [("head", 1)]
    short = run("short", epochs=(1, 0), **{**_OVER, "time_limit": 0.0}, **schedule)
    assert short["time_limit"] is None
    assert _numbers(metrics("limited")) == pytest.approx(_numbers(metrics("short")), rel=1e-5)


def test_limit_that_leaves_room_changes_nothing(run, metrics, capsys):
    settings = {**_OVER, "lr_schedule": "cosine", "warmup": 0.4}
    run("free", **{**settings, "time_limit": 0.0})
    roomy = run("roomy", **{**settings, "time_limit": 1e6})
    assert "time limit 1e+06 s: all 2 epochs of finetune fit\n" in capsys.readouterr().out
    assert roomy["time_limit"]["epochs"] == {"head": 2, "finetune": 2}
    assert _numbers(metrics("roomy")) == pytest.approx(_numbers(metrics("free")), rel=1e-5)


def test_start_is_exported_where_no_epoch_fits(run):
    alone = run("alone", head_init="lda", epochs=(0, 0))
    limited = run("limited", head_init="lda", time_limit=1e-3)
    assert limited["phases"] == [] and limited["selected_phase"] == "start"
    assert limited["time_limit"]["epochs"] == {"head": 0, "finetune": 0}
    assert limited["weights_sha256"] == alone["weights_sha256"]


def test_resumed_phase_keeps_what_was_decided(run, tmp_path, assert_equal_runs):
    """Even where the limit is over when it goes on."""
    settings = {**_OVER, "time_limit": 1e6, "checkpoint_every_steps": 2}
    run("unbroken", copies={"broken": 14}, **settings)
    config = Config.from_flags((tmp_path / "broken" / "flags.txt").read_text())
    config = Config(**{**vars(config), "workdir": str(tmp_path / "broken")})
    results = experiment.run(config, started=time.perf_counter() - 1e7)
    assert results["time_limit"]["epochs"] == {"head": 2, "finetune": 2}
    assert_equal_runs("unbroken", "broken")
    copies = {"short-broken": 4}
    run("short", **_OVER, epochs=(4, 4), checkpoint_every_steps=2, copies=copies)
    run("short-broken", **_OVER, epochs=(4, 4), checkpoint_every_steps=2)
    assert_equal_runs("short", "short-broken")
