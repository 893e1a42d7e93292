"""Numbers of a run: metrics from logits, intervals, columns of `metrics.csv`."""

import math
import statistics

import numpy as np

METRICS_COLUMNS = (
    "phase",
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "images_per_second",
    "seconds",
    "learning_rate",
)


def loss_and_accuracy(logits, labels):
    """Returns (mean cross-entropy in nats, share of correct argmax) over all examples, as floats.

    Args:
        logits: float [N, K].
        labels: int [N].
    """
    logits = np.asarray(logits)
    return float(losses(logits, labels).mean()), float((logits.argmax(axis=1) == labels).mean())


def losses(logits, labels):
    """Returns float64 [N], the cross-entropy in nats of each example.

    Arguments as of `loss_and_accuracy`.
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def wilson_interval(correct, total):
    """Returns the (low, high) 95 % interval of a share (Wilson 1927): never outside [0, 1], right
    for small counts too.

    Args:
        correct: Number of successes.
        total: Number of trials, > 0.
    """
    z = 1.959963984540054  # quantile 0.975 of the normal distribution
    share = correct / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = (
        z
        / (1 + z * z / total)
        * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    )
    # Rounding must not put the share itself outside, at 0 and 1.
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


# Quantiles 0.975 of Student's t for 1, 2, ... degrees of freedom; that of the normal distribution
# beyond.
_STUDENT = (
    12.7062,
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


def student_interval(values):
    """Returns [low, high], the 95 % interval of the mean of independent values, or None of fewer
    than two (Student 1908).
    """
    if len(values) < 2:
        return None
    quantile = _STUDENT[len(values) - 2] if len(values) - 2 < len(_STUDENT) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def without_nan(value):
    """Returns a JSON value with null in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
