"""The report of a run or of an evaluation, one HTML page that needs nothing else, and the model
card beside the exported model.

Both say the same facts; the templates are in `templates/`. Names of classes and files may be
anything: everything is escaped.
"""

import base64
import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import PIL.Image
from markupsafe import Markup

from tl_research import metrics
from tl_research.answers import Answer
from tl_research.config import Config
from tl_research.data.pipeline import Examples
from tl_research.data.split import SIDES, printable
from tl_research.files import escaped
from tl_research.reporting import pages, results, split_text
from tl_research.run.directory import images_of, quoted
from tl_research.run.offline import DATASET
from tl_research.settings import flag_text

if TYPE_CHECKING:  # it imports this module
    from tl_research.experiment import Ready
    from tl_research.trained import TrainedRun

_CONFUSIONS, _DOUBTFUL, _PIXELS = 10, 12, 224  # how many are shown; the side of a thumbnail
# Settings that decide most of a run's numbers, for a table of runs.
_COMPARED = ("image_size", "epochs", "unfreeze", "learning_rate", "batch_size", "seed")


def _percent(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _markdown(text: Any) -> Markup:
    """Returns a text for Markdown, where each mark that means something there stands by number."""
    return Markup(re.sub(r"[^\w\s.,:;/%–-]|_", lambda mark: f"&#{ord(mark[0])};", str(text)))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tl_research.reporting"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "percent": _percent,
    "markdown": _markdown,
    "name": lambda text: printable(text) or "nothing",
    "quoted": lambda value: Markup(json.dumps(value)),
}


template = _TEMPLATES.get_template


def render(name: str, facts: dict[str, Any]) -> str:
    """Returns the text of `index.html` or `model_card.md` from what `of_run` returned, or of
    `evaluated.html`.
    """
    return escaped(template(name).render(facts))


def write(ready: "Ready", summary: dict[str, Any]) -> None:
    """Writes `report/index.html` and `export/README.md` of a finished run, whose figures are there.

    Args:
        ready: `experiment.Ready`.
        summary: What `results.json` will hold.

    Raises:
        StorageError: If they cannot be written.
    """
    facts = of_run(ready, results.without_nan(summary))
    directory = ready.place.directory
    directory.write_text(os.path.join("report", "index.html"), render("index.html", facts))
    directory.write_text(os.path.join("export", "README.md"), render("model_card.md", facts))


def used_settings(ready: "Ready") -> dict[str, Any]:
    """Returns {name: number or text}: what a run is compared with others by, as it was used, and in
    one text the other settings that are no default.
    """
    config = ready.plan.config
    shown = {
        "dataset": _data_name(ready),
        "backbone": ready.plan.classifier.spec.name,
        "weights": os.path.basename(config.weights),
    }
    for name in _COMPARED:
        value = getattr(config, name)
        shown[name] = flag_text(value) if isinstance(value, tuple) else value
    others = [
        f"{name}={value}"
        for name, value, _ in changed_settings(config)
        if name not in shown and not Config.__dataclass_fields__[name].metadata["may_change"]
    ]
    return {**shown, "changed": " ".join(others) or "nothing else"}


def _data_name(ready):
    """Returns what the images are called that were really used."""
    config, parts = ready.plan.config, ready.place.parts
    if parts.load_catalog:
        return os.path.basename(parts.file or "Python")
    if any(substitution.what == "dataset" for substitution in ready.substitutions):
        return DATASET
    return images_of(config)


def changed_settings(config: Config) -> list[tuple[str, str, str]]:
    """Returns (name, value, default) of each setting that a replay needs and that is no default."""
    defaults = Config()
    rows = [
        (field.name, getattr(config, field.name), getattr(defaults, field.name))
        for field in dataclasses.fields(config)
        if field.metadata["recorded"]
    ]
    return [
        (name, flag_text(value), "none" if default in (None, ()) else flag_text(default))
        for name, value, default in rows
        if value != default
    ]


