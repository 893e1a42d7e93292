"""`python -m tl_research.lr_find`: finds a rate for each phase, and the run that goes on has never
heard of it.
"""

import csv
import os

import numpy as np
import pytest

from tl_research import experiment
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.lr_find import lr_find
from tl_research.reporting import figures
from tl_research.training import lr_range_test
from tl_research.training.events import CallEnded

_STEP = np.arange(100)


def _suggest(change):
    """Returns what is suggested if the rates change the losses of batches, 3 on average, so."""
    start_losses = 3 + np.random.RandomState(0).uniform(-1, 1, size=len(change))
    rows = lr_range_test.smoothed_rows(list(start_losses), start_losses + change)
    return lr_range_test.suggest(list(rows))


def test_suggestion_is_where_the_loss_falls_fastest():
    # The fall is symmetric about its steepest point, step 50; behind it training diverges.
    change = -0.5 * (1 + np.tanh((_STEP - 50) / 8)) + np.exp((_STEP - 85) / 4)
    assert _suggest(change) == (pytest.approx(10 ** (-6 + 6 * 50 / 99)), "")


@pytest.mark.parametrize(
    "change, reason",
    [
        (0.01 * _STEP, "falls by less than 10%"),
        (0.1 * np.random.RandomState(1).normal(size=100), "falls by less than 10%"),
        (np.exp(-_STEP / 5) - 1, "fastest at the lowest rates"),
        (np.where(_STEP < 9, -0.1 * _STEP, 1e9), "fastest at the lowest rates"),
        (-np.exp((_STEP - 99) / 5), "fastest at the highest rates"),
        (np.zeros(0), "not finite"),
    ],
)
def test_curve_without_a_steepest_point_is_refused(change, reason):
    suggested, said = _suggest(change)
    assert suggested is None and reason in said


def test_axis_of_the_loss_ends_where_training_diverged(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda figure, *_, **__: limits.append(figure.axes[0].get_ylim())
    )
    rows = [
        {"learning_rate": 10.0**-k, "loss": loss, "start_loss": 2.0, "smoothed_loss": loss}
        for k, loss in ((3, 2.0), (2, 1.0), (1, 99.0))
    ]
    figures.save_learning_rates(tmp_path / "rates.png", rows, None)
    assert limits == [(0, 4)]


def test_run_inside_or_after_its_last_phase_is_refused_and_left_as_it_is(
    tiny_backbone, tiny_settings, tmp_path
):
    settings = tiny_settings(tmp_path, epochs=(1, 2))

    def crash_in_the_third_epoch(event):
        if isinstance(event, CallEnded) and event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(Config(**settings), observers=[crash_in_the_third_epoch])
    with pytest.raises(
        UserError, match="is a run inside its last phase, finetune, which would be trained"
    ):
        lr_find(Config(**settings))
    assert len(experiment.run(Config(**settings))["phases"]) == 2
    # nor has a finished one a phase to look at
    with pytest.raises(
        UserError,
        match="is a finished run; expected one before its last phase; use another --workdir",
    ) as error:
        lr_find(Config(**settings))
    assert error.value.exit_code == 1
    assert not os.path.exists(tmp_path / "run" / "lr_find")


@pytest.mark.parametrize(
    "settings",
    [{"augment_views": 2}, {"cache_pixels": 0, "precision": "mixed_float16"}],
    ids=["cached", "streamed float16"],
)
def test_run_with_and_without_the_finder_end_with_equal_weights(
    tiny_backbone, tiny_settings, tmp_path, capsys, settings
):
    settings = tiny_settings(
        tmp_path,
        epochs=(1, 1),
        learning_rate=(1e-2, 1e-3),
        lr_multiplier=("head/=3",),
        data_audit="off",
        **settings,
    )
    without = experiment.run(Config(**settings))
    settings["workdir"] = str(tmp_path / "with")
    found = lr_find(Config(**settings))
    out = capsys.readouterr().out
    assert set(found) == {"head", "finetune"} and "Smith 2017" in out
    for phase, rate in found.items():
        text = (
            f"suggested learning rate {rate:.2g}," if rate else "no learning rate is suggested: the"
        )
        assert f"phase {phase}: {text}" in out
        with open(tmp_path / "with" / "lr_find" / f"{phase}.csv") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["learning_rate", "loss", "start_loss", "smoothed_loss"]
        assert float(rows[0]["learning_rate"]) == pytest.approx(1e-6)
        # nothing has been trained yet; then only the rates tell the two apart
        assert rows[0]["loss"] == rows[0]["start_loss"]
        assert float(rows[1]["loss"]) == pytest.approx(float(rows[1]["start_loss"]), rel=1e-2)
        assert len({row["loss"] for row in rows}) > 2
        assert (tmp_path / "with" / "lr_find" / f"{phase}.png").read_bytes().startswith(b"\x89PNG")
    assert not os.path.exists(tmp_path / "with" / "results.json")
    assert experiment.run(Config(**settings))["weights_sha256"] == without["weights_sha256"]
