"""The test metrics of a run with their interval, and the lines printed at its end."""

import math
import os
import sys
from typing import Any

from tl_research import metrics
from tl_research.files import Json
from tl_research.reporting.terminal import duration
from tl_research.run.directory import command, quoted
from tl_research.run.offline import Substitution

_MANY_SECONDS = 600.0
_SHOWN = 0.05  # share of the time from which a kind of work is named
# {kind in `seconds` of `results.json`: how it is called}, in their order
_PARTS = {
    "start": "startup",
    "data": "loading",
    "features": "features",
    "compile": "compiling",
    "train": "training",
    "evaluate": "evaluation",
    "export": "export",
    "figures": "report",
}


def with_interval(found: Json) -> Json:
    """Adds the interval of the accuracy, if there is one, and the number of reads to metrics over
    `n` test images.
    """
    accuracy, interval = found.get("accuracy"), None
    if accuracy is not None:
        interval = list(metrics.wilson_interval(round(accuracy * found["n"]), found["n"]))
    return {"accuracy": accuracy, **found, "ci95": interval, "reads": 1}


def ending(summary: Json, path: str, earlier: float | None = None) -> list[str]:
    """Returns the lines that report a run's results and suggest what to do next.

    Args:
        summary: Contents of its `results.json`.
        path: Its directory.
        earlier: Seconds that its `seconds` have of processes before it was resumed; None: unknown,
            so that only the time of the last process is given.
    """
    seconds, path = summary["seconds"], os.path.abspath(path)
    notes = (Substitution.from_json(value).text for value in summary["substitutions"])
    lines = [*(f"note: {text}" for text in notes), test_line(summary["test"])]
    if best := selected(summary) or summary["head_start"]:
        numbers = {name[4:]: value for name, value in best.items() if name.startswith("val_")}
        lines.append(f"validation: {_listed(numbers)} (epoch {best.get('best_epoch', 0)})")
    total = f"time: {duration(seconds['total'])}"
    lines.append(total if earlier is None else _times(seconds, earlier))
    if os.path.isfile(report := f"{path}/report/index.html"):
        lines.append(f"report: {report}")
    use = commands(path)
    lines += ["to predict:", f"  {use['predict']}"]
    return [*lines, "to view the curves in TensorBoard:", f"  {use['tensorboard']}"]


def _times(seconds, earlier):
    """Returns the line on `seconds` of `results.json` whose parts add up to the total."""
    total = seconds["total"] + earlier
    parts = {word: seconds.get(kind, 0.0) for kind, word in _PARTS.items()}
    shown = {word: of for word, of in parts.items() if of >= _SHOWN * total}
    shown["other"] = total - sum(shown.values())
    # all in seconds, so that they can be added, unless there are too many
    text = duration if total >= _MANY_SECONDS else lambda of: f"{of:.{int(of < 9.95)}f} s"
    listed = ", ".join(f"{word} {text(of)}" for word, of in shown.items())
    before = f", of which {text(earlier)} before it was resumed" if earlier else ""
    return f"time: {text(total)} ({listed}){before}"


def commands(path: str) -> dict[str, str]:
    """Returns {program: the text of its command} for a finished run at a path."""
    programs = {"predict": " PHOTO.jpg", "evaluate": " --data_dir=FOLDER", "export": ""}
    python = quoted(sys.executable or "python")
    return {
        **{name: command(name, f"--run={path}") + more for name, more in programs.items()},
        "tensorboard": f"{python} -m tensorboard.main --logdir={quoted(path)}",
    }


def test_line(test: Json) -> str:
    """Returns the test metrics, as returned by `with_interval`, in one line."""
    if not test["ci95"]:
        return f"test: {_listed(test)} ({test['n']} images)"
    low, high = (100 * share for share in test["ci95"])
    return (
        f"test accuracy {100 * test['accuracy']:.1f} % "
        f"({round(test['accuracy'] * test['n'])} of {test['n']} images), 95 % interval "
        f"{low:.1f} to {high:.1f} %"
    )


def selected(contents: Json) -> Json:
    """Returns the entry of `results.json` for the phase with the selected weights; {} if no phase
    was trained.
    """
    return next(
        (phase for phase in contents["phases"] if phase["name"] == contents["selected_phase"]), {}
    )


def _listed(numbers):
    return ", ".join(f"{name} {of:.4f}" for name, of in numbers.items() if isinstance(of, float))


def without_nan(value: Any) -> Any:
    """Returns a JSON value in which numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
