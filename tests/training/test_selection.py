"""Which epoch and which phase are kept."""

import numpy as np
import pytest

from tl_research.errors import NonFiniteError, UserError
from tl_research.extension import Extension
from tl_research.reporting import results
from tl_research.training import epoch


def _best_epochs(said):
    """Returns whether each row of an epoch marks it as the best so far."""
    return ["*" in line for line in said.splitlines() if line.split()[1:2] == ["only"]]


def test_patience_ends_a_phase_and_its_best_weights_are_restored_and_evaluated_again(
    train, assert_weights, capsys
):
    trained, epochs = train(
        [0.9, 0.5, 0.6, 0.7, 0.1],
        epochs=(9,),
        phases=("only",),
        unfreeze="block3",
        patience=2,
        learning_rate=1e-2,
    )
    assert len(epochs) == 4
    (phase,) = trained.state.past.finished
    # 0.5 again: those weights were evaluated
    assert (phase["epochs"], phase["best_epoch"], phase["val_loss"]) == (4, 2, 0.5)
    assert_weights(trained.classifier, epochs[1])
    assert (epochs[1]["head/kernel"] != epochs[3]["head/kernel"]).any()
    assert _best_epochs(capsys.readouterr().out) == [True, True, False, False]


def test_without_patience_all_epochs_are_trained_and_the_best_restored(train, assert_weights):
    trained, epochs = train(
        [0.9, 0.5, 0.6, 0.7], epochs=(4,), phases=("only",), unfreeze="block3", learning_rate=1e-2
    )
    assert len(epochs) == 4 and trained.state.past.finished[0]["epochs"] == 4
    assert_weights(trained.classifier, epochs[1])


def test_tie_keeps_the_earlier_epoch(train, assert_weights):
    trained, epochs = train(
        [0.9, 0.5, 0.5], epochs=(3,), phases=("only",), unfreeze="0%", learning_rate=1e-2
    )
    assert trained.state.past.finished[0]["best_epoch"] == 2
    assert_weights(trained.classifier, epochs[1])


def test_of_equal_accuracies_the_lower_loss_decides_between_epochs_and_phases(
    train, assert_weights
):
    trained, epochs = train(
        [0.9, 0.6, 0.7, 0.5],
        [0.5, 0.8, 0.7, 0.8],
        select_by="val_accuracy",
        **{**_ONLY, "epochs": (4,)},
    )
    assert trained.state.past.finished[0]["best_epoch"] == 4
    trained, epochs = train([0.6, 0.5, 0.7, 0.4], [0.8, 0.8, 0.8, 0.8], select_by="val_accuracy")
    past = trained.state.past
    assert [phase["best_epoch"] for phase in past.finished] == [2, 4]
    assert (past.selected["phase"], past.selected["epoch"]) == ("finetune", 4)
    assert_weights(trained.classifier, epochs[3])


def test_later_phase_that_never_is_better_is_not_kept(train, assert_weights, capsys):
    trained, epochs = train([0.5, 0.4, 0.6, 0.4000001])
    assert trained.state.past.selected == {
        "phase": "head",
        "epoch": 2,
        "val_loss": 0.4,
        "val_accuracy": 0.5,
    }
    assert_weights(trained.classifier, epochs[1])
    assert (
        "finetune did not improve val_loss (0.4000 vs 0.4000); keeping phase head, epoch 2"
        in capsys.readouterr().out
    )
    assert trained.state.past.finished[1]["best_epoch"] == 4


def test_later_phase_that_is_better_is_kept_and_epochs_go_on_counting(train, assert_weights):
    trained, epochs = train([0.5, 0.4, 0.3, 0.6])
    past = trained.state.past
    assert past.selected["phase"] == "finetune" and past.selected["epoch"] == 3
    assert_weights(trained.classifier, epochs[2])
    assert [row["epoch"] for row in past.history] == [1, 2, 3, 4]
    assert [row["step"] for row in past.history] == [3, 6, 9, 12]


def test_phase_begins_with_the_best_weights_of_the_ones_before(train, monkeypatch):
    starts, calls = [], epoch.calls

    def spy(setup, *args):
        kernel = setup.plan.classifier.variables["head/kernel"]
        starts.append((setup.phase.name, kernel.numpy()))
        return calls(setup, *args)

    monkeypatch.setattr(epoch, "calls", spy)
    _, epochs = train([0.4, 0.5, 0.6, 0.6])
    assert [name for name, _ in starts] == ["head", "head", "finetune", "finetune"]
    np.testing.assert_array_equal(starts[2][1], epochs[0]["head/kernel"])


def test_nan_is_never_best_and_counts_as_no_improvement(train, assert_weights):
    nan = float("nan")
    trained, epochs = train(
        [nan, 0.5, nan, 0.6, 0.1],
        epochs=(9,),
        phases=("only",),
        unfreeze="0%",
        patience=2,
        learning_rate=1e-2,
    )
    assert trained.state.past.finished[0]["best_epoch"] == 2 and len(epochs) == 4
    assert_weights(trained.classifier, epochs[1])
    assert results.without_nan(trained.state.past.history)[0]["val_loss"] is None


def test_validation_that_never_is_finite_is_an_error(train):
    with pytest.raises(NonFiniteError, match="val_loss was never finite in phase head") as error:
        train([float("nan")])
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    "epochs, trained", [((0, 2), ["finetune"]), ((2, 0), ["head"]), ((0, 0), [])]
)
def test_phase_of_no_epochs_is_skipped(train, epochs, trained):
    run, weights = train(epochs=epochs)
    assert [phase["name"] for phase in run.state.past.finished] == trained
    assert [row["epoch"] for row in run.state.past.history] == list(range(1, len(weights) + 1))
    assert bool(run.state.past.selected) == bool(trained)


