"""Numbers worked out by hand."""

import csv
import io
import json

import numpy as np
import pytest

from tl_research.files import csv_text
from tl_research.reporting import figures, results


def test_loss_is_the_mean_over_all_examples_and_accuracy_their_share():
    # softmax of (ln 3, 0) is (3/4, 1/4); of (0, 0) it is (1/2, 1/2), whose argmax is the first.
    logits, labels = [[np.log(3), 0], [np.log(3), 0], [0, 0], [0, 0]], np.array([0, 1, 0, 0])
    loss, accuracy = results.loss_and_accuracy(logits, labels)
    assert loss == pytest.approx((np.log(4 / 3) + np.log(4) + 2 * np.log(2)) / 4, rel=1e-12)
    assert accuracy == 0.75 and isinstance(loss, float) and isinstance(accuracy, float)


def test_large_logits_do_not_overflow():
    loss, accuracy = results.loss_and_accuracy([[1e4, 0.0], [0.0, 1e4]], np.array([0, 0]))
    assert loss == 5000.0 and accuracy == 0.5
    assert np.isnan(results.loss_and_accuracy([[np.nan, 0.0]], np.array([0]))[0])


@pytest.mark.parametrize(
    "correct, total, low, high",
    [
        # z = 1.96, n = 10, p = 0.8: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 1.96 / 1.38415
        # sqrt(0.016 + 0.0096036) = 0.22658
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),  # z^2 / (n + z^2) = 3.8415 / 13.8415
        (10, 10, 0.7225, 1.0),
        (354, 367, 0.9403, 0.9792),
    ],
)
def test_wilson_interval(correct, total, low, high):
    np.testing.assert_allclose(results.wilson_interval(correct, total), [low, high], atol=1e-4)


def test_wilson_interval_stays_inside():
    for total in (1, 7, 1000):
        for correct in (0, total):
            low, high = results.wilson_interval(correct, total)
            assert 0 <= low <= correct / total <= high <= 1


def test_metrics_csv_has_the_columns_of_the_contract():
    row = dict(
        phase="head",
        epoch=1,
        step=3,
        train_loss=0.1 + 0.2,
        train_accuracy=1.0,
        val_loss=float("nan"),
        val_accuracy=0.5,
        images_per_second=10.0,
        seconds=2.0,
        learning_rate=1e-3,
    )
    text = csv_text(results.METRICS_COLUMNS, [row, {**row, "epoch": 2}])
    assert text.splitlines()[0] == (
        "phase,epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,"
        "images_per_second,seconds,"
        "learning_rate"
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 2 and float(rows[0]["train_loss"]) == 0.1 + 0.2  # every digit
    assert "\r" not in text and csv_text(results.METRICS_COLUMNS, []).count("\n") == 1


def test_no_nan_in_json():
    value = {
        "a": [1.5, float("nan"), (float("inf"), True)],
        "b": {"c": -float("inf"), "d": "nan", "e": 3},
    }
    assert results.without_nan(value) == {
        "a": [1.5, None, [None, True]],
        "b": {"c": None, "d": "nan", "e": 3},
    }
    json.dumps(results.without_nan(value), allow_nan=False)


def test_curves_are_a_png(tmp_path):
    rows = [
        dict(
            phase=phase,
            epoch=epoch,
            train_loss=1 / epoch,
            val_loss=float("nan") if epoch == 2 else 0.5,
            train_accuracy=0.5,
            val_accuracy=0.6,
        )
        for epoch, phase in ((1, "head"), (2, "head"), (3, "finetune"))
    ]
    figures.save_curves(str(tmp_path / "curves.png"), rows)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
