"""Evaluates finished runs on their validation, test or training images, or on any labelled folder.

    python -m tl_research.evaluate --run=DIR --side=validation
    python -m tl_research.evaluate --run=DIR --run=OTHER --data_dir=FOLDER

Writes to DIR/report/<side>/, of a folder to DIR/report/folder-<name>/ (with --output_dir there, not
into the run): index.html, its figures, report.json (accuracy, balanced accuracy, top-k, log loss,
calibration, with 95 % intervals; of sets of classes and of numbers what suits those), mistakes.csv
(largest loss first), predictions.csv and, of classes, per_class.csv and confusion.csv.
Probabilities and log losses are of logits divided by the run's `temperature`. Each reading of the
test images is counted in `test.reads` of DIR/results.json. Where stdout is no terminal, its last
line is `RESULT ` and report.json, or those of all runs by their paths.
"""

import dataclasses
import itertools
import json
import os
import sys
from typing import Any

import numpy as np

from tl_research import cli, metrics
from tl_research.config import ReaderConfig
from tl_research.data.split import printable
from tl_research.errors import StorageError, UserError
from tl_research.files import csv_text, make_folders, storage_errors
from tl_research.reporting.terminal import say_result
from tl_research.settings import setting

_TOGETHER = 256  # images whose rows are in memory at once
# Numbers by which runs are compared, of those that their kind of answer has.
_COMPARED = ("accuracy", "macro_f1", "mean_absolute_error", "loss", "log_loss")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ReaderConfig):
    """Settings of `python -m tl_research.evaluate`."""

    run: tuple[str, ...] = setting(  # type: ignore[assignment]  # of others it is one
        (),
        "the directory of a finished run; may be repeated, to see several side by side",
        path="as given",
        recorded=False,
        repeated=True,
    )
    data_dir: str | None = setting(
        None,
        "a folder of class folders: where the run's images are now, or any others of its classes, "
        "which are then all evaluated; None: the run's, where they were",
        path="as given",
        recorded=False,
    )
    side: str = setting(
        "validation",
        "which of the run's images; those of test are meant to be read once, so every reading is "
        "counted",
        choices=("validation", "test", "train"),
    )


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates the runs that an `EvaluateConfig` names, writes the reports and returns what stands
    in `report.json`; of several runs {"runs": {path: that}}.

    Raises:
        RunDirectoryError: If one is no finished run, or in use.
        DataError: If the images are not those of the run, or of classes that it does not know.
        StorageError: If the report cannot be written.
    """
    if config.output_dir and len(config.run) > 1:
        raise UserError(
            f"--output_dir={config.output_dir} with {len(config.run)} runs, which would write the "
            "same files; expected one run; leave it out"
        )
    reports = {path: _evaluate(config, path) for path in config.run}
    (found,) = reports.values() if len(reports) == 1 else ({"runs": reports},)
    if len(reports) > 1:
        print("\n".join(_side_by_side(reports)))
    say_result(found)
    return found


def _evaluate(config, path):
    """Evaluates one run; returns what stands in its `report.json`."""
    from tl_research import trained  # imports TensorFlow, which --help need not wait for
    from tl_research.reporting import report as page

    run = trained.TrainedRun(path)
    with run.opened(config.output_dir) as directory:
        examples, report = _images(config, run)
        classifier = run.load_classifier(config.extension)
        if report["side"] == "test":
            # before they are read: a reading that fails later counts too
            report["test_reads"] = _count_reading(run, None if config.output_dir else directory)
            print(
                f"test images read {report['test_reads']} times now: what is chosen by this number "
                "is no longer measured by it"
            )
        batch_size = run.batch_size(config.batch_size)
        logits = trained.predict_logits(classifier, examples, batch_size)
        name = report.get("data_dir", report["side"])
        found = page.evaluation(run.answer, logits, examples, run.classes, run.temperature, name)
        report |= found["report"]
        place = os.path.join("report", _place(report))
        _write(run, examples, logits, found, report, directory, place)
    _print(run, found, report, directory.file(place))
    return report


def _images(config, run):
    """Returns (the `Examples` to evaluate on, what `report.json` says of them)."""
    if not config.data_dir or run.is_of_run(config.data_dir):
        data = run.load_data(config.extension, (config.side,), config.data_dir)
        return getattr(data, config.side), {"side": config.side}
    examples, counts = run.load_folder(config.data_dir)
    folder = os.path.abspath(config.data_dir)
    if counts["train"]:
        print(
            f"warning: {counts['train']} of the {len(examples)} images in {folder} were trained on",
            file=sys.stderr,
        )
    return examples, {"side": "folder", "data_dir": folder, "of_run": counts}


def _place(report):
    """Returns the folder below `report` that a side, or a folder of images, has."""
    folder = os.path.basename(report.get("data_dir", "").rstrip(os.sep))
    return f"folder-{folder}" if "data_dir" in report else report["side"]


def _write(run, examples, logits, found, report, directory, place):
    """Writes all files of an evaluation to the folder `place` of a directory."""
    from tl_research.reporting import figures
    from tl_research.reporting import report as page

    calibrated, title = metrics.scaled(logits, run.temperature), os.path.basename(found["side"])
    folder = directory.file(place)
    with storage_errors(folder):
        make_folders(folder)
        figures.save_mistakes(folder, run.answer, calibrated, examples, run.classes, title)
    texts = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "index.html": page.of_evaluation(run, found, folder),
        **_tables(run, examples, calibrated, found["confusion"], report.get("per_class")),
    }
    for name, text in texts.items():
        directory.write_text(os.path.join(place, name), text)


def _side_by_side(reports):
    """Returns lines of a table of several reports, by path: the numbers of each."""
    rows = []
    for path, report in reports.items():
        row = {"run": printable(os.path.basename(os.path.abspath(path))), "images": report["n"]}
        row |= {key: f"{report[key]:.4f}" for key in _COMPARED if report.get(key) is not None}
        if interval := report.get("ci95"):
            row["accuracy"] += " ({:.3f}-{:.3f})".format(*interval)
        rows.append([str(row.get(key, "-")) for key in ("run", "images", *_COMPARED)])
    columns = list(zip(("run", "images", *_COMPARED), *rows))
    shown = [column for column in columns if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in shown]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*shown)]


def _count_reading(run, directory):
    """Returns how often the test images were read, now too; the run's results record it.

    Args:
        run: `TrainedRun`.
        directory: That of the run, open; None opens it, and warns if it cannot be written.
    """
    from tl_research.run.directory import RunDirectory

    if directory is None:
        try:
            with RunDirectory(run.config) as directory:
                return _count_reading(run, directory)
        except StorageError as error:
            print(f"warning: this reading is not counted in the run: {error}", file=sys.stderr)
            return run.results["test"]["reads"] + 1
    summary = directory.read_json("results.json")
    summary["test"]["reads"] += 1
    directory.write_json("results.json", summary)
    return summary["test"]["reads"]


def _tables(run, examples, logits, confusion, per_class):
    """Returns {name of a CSV file: its text}, of those that this kind of answer has."""
    answer, classes, tables = run.answer, run.classes, {}
    if per_class:
        rows = [
            {
                "class": name,
                **row,
                "recall_low": row["recall_ci95"][0],
                "recall_high": row["recall_ci95"][1],
            }
            for name, row in per_class.items()
        ]
        columns = (
            "class",
            "support",
            "predicted",
            "precision",
            "recall",
            "recall_low",
            "recall_high",
            "f1",
        )
        tables["per_class.csv"] = csv_text(columns, _only(rows, columns))
    if confusion is not None:
        columns = ("true", *(f"predicted {name}" for name in classes))
        rows = [dict(zip(columns, (name, *row))) for name, row in zip(classes, confusion.tolist())]
        tables["confusion.csv"] = csv_text(columns, rows)
    columns, wrong = ("path", *answer.columns), answer.mistakes(logits, examples.labels)
    mistakes = [_only(rows, columns) for rows in _rows(run, examples, logits, wrong)]
    tables["mistakes.csv"] = csv_text(columns, itertools.chain(*mistakes))
    tables["predictions.csv"] = _predictions(_rows(run, examples, logits, np.arange(len(logits))))
    return tables


def _rows(run, examples, logits, places):
    """Yields lists of rows of `predictions.csv`: of all, with all their classes, would take many
    times the memory of the logits.
    """
    for start in range(0, len(places), _TOGETHER):
        some = places[start : start + _TOGETHER]
        rows = run.answer.rows(logits[some], examples.labels[some], run.classes)
        yield [{"path": examples.names[place], **row} for place, row in zip(some, rows)]


def _predictions(parts):
    """Yields the text of `predictions.csv`, in parts."""
    for number, rows in enumerate(parts):
        yield csv_text(rows[0], rows, header=number == 0)


def _only(rows, columns):
    return [{name: row[name] for name in columns} for row in rows]


def _print(run, found, report, directory):
    print(f"{printable(found['side'])}: {run.answer.summary(report)}")
    names = list(map(printable, run.classes))
    for count, true, other in found["confusions"][:5]:
        total = found["confusion"][true].sum()
        print(f"{count} of {total} {names[true]} taken for {names[other]}")
    print(f"written to {os.path.join(directory, 'index.html')}")


def main() -> None:
    evaluate(cli.config_from_flags(EvaluateConfig))


if __name__ == "__main__":
    cli.define_flags(EvaluateConfig)
    cli.run(main)
