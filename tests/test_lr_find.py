"""`python -m tl_research.lr_find`: finds a rate for each phase, and the run that goes on has never
heard of it.
"""

import csv
import os

import keras
import numpy as np
import pytest

from tl_research import experiment
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.lr_find import lr_find
from tl_research.training import lr_range_test
from tl_research.training.events import CallEnded


def test_suggestion_is_where_the_loss_falls_fastest():
    # On a grid of factors 10, slopes between neighbours (central differences): 0, -0.1, -0.55,
    # -0.5, 2 and 4, times 1 / ln 10.
    rates, losses = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0], [1.0, 1.0, 0.8, -0.1, -0.2, 3.9]
    assert lr_range_test.suggest(rates, losses) == 1e-3
    assert lr_range_test.suggest(rates[:1], losses[:1]) == 1e-5 and np.isnan(
        lr_range_test.suggest([], [])
    )


def test_run_inside_or_after_its_last_phase_is_refused_and_left_as_it_is(
    tiny_backbone, write_images, tmp_path
):
    settings = {
        "dataset": "directory",
        "data_dir": write_images(tmp_path / "photos", count=15, size=16),
        "image_size": 16,
        "backbone": "Tiny",
        "weights": "none",
        "epochs": (1, 2),
        "unfreeze": ("0%", "block3"),
        "batch_size": 8,
        "workdir": str(tmp_path / "run"),
    }

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
        match="is a finished run; expected one before its last phase; give another --workdir",
    ) as error:
        lr_find(Config(**settings))
    assert error.value.exit_code == 1
    assert not os.path.exists(tmp_path / "run" / "lr_find")


@pytest.mark.parametrize(
    "settings",
    [{}, {"augment_views": 2}, {"cache_pixels": 0}, {"precision": "mixed_float16"}],
    ids=["live", "cached", "streamed", "float16"],
)
def test_run_with_and_without_the_finder_end_with_equal_weights(
    tiny_backbone, write_images, tmp_path, capsys, request, settings
):
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    photos = write_images(tmp_path / "photos", count=15, size=16)
    settings = {
        "dataset": "directory",
        "data_dir": photos,
        "image_size": 16,
        "backbone": "Tiny",
        "weights": "none",
        "epochs": (1, 1),
        "unfreeze": ("0%", "block3"),
        "learning_rate": (1e-2, 1e-3),
        "batch_size": 8,
        "lr_multiplier": ("head/=3",),
        **settings,
    }
    without = experiment.run(Config(workdir=str(tmp_path / "without"), **settings))
    found = lr_find(Config(workdir=str(tmp_path / "with"), **settings))
    out = capsys.readouterr().out
    assert set(found) == {"head", "finetune"} and all(1e-6 <= rate <= 1 for rate in found.values())
    for phase, rate in found.items():
        assert f"phase {phase}: suggested --learning_rate {rate:.2g}" in out and "Smith 2017" in out
        with open(tmp_path / "with" / "lr_find" / f"{phase}.csv") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["learning_rate", "loss", "smoothed_loss"] and float(
            rows[0]["learning_rate"]
        ) == pytest.approx(1e-6)
        assert float(rows[0]["loss"]) == pytest.approx(float(rows[0]["smoothed_loss"]))
        assert len({row["loss"] for row in rows}) > 2
        assert (tmp_path / "with" / "lr_find" / f"{phase}.png").read_bytes().startswith(b"\x89PNG")
    assert not os.path.exists(tmp_path / "with" / "results.json")
    assert (
        experiment.run(Config(workdir=str(tmp_path / "with"), **settings))["weights_sha256"]
        == without["weights_sha256"]
    )
