"""The head that starts in closed form: what it is, that it is kept, and that runs go on from it."""

import keras
import numpy as np
import pytest

from tl_research.errors import UserError
from tl_research.extension import Extension


def _exported(tmp_path, name):
    return keras.models.load_model(tmp_path / name / "export" / "model.keras")


def test_head_alone_is_exported_and_measured(run, tmp_path, capsys):
    results = run("start", head_init="lda", epochs=(0, 0), dropout=0.0)
    assert results["phases"] == [] and results["selected_phase"] == "start"
    start = results["head_start"]
    assert set(start) == {"shrinkage", "temperature", "val_loss", "val_accuracy"}
    said = capsys.readouterr().out
    assert f"start: closed-form head (LDA, shrinkage {start['shrinkage']:g}, " in said
    random = run("random", epochs=(0, 0), dropout=0.0)
    assert random["head_start"] is None and random["selected_phase"] is None
    assert results["weights_sha256"] != random["weights_sha256"]
    heads = [
        _exported(tmp_path, name).get_layer("head").get_weights() for name in ("start", "random")
    ]
    assert [weights.shape for weights in heads[0]] == [weights.shape for weights in heads[1]]
    assert np.abs(heads[0][1]).max() > 0 and not heads[1][1].any()  # biases


def test_start_is_kept_where_no_epoch_is_better(run, unbroken, capsys):
    alone = unbroken("alone", head_init="lda", epochs=(0, 0))
    trained = run("trained", head_init="lda", epochs=(1, 1), learning_rate=3.0, optimizer="sgd")
    assert trained["selected_phase"] == "start"
    assert trained["weights_sha256"] == alone["weights_sha256"]
    assert trained["test"] == alone["test"]
    assert "keeping phase start, epoch 0" in capsys.readouterr().out


def test_first_trained_phase_begins_with_it(run, unbroken):
    """At a rate of almost nothing the first epoch of any phase ends where the start was."""
    start = unbroken("alone", head_init="lda", epochs=(0, 0))["head_start"]
    for epochs in ((1, 0), (0, 1)):
        name = "-".join(map(str, epochs))
        results = run(name, head_init="lda", epochs=epochs, learning_rate=1e-9, augment=("none",))
        assert results["phases"][0]["val_loss"] == pytest.approx(start["val_loss"], rel=1e-4)


def test_first_epoch_trains_on_what_the_start_was_solved_on(run, metrics):
    """Two epochs of cached features would not pay, but for those of the images as they are."""
    settings = {"epochs": (0, 2), "lr_schedule": "constant", "warmup": 0}
    started = run("started", head_init="lda", augment_views=4, **settings)
    plain = run("plain", head_init="lda", augment=("none",), **settings)
    assert started["feature_cache"] == plain["feature_cache"] == "memory"
    random = run("random", augment_views=4, **settings)
    assert random["feature_cache"] == "off"
    assert started["head_start"] == plain["head_start"]
    (first, second), (same, other) = metrics("started"), metrics("plain")
    assert first["train_loss"] == same["train_loss"]
    assert second["train_loss"] != other["train_loss"]


def test_run_goes_on_to_the_same_bits(run, assert_equal_runs):
    run("unbroken", head_init="lda", checkpoint_every_steps=2, copies={"broken": 4})
    run("broken", head_init="lda", checkpoint_every_steps=2)
    assert_equal_runs("unbroken", "broken")


def test_head_of_two_layers_is_refused(run):
    def make_head(features, num_classes):
        pooled = keras.layers.GlobalAveragePooling2D()(features)
        hidden = keras.layers.Dense(4, name="hidden")(pooled)
        return keras.layers.Dense(num_classes, name="logits")(hidden)

    with pytest.raises(UserError, match="--head_init=lda with a head .* hidden, logits; expected"):
        run("own", head_init="lda", parts=Extension(make_head=make_head))
