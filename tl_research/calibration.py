"""Temperature scaling of the probabilities of a classifier. NumPy only.

Guo et al. 2017, arXiv:1706.04599, section 4.2: logits are divided by the T that minimizes the
negative log likelihood of the validation labels. Answers, and so accuracy, do not change. Sets of
classes have one T for all sigmoids; numbers have none.
"""

import math

import numpy as np

from tl_research import metrics
from tl_research.answers import Answer
from tl_research.files import Json

BOUNDS = (0.05, 20.0)
_HALVINGS = 40  # of log T between the bounds, to 5e-12


def fit(answer: Answer, logits: np.ndarray, labels: np.ndarray) -> tuple[float, str | None]:
    """Returns (T, None), or (1, reason why none was fitted).

    The likelihood is concave in 1 / T, so its slope in 1 / T has at most one root. It has none
    between the bounds if every answer is correct, or if the logits are no better than chance.

    Args:
        answer: A kind of answer with probabilities.
        logits: float [N, K].
        labels: int [N] or float [N, K], depending on the kind.
    """
    logits = np.asarray(logits, np.float64)
    targets = np.eye(logits.shape[1])[labels] if labels.ndim == 1 else labels

    def _slope(log_temperature):
        outputs = answer.outputs(metrics.scaled(logits, math.exp(log_temperature)))
        return float((logits * (outputs - targets)).sum())

    low, high = map(math.log, BOUNDS)
    if not _slope(high) < 0.0 < _slope(low):  # also if a logit is not finite
        return 1.0, (
            f"none from {BOUNDS[0]:g} to {BOUNDS[1]:g} minimizes the log loss of the {len(labels)} "
            "validation images, for example because all answers are correct"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(middle) > 0.0 else (low, middle)
    return math.exp((low + high) / 2), None


def of_run(
    answer: Answer,
    validation: tuple[np.ndarray | None, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> tuple[Json | None, Json | None]:
    """Fits the temperature of a run and measures its effect.

    Args:
        answer: The kind of answer.
        validation: (logits [N, K] of the selected weights, or None if no epoch was trained;
            labels), which the temperature is fitted to.
        test: (logits [M, K], labels), on which it is measured.

    Returns:
        (`calibration` of `results.json`, data for `figures.save_reliability`), both None for
        answers without probabilities.
    """
    if not answer.has_probabilities:
        return None, None
    logits, labels = validation
    temperature, reason = (
        (1.0, "no epoch was trained") if logits is None else fit(answer, logits, labels)
    )
    said: Json = {"temperature": temperature, "reason": reason}
    drawn: Json = {"n": len(test[1])}
    for when, divisor in (("before", 1.0), ("after", temperature)):
        logits = metrics.scaled(test[0], divisor)
        certainty = answer.certainty(logits, test[1])
        said[f"ece_{when}"] = metrics.expected_calibration_error(*certainty)
        said[f"log_loss_{when}"] = float(answer.losses(logits, test[1]).mean())
        drawn[when] = metrics.reliability(*certainty).tolist()
    return said, drawn