def of_run(ready: "Ready", summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts of a finished run; the arguments are those of `write`."""
    plan, data, past = ready.plan, ready.data, ready.state.past
    directory, classes, config = ready.place.directory, ready.data.classes, ready.plan.config
    record = directory.read_json("run.json") or {}
    record = {"package": {}, "versions": {}, "machine": {}} | record  # older code wrote less
    figures = directory.file("report")
    temperature = past.calibration["temperature"] if past.calibration else 1.0
    evaluated = None
    if past.selected:
        logits, answer = ready.state.weights.logits["selected"], plan.objective.answer
        evaluated = evaluation(answer, logits, data.validation, classes, temperature, "validation")
    return {
        "title": os.path.basename(os.path.realpath(directory.path)),
        "answer": plan.objective.answer.name,
        "used": used_settings(ready),
        "classes": classes,
        "image_size": config.image_size,
        "columns": SIDES,
        "table": _table(data),
        "notes": [*data.notes, *(substitution.text for substitution in ready.substitutions)],
        "settings": changed_settings(ready.place.config),
        "summary": summary,
        "curves": _picture(figures, "curves.png"),
        "evaluated": evaluated,
        "doubtful": summary["data_audit"] and _doubtful(directory, data),
        "matrix": _picture(figures, "confusion.png"),
        "reliability": _picture(figures, "calibration.png"),
        "versions": {
            "tl_research": record["package"].get("version", "older"),
            **record["versions"],
        },
        "machine": record["machine"].get("system", ""),
        "run": quoted(os.path.abspath(directory.path)),
        "temperature": temperature,
    }


def _table(data):
    """Returns [(name, count on each side)]: of each class, if there are some, and of all."""
    rows, labels = [("all", *(len(getattr(data, side)) for side in SIDES))], data.train.labels
    if labels.ndim == 2 or labels.dtype == np.int32:
        counts = split_text.counts_of(data).tolist()
        rows = [*((name, *row) for name, row in zip(data.classes, counts)), *rows]
    return rows


def evaluation(
    answer: Answer,
    logits: np.ndarray,
    examples: Examples,
    classes: Sequence[str],
    temperature: float,
    side: str,
) -> dict[str, Any]:
    """Returns what a network says of some images, for a page.

    Args:
        answer: The kind of `answers.ANSWERS`.
        logits: float [N, K].
        examples: The `Examples` they belong to.
        classes: K names.
        temperature: What logits are divided by.
        side: What the images are called.
    """
    labels, calibrated = examples.labels, metrics.scaled(logits, temperature)
    report = results.without_nan(answer.report(logits, labels, classes, temperature))
    wrong = answer.mistakes(calibrated, labels)
    worst = wrong[: pages.SHOWN]
    rows = answer.rows(calibrated[worst], labels[worst], classes)
    confusion = answer.confusion(logits, labels)
    confused = [] if confusion is None else metrics.most_confused(confusion, _CONFUSIONS)
    return {
        "side": side,
        "report": report,
        "classes": classes,
        "confusion": confusion,
        "confusions": confused,
        "wrong": len(wrong),
        "mistakes": [
            {**row, "path": examples.names[place], "image": image}
            for row, place, image in zip(rows, worst, _thumbnails(examples, worst))
        ],
    }


def of_evaluation(run: "TrainedRun", found: dict[str, Any], place: str) -> str:
    """Returns the page of what `evaluation` returned of a `trained.TrainedRun`, whose figures are
    in the folder `place`.
    """
    title = os.path.basename(os.path.realpath(run.path))
    matrix = _picture(place, "confusion.png")
    return render(
        "evaluated.html", {"title": title, "found": found, "matrix": matrix, "run": run.path}
    )


def _thumbnails(examples, places):
    """Returns a list of images as data that a page holds."""
    return [_thumbnail(image) for image in examples.images(places).numpy()] if len(places) else []


def _thumbnail(pixels):
    image, content = PIL.Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_PIXELS, _PIXELS))
    image.save(content, "JPEG", quality=85)
    return _data("jpeg", content.getvalue())


def _data(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(place, name):
    """Returns a figure in a folder as data that a page holds, or None if there is none."""
    path = os.path.join(place, name)
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return _data("png", file.read())


def _doubtful(directory, data):
    """Returns the rows of `data_audit.csv` whose labels are most in doubt, with their images;
    None if there is none.
    """
    path = directory.file("report", "data_audit.csv")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(_DOUBTFUL))]
    for side in SIDES:
        examples = getattr(data, side)
        here = [row for row in rows if row["side"] == side]
        places = {escaped(name): place for place, name in enumerate(examples.names)}
        images = _thumbnails(examples, [places[row["path"]] for row in here])
        for row, image in zip(here, images):
            row["image"] = image
    return rows
