"""Evaluates finished runs on their validation, test or training images, or on any labeled folder.

    python -m tl_research.evaluate --run=DIR --side=validation
    python -m tl_research.evaluate --run=DIR --run=OTHER --data_dir=FOLDER

Writes to DIR/report/<side>/, or DIR/report/folder-<name>/ for a folder (or to --output_dir):
index.html and its figures, report.json (accuracy, balanced accuracy, top-k, log loss and
calibration with 95 % intervals; other metrics for sets of classes and for numbers), mistakes.csv
(largest loss first), predictions.csv and, for classes, per_class.csv and confusion.csv. Logits are
divided by the run's `temperature` before probabilities and log losses are computed. Each reading of
the test images is counted in `test.reads` of DIR/results.json. If stdout is not a terminal, its
last line is `RESULT ` and report.json, or a JSON object of the reports of several runs by path.
"""

import dataclasses
import itertools
import json
import os
from typing import Any

import numpy as np

from tl_research import cli
from tl_research.config import ReaderConfig
from tl_research.data.split import printable
from tl_research.errors import StorageError, UserError, to_stderr
from tl_research.files import Json, csv_text, make_folders, storage_errors
from tl_research.reporting.terminal import markdown_table, say_result
from tl_research.settings import setting, unrecorded_path

_TOGETHER = 256  # images whose rows are in memory at the same time
_PER_CLASS = (
    "class",
    "support",
    "predicted",
    "precision",
    "recall",
    "recall_low",
    "recall_high",
    "f1",
)
# Metrics by which runs are compared, if their kind of answer has them.
_COMPARED = ("accuracy", "macro_f1", "mean_absolute_error", "loss", "log_loss")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ReaderConfig):
    """Settings of `python -m tl_research.evaluate`."""

    run: tuple[str, ...] = unrecorded_path(  # type: ignore[assignment]  # a single one elsewhere
        (), "directory of a finished run; may be repeated to compare several runs", repeated=True
    )
    data_dir: str | None = unrecorded_path(
        None,
        "a directory with one folder per class: where the run's images are now, or other images of "
        "its classes, all of which are evaluated; None: the run's images",
    )
    side: str = setting(
        "validation",
        "which of the run's images; test images are meant to be read once, so each reading is "
        "counted",
        choices=("validation", "test", "train"),
    )


def evaluate(config: EvaluateConfig) -> Json:
    """Evaluates finished runs and writes the reports.

    Returns:
        The contents of `report.json`; for several runs {"runs": {path: contents}}.

    Raises:
        RunDirectoryError: If one is not a finished run, or is in use.
        DataError: If the images are not those of the run, or have other classes.
        StorageError: If the report cannot be written.
    """
    if config.output_dir and len(config.run) > 1:
        raise UserError(
            f"--output_dir={config.output_dir} with {len(config.run)} runs, which would write the "
            "same files; expected one run; leave it out"
        )
    reports = {path: _evaluate(config, path) for path in config.run}
    found: Json = {"runs": reports}
    if len(reports) == 1:
        (found,) = reports.values()
    else:
        print(_side_by_side(reports))
    say_result(found)
    return found


def _evaluate(config, path):
    """Evaluates one run; returns the contents of its `report.json`."""
    from tl_research import trained  # imports TensorFlow, which --help need not wait for
    from tl_research.reporting import report as page
    from tl_research.reporting.evaluation import Evaluation

    run = trained.TrainedRun(path)
    with run.opened(config.output_dir) as directory:
        examples, report = _images(config, run)
        classifier = run.load_classifier(config.extension)
        if report["side"] == "test":
            # counted before they are read, so that a reading that fails later counts too
            report["test_reads"] = _count_reading(run, None if config.output_dir else directory)
            print(
                f"the test images have now been read {report['test_reads']} times; if you choose "
                "between models by this result, it no longer measures the chosen one fairly"
            )
        batch_size = run.batch_size(config.batch_size)
        logits = trained.predict_logits(classifier, examples, batch_size)
        name = report.get("data_dir", report["side"])
        shown = Evaluation(run.answer, logits, examples, run.classes, name, run.temperature)
        found = page.evaluation(shown)
        report |= found["report"]
        place = f"report/{_place(report)}"
        _write(run, shown, found, report, directory, place)
    _print(run, found, report, directory.file(place))
    return report


