"""Metrics of logits on images that were not trained on. NumPy only."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from tl_research.files import Json

_TOP = (1, 2, 3, 5)
_BINS = 15


def scaled(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Returns logits divided by a temperature, in float64 so that unequal ones stay unequal."""
    return np.asarray(logits, np.float64) / temperature


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns float64 probabilities [N, K] of logits [N, K]."""
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns (mean cross-entropy in nats, accuracy) of logits [N, K] with labels int [N]."""
    logits = np.asarray(logits)
    return float(losses(logits, labels).mean()), float((logits.argmax(axis=1) == labels).mean())


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64 [N], the cross-entropy in nats of logits [N, K] with labels int [N]."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the confusion matrix, int64 [K, K].

    Args:
        labels: int [N], the rows.
        predicted: int [N], the columns.
        num_classes: K.
    """
    places = np.asarray(labels) * num_classes + predicted
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Returns (images, true class, predicted class) of the `count` most frequent mistakes in a
    confusion matrix [K, K].
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)))
    return [(int(wrong[row, said]), row, said) for row, said in places if wrong[row, said]]


def per_class(confusion: np.ndarray) -> list[Json]:
    """Returns a dict per class: support, predicted, precision, recall, recall_ci95 and f1; 0 / 0 is
    NaN.
    """
    return _per_class(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def per_class_of_sets(labels: np.ndarray, answers: np.ndarray) -> list[Json]:
    """Returns the same as `per_class` for sets of classes, [N, K] of 0 and 1."""
    return _per_class((labels * answers).sum(axis=0), labels.sum(axis=0), answers.sum(axis=0))


def _per_class(hits, support, predicted):
    return [
        {
            "support": there,
            "predicted": said,
            "precision": _share(hit, said),
            "recall": _share(hit, there),
            "recall_ci95": list(wilson_interval(hit, there) if there else (np.nan, np.nan)),
            "f1": _share(2 * hit, there + said),
        }
        for hit, there, said in np.stack([hits, support, predicted], 1).astype(int).tolist()
    ]


def macro_f1(rows: list[Json]) -> float:
    """Returns the mean F1 over the rows of `per_class`, without classes that never occur."""
    scores = [row["f1"] for row in rows if row["support"] + row["predicted"]]
    return statistics.fmean(scores) if scores else math.nan


def _share(part, whole):
    return part / whole if whole else float("nan")


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the number of classes ranked before the true one, int64 [N].

    Of equal logits, the first class ranks first, as in argmax.
    """
    logits = np.asarray(logits)
    true = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < np.asarray(labels)[:, None]
    return ((logits > true) | ((logits == true) & before)).sum(axis=1)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = _BINS) -> np.ndarray:
    """Returns count, mean confidence and accuracy of each bin that is not empty, float64 [M, 3].

    Args:
        confidence: float [N], the probabilities of the answers.
        correct: bool [N], whether they are correct.
        bins: Number of bins of equal width in (0, 1].
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, of, bins) for of in (confidence, correct.astype(float))]
    means = [of[counts > 0] / counts[counts > 0] for of in sums]
    return np.stack([counts[counts > 0], *means], axis=1)


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = _BINS
) -> float:
    """Returns the expected calibration error (Guo et al. 2017, arXiv:1706.04599): the mean distance
    of confidence and accuracy of an example's bin.

    Args:
        confidence, correct, bins: As for `reliability`.
    """
    counts, confidences, accuracies = reliability(confidence, correct, bins).T
    return float((counts * np.abs(accuracies - confidences)).sum() / counts.sum())


def report(logits: np.ndarray, labels: np.ndarray) -> tuple[Json, list[Json]]:
    """Returns (metrics as a JSON value, rows as of `per_class`) without a [K, K] array.

    Intervals of accuracies are Wilson's, that of the mean loss is 1.96 standard errors to either
    side.

    Args:
        logits: float [N, K].
        labels: int [N].
    """
    count, num_classes = np.shape(logits)
    probabilities, loss = softmax(logits), losses(logits, labels)
    rank = ranks(logits, labels)
    predicted = probabilities.argmax(axis=1)
    hits, support, said = (
        np.bincount(places, minlength=num_classes)
        for places in (predicted[predicted == labels], labels, predicted)
    )
    top = {}
    for k in [k for k in _TOP if k == 1 or k < num_classes]:
        near = int((rank < k).sum())
        top[str(k)] = {"accuracy": near / count, "ci95": list(wilson_interval(near, count))}
    return {
        "n": count,
        **top["1"],
        "balanced_accuracy": float((hits[support > 0] / support[support > 0]).mean()),
        "top_k": top,
        "log_loss": float(loss.mean()),
        "log_loss_ci95": normal_interval(loss),
        "expected_calibration_error": expected_calibration_error(
            probabilities.max(axis=1), rank == 0
        ),
    }, _per_class(hits, support, said)


def normal_interval(values: np.ndarray) -> list[float]:
    """Returns [low, high], mean of values >= 0 minus and plus 1.96 standard errors, cut at 0."""
    if len(values) < 2:
        return [math.nan, math.nan]
    mean, half = float(values.mean()), float(1.96 * values.std(ddof=1) / len(values) ** 0.5)
    return [max(mean - half, 0.0), mean + half]


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the (low, high) 95 % interval of a share (Wilson 1927), which is within [0, 1] and
    valid for small counts.

    Args:
        correct: Number of successes.
        total: Number of trials, > 0.
    """
    z = 1.959963984540054  # quantile 0.975 of the normal distribution
    share = correct / total
    scale = 1 + z * z / total
    center = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # rounding must not exclude the share itself, at 0 and 1
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


# Quantiles 0.975 of Student's t for 2, 3, ... degrees of freedom, before the normal distribution's
_STUDENT = (
    4.3027,
    3.1824,
    2.7764,
    2.5706,
    2.4469,
    2.3646,
    2.3060,
    2.2622,
    2.2281,
    2.2010,
    2.1788,
    2.1604,
    2.1448,
    2.1314,
    2.1199,
    2.1098,
    2.1009,
    2.0930,
    2.0860,
    2.0796,
    2.0739,
    2.0687,
    2.0639,
    2.0595,
    2.0555,
    2.0518,
    2.0484,
    2.0452,
    2.0423,
)


def student_interval(
    values: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> list[float] | None:
    """Returns [low, high], the 95 % interval of the mean of independent values (Student 1908), or
    None for fewer than three: that of two is twelve times as wide as their standard error.

    Args:
        values: Numbers.
        low, high: Bounds of possible means, to which the interval is cut: it covers the mean just
            as often.
    """
    if len(values) < 3:
        return None
    quantile = _STUDENT[len(values) - 3] if len(values) - 3 < len(_STUDENT) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return [max(low, mean - half), min(high, mean + half)]
