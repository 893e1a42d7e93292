"""Each kind of answer, by numbers worked out by hand."""

import tracemalloc

import numpy as np
import pytest

from tl_research.answers import ANSWERS, kind_of
from tl_research.errors import UserError

_LN3 = np.log(3)  # a sigmoid of 3/4; of its negative 1/4


def test_kind_is_that_of_the_labels():
    forms = {
        "class": np.zeros(2, np.int32),
        "set": np.zeros((2, 3), np.float32),
        "number": np.zeros(2, np.float32),
    }
    assert {name: kind_of(labels).name for name, labels in forms.items()} == {
        name: name for name in ANSWERS
    }
    for labels in (np.zeros((2, 3), bool), np.zeros((2, 3, 1), np.float32), np.zeros(2)):
        with pytest.raises(UserError, match="labels are .*; expected one of int32 \\[N\\]; float"):
            kind_of(labels)


def test_one_class():
    answer, classes = ANSWERS["class"], ("ant", "bee")
    logits, labels = np.float32([[_LN3, 0], [0, 0], [0, _LN3]]), np.int32([0, 1, 0])
    found = answer.measured(logits, labels)
    assert found["loss"] == pytest.approx((np.log(4 / 3) + np.log(2) + np.log(4)) / 3)
    assert found["accuracy"] == pytest.approx(1 / 3)  # of equal logits the first class is said
    assert answer.mistakes(logits, labels).tolist() == [2, 1]
    row = answer.rows(logits, labels, classes)[2]
    assert (row["true"], row["predicted"]) == ("ant", "bee") and list(row)[:5] == list(
        answer.columns
    )
    numbers = [row[name] for name in ("probability", "true_probability", "loss", "probability ant")]
    assert numbers == pytest.approx([0.75, 0.25, np.log(4), 0.25])
    assert answer.said(np.array([0.25, 0.75]), classes) == ("bee", 0.75)
    assert answer.confusion(logits, labels).tolist() == [[1, 1], [1, 0]]


def test_set_of_classes():
    answer, classes = ANSWERS["set"], ("sea", "sky", "sun")
    logits = np.float32([[_LN3, -_LN3, 0], [_LN3, _LN3, -_LN3]])
    labels = np.float32([[1, 0, 1], [1, 0, 1]])  # the first wholly right; of the second one of 3
    np.testing.assert_allclose(answer.outputs(logits), [[0.75, 0.25, 0.5], [0.75, 0.75, 0.25]])
    losses = [(2 * np.log(4 / 3) + np.log(2)) / 3, (np.log(4 / 3) + 2 * np.log(4)) / 3]
    np.testing.assert_allclose(answer.losses(logits, labels), losses, rtol=1e-6)
    # F1: sea 1; sky 0 of one said; sun 2 x 1 / (2 + 1)
    assert answer.measured(logits, labels) == {
        "loss": pytest.approx(np.mean(losses)),
        "accuracy": 0.5,
        "macro_f1": pytest.approx((1 + 0 + 2 / 3) / 3),
    }
    assert answer.mistakes(logits, labels).tolist() == [1]
    row = answer.rows(logits, labels, classes)[1]
    assert (row["true"], row["predicted"]) == ("sea;sun", "sea;sky")
    assert row["probability"] == pytest.approx(0.75**3)
    assert row["true_probability"] == pytest.approx(0.75 * 0.25 * 0.25)
    assert answer.said(np.array([0.25, 0.25, 0.25]), classes) == ("", pytest.approx(0.75**3))
    report = answer.report(logits, labels, classes)
    assert report["n"] == 2 and report["ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    sun = report["per_class"]["sun"]
    assert (sun["support"], sun["predicted"], sun["precision"], sun["recall"]) == (2, 1, 1.0, 0.5)
    assert answer.summary(report) == (
        "loss 0.7215, accuracy 0.5000, macro f1 0.5556, log loss 0.7215, expected calibration "
        f"error {report['expected_calibration_error']:.4f}, temperature 1.0000 on 2 images; 95 % "
        "interval of the accuracy 0.095-0.905"
    )
    # of six things said one has probability 0.5, and is right, five have 0.75, and three are
    assert report["expected_calibration_error"] == pytest.approx((0.5 + 5 * (0.75 - 0.6)) / 6)
    calibrated = answer.report(logits, labels, classes, 0.5)  # 0.9 instead of 0.75
    assert (calibrated["temperature"], calibrated["loss"]) == (0.5, report["loss"])
    losses = -np.log([[0.9, 0.9, 0.5], [0.9, 0.1, 0.1]])
    assert calibrated["log_loss"] == pytest.approx(losses.mean())
    assert calibrated["expected_calibration_error"] == pytest.approx((0.5 + 5 * (0.9 - 0.6)) / 6)
    assert answer.confusion(logits, labels) is None


def test_score_leaves_out_classes_that_never_occur():
    answer = ANSWERS["set"]
    assert answer.measured(np.float32([[1, -1]]), np.float32([[1, 0]]))["macro_f1"] == 1.0
    assert np.isnan(answer.measured(np.float32([[-1]]), np.float32([[0]]))["macro_f1"])


def test_number():
    answer, logits, labels = ANSWERS["number"], np.float32([[1], [2], [5]]), np.float32([1, 4, 2])
    assert answer.measured(logits, labels) == {
        "loss": pytest.approx(13 / 3),
        "mean_absolute_error": pytest.approx(5 / 3),
    }
    assert answer.mistakes(logits, labels).tolist() == [2, 1]
    expected = {"true": 2.0, "predicted": 5.0, "error": 3.0, "loss": 9.0}
    assert answer.rows(logits, labels, ("age",))[2] == expected
    assert answer.said(np.array([3.0]), ("age",)) == ()
    # errors 0, 2, 3: variance 7 / 3, standard error 0.8819; 5 / 3 - 1.73 is below 0
    assert answer.report(logits, labels, ("age",))["mean_absolute_error_ci95"] == pytest.approx(
        [0.0, 5 / 3 + 1.96 * 0.881917], abs=1e-5
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_outputs_tell_the_logits_apart(name):
    """Up to what they cannot tell: of one class a number that all logits share."""
    logits = np.random.RandomState(0).normal(0, 3, (20, 1 if name == "number" else 4))
    received = ANSWERS[name].comparable(ANSWERS[name].outputs(logits))
    expected = logits - logits.mean(axis=1, keepdims=True) if name == "class" else logits
    np.testing.assert_allclose(received, expected, rtol=1e-9, atol=1e-9)
    assert np.isfinite(ANSWERS[name].outputs(np.array([[1e4, -1e4]]))).all()


def test_confusion_of_too_many_classes_is_none_and_their_report_makes_none():
    labels = np.arange(8, dtype=np.int32) * 600
    logits = np.zeros((8, 5000), np.float32)
    logits[np.arange(8), labels] = 9.0
    assert ANSWERS["class"].confusion(logits, labels) is None
    tracemalloc.start()
    report = ANSWERS["class"].report(logits, labels, [str(i) for i in range(5000)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report["accuracy"] == 1.0 and report["per_class"]["600"]["support"] == 1
    assert peak < 5000**2  # bytes