def _images(config, run):
    """Returns (the `Examples` to evaluate, their entries in `report.json`)."""
    if not config.data_dir or run.is_of_run(config.data_dir):
        data = run.load_data(config.extension, (config.side,), config.data_dir)
        return getattr(data, config.side), {"side": config.side}
    examples, counts = run.load_folder(config.data_dir)
    folder = os.path.abspath(config.data_dir)
    if counts["train"]:
        to_stderr(
            f"warning: {counts['train']} of the {len(examples)} images in {folder} were used in "
            "training"
        )
    return examples, {"side": "folder", "data_dir": folder, "of_run": counts}


def _place(report):
    """Returns the name of the folder in `report/`."""
    folder = os.path.basename(report.get("data_dir", "").rstrip(os.sep))
    return f"folder-{folder}" if "data_dir" in report else report["side"]


def _write(run, shown, found, report, directory, place):
    """Writes all files of an evaluation to `directory/place`."""
    from tl_research.reporting import figures
    from tl_research.reporting import report as page

    folder = directory.file(place)
    with storage_errors(folder):
        make_folders(folder)
        named = dataclasses.replace(shown, side=os.path.basename(shown.side))
        figures.save_mistakes(folder, named)
    texts = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "index.html": page.of_evaluation(run, found, folder),
        **_tables(shown, report.get("per_class")),
    }
    for name, text in texts.items():
        directory.write_text(f"{place}/{name}", text)


def _side_by_side(reports):
    """Returns a table that compares several reports, {path: report}."""
    keys = [key for key in _COMPARED if any(report.get(key) for report in reports.values())]
    rows = [
        [
            printable(os.path.basename(os.path.abspath(path))),
            report["n"],
            *(f"{report[key]:.4f}" if report.get(key) is not None else "-" for key in keys),
            "{:.3f}-{:.3f}".format(*report["ci95"]) if report.get("ci95") else "-",
        ]
        for path, report in reports.items()
    ]
    return markdown_table(["run", "images", *keys, "95 % interval"], rows)


def _count_reading(run, directory):
    """Counts a reading of the test images in the run's results; returns the number of readings.

    Args:
        run: `TrainedRun`.
        directory: The open directory of the run; None opens it, and warns if it is read-only.
    """
    from tl_research.run.directory import RunDirectory

    if directory is None:
        try:
            with RunDirectory(run.config) as directory:
                return _count_reading(run, directory)
        except StorageError as error:
            to_stderr(f"warning: this reading could not be counted in the run: {error}")
            return run.results["test"]["reads"] + 1
    summary = directory.read_json("results.json")
    summary["test"]["reads"] += 1
    directory.write_json("results.json", summary)
    return summary["test"]["reads"]


def _tables(shown, per_class):
    """Returns {name of a CSV file: its text} for this kind of answer."""
    tables: dict[str, Any] = {}
    if per_class:
        rows = [
            {"class": name, **row, **dict(zip(("recall_low", "recall_high"), row["recall_ci95"]))}
            for name, row in per_class.items()
        ]
        tables["per_class.csv"] = csv_text(_PER_CLASS, rows)
    if shown.confusion is not None:
        columns = ("true", *(f"predicted {name}" for name in shown.classes))
        counts = zip(shown.classes, shown.confusion.tolist())
        rows = [dict(zip(columns, (name, *row))) for name, row in counts]
        tables["confusion.csv"] = csv_text(columns, rows)
    columns = ("path", *shown.answer.columns)
    wrong = itertools.chain.from_iterable(_rows(shown, shown.wrong))
    tables["mistakes.csv"] = csv_text(columns, wrong)
    parts = enumerate(_rows(shown, np.arange(len(shown.logits))))
    tables["predictions.csv"] = (csv_text(rows[0], rows, number == 0) for number, rows in parts)
    return tables


def _rows(shown, places):
    """Yields lists of rows of `predictions.csv`; all of them, with all classes, would take many
    times the memory of the logits.
    """
    for start in range(0, len(places), _TOGETHER):
        yield shown.rows(places[start : start + _TOGETHER])


def _print(run, found, report, directory):
    print(f"{printable(found['side'])}: {run.answer.summary(report)}")
    names = list(map(printable, run.classes))
    for count, true, other in found["confusions"][:5]:
        total = found["confusion"][true].sum()
        print(f"{count} of {total} {names[true]} mistaken for {names[other]}")
    print(f"written to {directory}/index.html")


def main() -> None:
    evaluate(cli.config_from_flags(EvaluateConfig))


if __name__ == "__main__":
    cli.define_flags(EvaluateConfig)
    cli.run(main)
