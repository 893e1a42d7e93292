"""What a classifier's logits are worth on images it was not trained on. NumPy only."""

import numpy as np

from tl_research.reporting import results

_TOP = (1, 2, 3, 5)
_BINS = 15


def softmax(logits):
    """Returns float64 probabilities [N, K] of logits [N, K]."""
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def confusion_matrix(labels, predicted, num_classes):
    """Returns int64 [K, K]: how many examples of the row's class were taken for the column's."""
    return np.bincount(
        np.asarray(labels) * num_classes + predicted, minlength=num_classes**2
    ).reshape(num_classes, num_classes)


def per_class(confusion):
    """Returns a dict for each class: support, predicted, precision, recall, recall_ci95 and f1.

    NaN where it is 0 / 0.
    """
    rows = []
    for index, (support, predicted) in enumerate(
        zip(confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist())
    ):
        hits = int(confusion[index, index])
        interval = results.wilson_interval(hits, support) if support else (np.nan, np.nan)
        rows.append(
            {
                "support": support,
                "predicted": predicted,
                "precision": _share(hits, predicted),
                "recall": _share(hits, support),
                "recall_ci95": list(interval),
                "f1": _share(2 * hits, support + predicted),
            }
        )
    return rows


def _share(part, whole):
    return part / whole if whole else float("nan")


def balanced_accuracy(confusion):
    """Returns the mean recall of the classes that have examples."""
    support = confusion.sum(axis=1)
    return float((np.diag(confusion)[support > 0] / support[support > 0]).mean())


def ranks(logits, labels):
    """Returns int64 [N]: how many classes stand before the true one.

    Of equal logits the first class, as in argmax.
    """
    logits = np.asarray(logits)
    true = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < np.asarray(labels)[:, None]
    return ((logits > true) | ((logits == true) & before)).sum(axis=1)


def expected_calibration_error(confidence, correct, bins=_BINS):
    """Returns the mean distance between confidence and accuracy, in bins of equal width (Guo et al.
    2017, arXiv:1706.04599).

    Args:
        confidence: float [N], the probability of the predicted class.
        correct: bool [N], whether it is the true one.
        bins: Number of bins of (0, 1].
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # of the bins' sums
    gaps = np.bincount(place, weights=correct.astype(float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def report(logits, labels):
    """Returns (the metrics as a JSON value, confusion matrix [K, K]).

    Accuracies have Wilson intervals; the mean loss has a normal one, 1.96 standard errors to either
    side.

    Args:
        logits: float [N, K].
        labels: int [N].
    """
    count, num_classes = np.shape(logits)
    probabilities, loss, rank = (
        softmax(logits),
        results.losses(logits, labels),
        ranks(logits, labels),
    )
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, num_classes)
    top = {}
    for k in [k for k in _TOP if k == 1 or k < num_classes]:
        hits = int((rank < k).sum())
        top[str(k)] = {"accuracy": hits / count, "ci95": list(results.wilson_interval(hits, count))}
    half = 1.96 * float(loss.std(ddof=1)) / count**0.5 if count > 1 else float("nan")
    return {
        "n": count,
        **top["1"],
        "balanced_accuracy": balanced_accuracy(confusion),
        "top_k": top,
        "log_loss": float(loss.mean()),
        "log_loss_ci95": [float(loss.mean()) - half, float(loss.mean()) + half],
        "expected_calibration_error": expected_calibration_error(
            probabilities.max(axis=1), rank == 0
        ),
    }, confusion
