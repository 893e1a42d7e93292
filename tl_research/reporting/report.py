"""The report of a run or an evaluation, a self-contained HTML page, and the model card beside the
exported model.

Both are made from the same facts by the templates in `templates/`. Everything is escaped, since
names of classes and files may contain anything.
"""

import base64
import csv
import io
import itertools
import json
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import PIL.Image
from markupsafe import Markup

from tl_research import data_audit, metrics
from tl_research.config import Config
from tl_research.data.split import SIDES, printable
from tl_research.files import Json, escaped
from tl_research.reporting import pages, results, split_text
from tl_research.reporting.evaluation import Evaluation
from tl_research.run.directory import images_of
from tl_research.run.offline import DATASET
from tl_research.run.recorded import read_record
from tl_research.settings import flag_text

if TYPE_CHECKING:  # it imports this module
    from tl_research.experiment import Ready
    from tl_research.trained import TrainedRun

_CONFUSIONS, _DOUBTFUL, _PIXELS = 10, 12, 224  # numbers of shown ones; side of a thumbnail
# The most influential settings, shown when runs are compared.
_COMPARED = ("image_size", "epochs", "unfreeze", "learning_rate", "batch_size", "seed")


def _percent(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _markdown(text: Any) -> Markup:
    """Returns a text for Markdown, with special characters as character references."""
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


def render(name: str, facts: Json) -> str:
    """Returns the text of a template: `index.html` or `model_card.md` with the facts of `of_run`,
    or `evaluated.html`.
    """
    return escaped(template(name).render(facts))


def calibration_text(found: Json) -> str:
    """Returns `calibration` of `results.json` as a sentence."""
    sentences: Any = template("sentences.txt").module
    return str(sentences.calibration(found))


def write(ready: "Ready", summary: Json) -> None:
    """Writes `report/index.html` and `export/README.md` of a finished run, after its figures.

    Args:
        ready: The run.
        summary: The contents of `results.json`, without its `seconds`.

    Raises:
        StorageError: If they cannot be written.
    """
    facts = of_run(ready, summary)
    directory = ready.place.directory
    directory.write_text("report/index.html", render("index.html", facts))
    directory.write_text("export/README.md", render("model_card.md", facts))


def used_settings(ready: "Ready") -> Json:
    """Returns {name: number or text} of the settings in effect by which runs are compared; the text
    `changed` lists all others that are not defaults.
    """
    config = ready.plan.config
    values = {name: getattr(config, name) for name in _COMPARED}
    shown = {
        "dataset": _data_name(ready),
        "backbone": ready.plan.classifier.spec.name,
        "weights": os.path.basename(config.weights),
        **{name: flag_text(of) if isinstance(of, tuple) else of for name, of in values.items()},
    }
    others = [
        f"{name}={value}"
        for name, value, _ in changed_settings(config)
        if name not in shown and not Config.__dataclass_fields__[name].metadata["may_change"]
    ]
    return {**shown, "changed": " ".join(others) or "nothing else"}


def _data_name(ready):
    """Returns the name of the images in effect."""
    config, parts = ready.plan.config, ready.place.parts
    if parts.load_catalog:
        return os.path.basename(parts.file or "Python")
    if any(substitution.what == "dataset" for substitution in ready.substitutions):
        return DATASET
    return images_of(config)


def changed_settings(config: Config) -> list[tuple[str, str, str]]:
    """Returns (name, value, default) of each recorded setting that is not the default."""
    defaults = vars(Config())
    return [
        (name, flag_text(value), "none" if default in (None, ()) else flag_text(default))
        for name, value in vars(config).items()
        if value != (default := defaults[name])
        and Config.__dataclass_fields__[name].metadata["recorded"]
    ]


def of_run(ready: "Ready", summary: Json) -> Json:
    """Returns the facts about a finished run; the arguments are those of `write`."""
    plan, data, past = ready.plan, ready.data, ready.state.past
    directory, classes, answer = ready.place.directory, data.classes, plan.objective.answer
    # a run that older code began has no "package"
    record = {"package": {"version": "older"}} | read_record(directory.file("run.json"))
    figures = directory.file("report")
    temperature = past.calibration["temperature"] if past.calibration else 1.0
    audited, evaluated = summary["data_audit"], None
    if past.selected:
        logits = ready.state.weights.logits["selected"]
        evaluated = evaluation(
            Evaluation(answer, logits, data.validation, classes, temperature=temperature)
        )
    return {
        "title": os.path.basename(os.path.realpath(directory.path)),
        "answer": answer.name,
        "used": used_settings(ready),
        "classes": classes,
        "image_size": plan.config.image_size,
        "columns": SIDES,
        "table": _table(data),
        "notes": [*data.notes, *(substitution.text for substitution in ready.substitutions)],
        "settings": changed_settings(ready.place.config),
        "summary": summary,
        "curves": _picture(figures, "curves.png"),
        "evaluated": evaluated,
        "doubtful": audited and _doubtful(directory, data),
        "caveat": audited
        and data_audit.caveat(
            audited["suspects"], len(data.train) + len(data.validation), len(classes)
        ),
        "matrix": _picture(figures, "confusion.png"),
        "reliability": _picture(figures, "calibration.png"),
        "versions": {"tl_research": record["package"]["version"], **record["versions"]},
        "machine": record["machine"]["system"],
        "commands": results.commands(os.path.abspath(directory.path)).values(),
        "temperature": temperature,
    }


def _table(data):
    """Returns [(name, counts by side)] of each class, if labels are classes, and of all images."""
    labels, rows = data.train.labels, []
    if labels.ndim == 2 or labels.dtype == np.int32:
        counts = split_text.counts_of(data).tolist()
        rows = [(name, *row) for name, row in zip(data.classes, counts)]
    return [*rows, ("all", *(len(getattr(data, side)) for side in SIDES))]


def evaluation(shown: Evaluation) -> Json:
    """Returns the facts about the answers to some images, for a page."""
    answer, confusion, labels = shown.answer, shown.confusion, shown.examples.labels
    worst = shown.wrong[: pages.SHOWN]
    report = answer.report(shown.logits, labels, shown.classes, shown.temperature)
    return {
        "side": shown.side,
        "report": results.without_nan(report),
        "classes": shown.classes,
        "confusion": confusion,
        "confusions": [] if confusion is None else metrics.most_confused(confusion, _CONFUSIONS),
        "wrong": len(shown.wrong),
        "mistakes": [
            {**row, "image": image}
            for row, image in zip(shown.rows(worst), _thumbnails(shown.examples, worst))
        ],
    }


def of_evaluation(run: "TrainedRun", found: Json, place: str) -> str:
    """Returns the page of an evaluation.

    Args:
        run: The finished run.
        found: The facts from `evaluation`.
        place: The folder with its figures.
    """
    facts = {"title": os.path.basename(os.path.realpath(run.path)), "run": run.path}
    return render(
        "evaluated.html", {**facts, "found": found, "matrix": _picture(place, "confusion.png")}
    )


def _thumbnails(examples, places):
    """Yields the images at these places as data URLs."""
    for pixels in examples.images(places).numpy() if len(places) else ():
        image, content = PIL.Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((_PIXELS, _PIXELS))
        image.save(content, "JPEG", quality=85)
        yield _data("jpeg", content.getvalue())


def _data(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(place, name):
    """Returns a figure in a folder as a data URL, or None if there is none."""
    path = pathlib.Path(place, name)
    return _data("png", path.read_bytes()) if path.exists() else None


def _doubtful(directory, data):
    """Returns the rows of `data_audit.csv` with the most doubtful labels and their images; None if
    there is no such file.
    """
    path = directory.file(data_audit.FILE)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file), _DOUBTFUL))
    for side in SIDES:
        examples = getattr(data, side)
        here = [row for row in rows if row["side"] == side]
        places = {escaped(name): place for place, name in enumerate(examples.names)}
        for row, image in zip(here, _thumbnails(examples, [places[row["path"]] for row in here])):
            row["image"] = image
    return rows
