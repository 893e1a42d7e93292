"""Numbers of a run: the test metrics, intervals."""

import math
from typing import Any

from tl_research import metrics


def with_interval(found):
    """Returns metrics over `n` test images with the interval of their accuracy, if they have one,
    and how often these images were read.
    """
    accuracy, interval = found.get("accuracy"), None
    if accuracy is not None:
        interval = list(metrics.wilson_interval(round(accuracy * found["n"]), found["n"]))
    return {"accuracy": accuracy, **found, "ci95": interval, "reads": 1}


def test_line(test):
    """Returns what is said of the test metrics, which `with_interval` returned."""
    text = "read once, after selection"
    others = {name: of for name, of in test.items() if type(of) is float and name != "accuracy"}
    numbers = ", ".join(f"{name} {of:.4f}" for name, of in others.items())
    if test["ci95"] is None:
        return f"test {numbers} of {test['n']} images; {text}"
    return (
        f"test accuracy {test['accuracy']:.4f} "
        f"({round(test['accuracy'] * test['n'])}/{test['n']}), 95% interval "
        f"{test['ci95'][0]:.3f}-{test['ci95'][1]:.3f}, {numbers}; {text}"
    )


def calibration_line(found: dict[str, Any]) -> str:
    """Returns what is said of `calibration` of `results.json`."""
    numbers = ", ".join(
        f"{name} {found[f'{key}_before']:.4f} before and {found[f'{key}_after']:.4f} after"
        for name, key in (("expected calibration error", "ece"), ("log loss", "log_loss"))
    )
    reason = f" ({found['reason']})" if found["reason"] else ", fitted on validation"
    return f"calibration: temperature {found['temperature']:.4g}{reason}; of the test: {numbers}"


def without_nan(value):
    """Returns a JSON value with null in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
