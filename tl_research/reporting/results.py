"""Numbers of a run: the test metrics, intervals; and what is said at its end."""

import math
import os
import sys
from typing import Any

from tl_research import metrics
from tl_research.reporting.terminal import duration
from tl_research.run.directory import command, quoted
from tl_research.run.offline import Substitution


def with_interval(found: dict[str, Any]) -> dict[str, Any]:
    """Returns metrics over `n` test images with the interval of their accuracy, if they have one,
    and how often these images were read.
    """
    accuracy, interval = found.get("accuracy"), None
    if accuracy is not None:
        interval = list(metrics.wilson_interval(round(accuracy * found["n"]), found["n"]))
    return {"accuracy": accuracy, **found, "ci95": interval, "reads": 1}


def ending(summary: dict[str, Any], path: str) -> list[str]:
    """Returns the lines that tell a person what a run reached, and what to do with it.

    Args:
        summary: Contents of its `results.json`.
        path: Its directory.
    """
    test, best, seconds = summary["test"], selected(summary), summary["seconds"]
    notes = (Substitution.from_json(value).text for value in summary["substitutions"])
    lines = [f"note: {text}" for text in notes]
    if test["ci95"]:
        low, high = (100 * share for share in test["ci95"])
        lines.append(
            f"test accuracy {100 * test['accuracy']:.1f} % "
            f"({round(test['accuracy'] * test['n'])} of {test['n']} images), 95 % interval "
            f"{low:.1f} to {high:.1f} %"
        )
    else:
        lines.append(f"test: {_listed(test)} ({test['n']} images)")
    if best := best or summary.get("head_start") or {}:  # older runs have none
        numbers = {name: value for name, value in best.items() if name.startswith("val_")}
        lines.append(f"validation: {_listed(numbers)}, epoch {best.get('best_epoch', 0)}")
    parts = (("images", "data"), ("features", "features"), ("training", "train"))
    kinds = ", ".join(f"{word} {duration(seconds[kind])}" for word, kind in parts)
    lines.append(f"time: {duration(seconds['total'])} ({kinds})")
    path = os.path.abspath(path)
    if os.path.isfile(report := os.path.join(path, "report", "index.html")):
        lines.append(f"report: {report}")
    return [
        *lines,
        "to predict:",
        f"  {command('predict', f'--run={path}')} PHOTO.jpg",
        "to see curves in TensorBoard:",
        f"  {quoted(sys.executable or 'python')} -m tensorboard.main --logdir={quoted(path)}",
    ]


def selected(contents: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry of `results.json` of the phase whose weights the run ended with; {} if none
    was trained.
    """
    return next(
        (phase for phase in contents["phases"] if phase["name"] == contents["selected_phase"]), {}
    )


def _listed(numbers):
    return ", ".join(f"{name} {of:.4f}" for name, of in numbers.items() if isinstance(of, float))


def test_line(test: dict[str, Any]) -> str:
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


def without_nan(value: Any) -> Any:
    """Returns a JSON value with null in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