# --select_by


_ONLY = {"phases": ("only",), "epochs": (9,), "unfreeze": ("block3",), "learning_rate": (1e-2,)}


def test_highest_accuracy_is_best_where_it_is_selected_by(train, assert_weights, capsys):
    """The loss, which would choose the last epoch, is not looked at."""
    trained, epochs = train(
        [0.9, 0.8, 0.7, 0.6, 0.5],
        accuracies=[0.2, 0.6, 0.5, 0.4, 0.9],
        select_by="val_accuracy",
        patience=2,
        **_ONLY,
    )
    assert len(epochs) == 4
    (phase,) = trained.state.past.finished
    found = (phase["best_epoch"], phase["val_accuracy"], phase["val_loss"])
    assert found == (2, 0.6, 0.8)
    assert_weights(trained.classifier, epochs[1])
    assert _best_epochs(capsys.readouterr().out) == [True, True, False, False]


@pytest.mark.parametrize(
    "accuracies, phase, said",
    [
        ([0.2, 0.4, 0.6, 0.4], "finetune", None),
        (
            [0.2, 0.6, 0.4, 0.6],
            "head",
            "finetune did not improve val_accuracy (0.6000 vs 0.6000); keeping phase head, epoch 2",
        ),
    ],
)
def test_phase_of_the_highest_accuracy_is_selected(train, capsys, accuracies, phase, said):
    trained, _ = train([0.5], accuracies=accuracies, select_by="val_accuracy")
    assert trained.state.past.selected["phase"] == phase
    out = capsys.readouterr().out
    assert said in out if said else "did not improve" not in out


def _scripted_column(values, name="score"):
    """Returns `epoch_ends` that gives one number written down for each epoch, by its row."""
    return lambda run, row, logits: {name: values[row["epoch"] - 1]}


def test_column_of_an_extension_is_selected_by_and_stops_early(train, assert_weights, capsys):
    trained, epochs = train(
        [0.9, 0.8, 0.7, 0.6, 0.5],
        parts={"epoch_ends": _scripted_column([0.3, float("nan"), 0.7, 0.6, 0.5, 0.9])},
        select_by="score",
        patience=2,
        **_ONLY,
    )
    assert len(epochs) == 5
    (phase,) = trained.state.past.finished
    assert (phase["epochs"], phase["best_epoch"], phase["val_loss"]) == (5, 3, 0.7)
    assert_weights(trained.classifier, epochs[2])
    rows = trained.state.past.history
    np.testing.assert_array_equal(
        [row["score"] for row in rows], [0.3, float("nan"), 0.7, 0.6, 0.5]
    )
    assert _best_epochs(capsys.readouterr().out) == [True, False, True, False, False]
    assert trained.state.past.selected["score"] == 0.7


def test_phases_are_compared_by_the_column_of_an_extension(train, assert_weights, capsys):
    trained, epochs = train(
        [0.9, 0.8, 0.7, 0.6],
        parts={"epoch_ends": _scripted_column([0.2, 0.8, 0.5, 0.6])},
        select_by="score",
    )
    selected = trained.state.past.selected
    assert (selected["phase"], selected["epoch"], selected["score"]) == ("head", 2, 0.8)
    assert_weights(trained.classifier, epochs[1])
    assert (
        "finetune did not improve score (0.6000 vs 0.8000); keeping phase head, epoch 2"
        in capsys.readouterr().out
    )


def test_column_whose_name_ends_in_loss_is_best_where_it_is_lowest(train, assert_weights):
    trained, epochs = train(
        [0.5],
        parts={"epoch_ends": _scripted_column([0.3, 0.1, 0.2], "other_loss")},
        select_by="other_loss",
        **{**_ONLY, "epochs": (3,)},
    )
    assert trained.state.past.finished[0]["best_epoch"] == 2
    assert_weights(trained.classifier, epochs[1])


def test_column_that_never_is_finite_is_an_error(train):
    with pytest.raises(NonFiniteError, match="^score was never finite in phase only; "):
        train(
            parts={"epoch_ends": _scripted_column([float("inf")] * 2)},
            select_by="score",
            **{**_ONLY, "epochs": (2,)},
        )


def test_what_is_not_measured_cannot_be_selected_by(train):
    with pytest.raises(
        UserError,
        match="^--select_by=val_acuracy is not measured; expected one of train_loss, "
        "train_accuracy, val_loss, val_accuracy, .*score; did you mean val_accuracy[?]",
    ) as error:
        train(
            parts={"epoch_ends": _scripted_column([0.5] * 9)},
            select_by="val_acuracy",
            **_ONLY,
        )
    assert error.value.exit_code == 1 and error.value.flag == "select_by"


def test_resumed_run_selects_as_an_unbroken_one(run, broken, assert_equal_runs):
    """The epochs that were waited count on over what was broken off."""
    settings = {
        "parts": Extension(
            epoch_ends=_scripted_column([0.1, 0.3, 0.2, 0.1, 0.3, 0.4, 0.2, 0.1, 0.9])
        ),
        "select_by": "score",
        "epochs": (4, 5),
        "patience": (2, 2),
        "checkpoint_every_steps": 2,
    }
    whole = run("unbroken", **settings)
    assert [(phase["epochs"], phase["best_epoch"]) for phase in whole["phases"]] == [(4, 2), (4, 6)]
    broken("broken", epoch=3, **settings)
    broken("broken", step=36, **settings)  # in epoch 8, the second without a better one
    run("broken", **settings)
    assert_equal_runs("unbroken", "broken")
