"""One temperature for all probabilities of a classifier. NumPy only.

Guo et al. 2017, arXiv:1706.04599, section 4.2: logits are divided by the T that gives the labels of
the validation images the smallest negative log likelihood. Answers, and so accuracy, never change.
Sets of classes have one T too, of their sigmoids; numbers have none.
"""

import math
from typing import Any

import numpy as np

from tl_research import metrics
from tl_research.answers import Answer

BOUNDS = (0.05, 20.0)
_HALVINGS = 40  # of log T between the bounds, to 5e-12


def fit(answer: Answer, logits: np.ndarray, labels: np.ndarray) -> tuple[float, str | None]:
    """Returns (T, None), or (1, why none was fitted).

    The likelihood is concave in 1 / T, so its slope in 1 / T has one root at most. It has none
    between the bounds where every answer is right, or where logits tell no more than chance does.

    Args:
        answer: A kind of `answers.ANSWERS` that has probabilities.
        logits: float [N, K].
        labels: int [N] or float [N, K], by the kind.
    """
    logits = np.asarray(logits, np.float64)
    targets = np.eye(logits.shape[1])[labels] if labels.ndim == 1 else labels

    def slope(log_temperature: float) -> float:
        outputs = answer.outputs(metrics.scaled(logits, math.exp(log_temperature)))
        return float((logits * (outputs - targets)).sum())

    low, high = map(math.log, BOUNDS)
    if not slope(high) < 0.0 < slope(low):  # nor where a logit is not finite
        return 1.0, (
            f"none from {BOUNDS[0]:g} to {BOUNDS[1]:g} is best for the {len(labels)} validation "
            "images, as where all are right"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0.0 else (low, middle)
    return math.exp((low + high) / 2), None


def of_run(
    answer: Answer,
    validation: tuple[np.ndarray | None, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Returns what a run says of its temperature.

    Args:
        answer: A kind of `answers.ANSWERS`.
        validation: (logits [N, K] of the selected weights, or None if no epoch was trained;
            labels). The temperature is fitted on them.
        test: (logits [M, K], labels). It is measured on them.

    Returns:
        (`calibration` of `results.json`, what `figures.save_reliability` draws), each None of
        answers without probabilities.
    """
    if not answer.has_probabilities:
        return None, None
    logits, labels = validation
    temperature, reason = (
        (1.0, "no epoch was trained") if logits is None else fit(answer, logits, labels)
    )
    said: dict[str, Any] = {"temperature": temperature, "reason": reason}
    drawn: dict[str, Any] = {"n": len(test[1])}
    for when, divisor in (("before", 1.0), ("after", temperature)):
        logits = metrics.scaled(test[0], divisor)
        certainty = answer.certainty(logits, test[1])
        said[f"ece_{when}"] = metrics.expected_calibration_error(*certainty)
        said[f"log_loss_{when}"] = float(answer.losses(logits, test[1]).mean())
        drawn[when] = metrics.reliability(*certainty).tolist()
    return said, drawn
