"""Numbers worked out by hand."""

import numpy as np
import pytest

from tl_research import metrics

# Of four examples of class 0, three are found and one is taken for class 1; of two of class 1 one;
# class 2 has none.
_LABELS, _PREDICTED = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])


def test_confusion_matrix_has_a_row_for_each_true_class():
    assert metrics.confusion_matrix(_LABELS, _PREDICTED, 3).tolist() == [
        [3, 1, 0],
        [0, 1, 1],
        [0, 0, 0],
    ]


def test_per_class_numbers():
    first, second, third = metrics.per_class(metrics.confusion_matrix(_LABELS, _PREDICTED, 3))
    assert (first["support"], first["predicted"], first["precision"], first["recall"]) == (
        4,
        3,
        1.0,
        0.75,
    )
    assert first["f1"] == pytest.approx(6 / 7)  # 2 hits / (support + predicted)
    assert (second["precision"], second["recall"], second["f1"]) == (0.5, 0.5, 0.5)
    assert (third["support"], third["predicted"], third["precision"], third["f1"]) == (
        0,
        1,
        0.0,
        0.0,
    )
    assert np.isnan(third["recall"]) and np.isnan(third["recall_ci95"]).all()
    assert first["recall_ci95"] == list(metrics.wilson_interval(3, 4))


def test_balanced_accuracy_is_the_mean_recall_of_classes_that_have_examples():
    report, _ = metrics.report(np.eye(3)[_PREDICTED], np.array(_LABELS))
    assert report["balanced_accuracy"] == (0.75 + 0.5) / 2


def test_ranks_count_the_classes_before_the_true_one_and_ties_go_to_the_first():
    logits = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert metrics.ranks(logits, np.array([0, 2, 0, 2])).tolist() == [0, 2, 0, 2]


def test_softmax_and_losses_of_large_logits():
    logits = np.array([[np.log(3), 0.0], [1e4, 0.0]])
    np.testing.assert_allclose(metrics.softmax(logits), [[0.75, 0.25], [1.0, 0.0]])
    np.testing.assert_allclose(metrics.losses(logits, [1, 1]), [np.log(4), 1e4])


def test_calibration_error_weighs_bins_by_their_examples():
    # Bin (0.5, 0.6]: confidence 0.55 twice, one right: |0.5 - 0.55| = 0.05. Bin (0.9, 1]: 0.95 and
    # 1.0, both wrong: 0.975. Bin (0.6, 0.7]: 0.7 once, right: 0.3. A bound belongs to the bin below
    # it.
    confidence, correct = (
        np.array([0.55, 0.55, 0.95, 1.0, 0.7]),
        np.array([True, False, False, False, True]),
    )
    expected = (2 * 0.05 + 2 * 0.975 + 1 * 0.3) / 5
    assert metrics.expected_calibration_error(confidence, correct, bins=10) == pytest.approx(
        expected
    )
    assert metrics.expected_calibration_error(
        np.array([0.8] * 5), np.array([True] * 4 + [False])
    ) == pytest.approx(0, abs=1e-12)


def test_report_of_four_examples():
    logits, labels = (
        np.log([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]),
        np.array([0, 1, 1, 0]),
    )
    report, rows = metrics.report(logits, labels)
    confusion = metrics.confusion_matrix(labels, np.array([0, 1, 0, 2]), 3)
    assert confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_equal(rows, metrics.per_class(confusion))
    assert (report["n"], report["accuracy"], report["balanced_accuracy"]) == (4, 0.5, 0.5)
    assert report["ci95"] == list(metrics.wilson_interval(2, 4))
    assert {k: row["accuracy"] for k, row in report["top_k"].items()} == {"1": 0.5, "2": 1.0}
    losses = -np.log([0.7, 0.5, 0.3, 0.2])
    assert report["log_loss"] == pytest.approx(losses.mean())
    half = 1.96 * np.sqrt(((losses - losses.mean()) ** 2).sum() / 3 / 4)
    np.testing.assert_allclose(
        report["log_loss_ci95"], [losses.mean() - half, losses.mean() + half]
    )
    # Bins of 1/15: 0.5 (right) alone; 0.6 and 0.6 (wrong); 0.7 (right).
    assert report["expected_calibration_error"] == pytest.approx((0.5 + 2 * 0.6 + 0.3) / 4)


def test_loss_is_the_mean_over_all_examples_and_accuracy_their_share():
    # softmax of (ln 3, 0) is (3/4, 1/4); of (0, 0) it is (1/2, 1/2), whose argmax is the first.
    logits, labels = [[np.log(3), 0], [np.log(3), 0], [0, 0], [0, 0]], np.array([0, 1, 0, 0])
    loss, accuracy = metrics.loss_and_accuracy(logits, labels)
    assert loss == pytest.approx((np.log(4 / 3) + np.log(4) + 2 * np.log(2)) / 4, rel=1e-12)
    assert accuracy == 0.75 and isinstance(loss, float) and isinstance(accuracy, float)


def test_large_logits_do_not_overflow():
    loss, accuracy = metrics.loss_and_accuracy([[1e4, 0.0], [0.0, 1e4]], np.array([0, 0]))
    assert loss == 5000.0 and accuracy == 0.5
    assert np.isnan(metrics.loss_and_accuracy([[np.nan, 0.0]], np.array([0]))[0])


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
    np.testing.assert_allclose(metrics.wilson_interval(correct, total), [low, high], atol=1e-4)


def test_wilson_interval_stays_inside():
    for total in (1, 7, 1000):
        for correct in (0, total):
            low, high = metrics.wilson_interval(correct, total)
            assert 0 <= low <= correct / total <= high <= 1


def test_commonest_mistakes_come_first_and_none_of_no_image():
    confusion = np.array([[9, 2, 0], [5, 9, 0], [0, 2, 9]])
    assert metrics.most_confused(confusion, 9) == [(5, 1, 0), (2, 0, 1), (2, 2, 1)]
    assert metrics.most_confused(confusion, 2) == [(5, 1, 0), (2, 0, 1)]
