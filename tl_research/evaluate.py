"""Evaluates a finished run on its validation or test images.

    python -m tl_research.evaluate --run=DIR --side=validation

Writes to DIR/report/<side>/ (with --output_dir there, not into the run): report.json (accuracy,
balanced accuracy, top-k, log loss, calibration, with 95 % intervals; of sets of classes and of
numbers what suits those), mistakes.csv (largest loss first), predictions.csv and, of classes,
per_class.csv and confusion.csv. Probabilities and log losses are of logits divided by the run's
`temperature`. Each reading of the test images is counted in `test.reads` of DIR/results.json. The
last line of stdout is `RESULT ` and report.json.
"""

import dataclasses
import itertools
import json
import os
import sys

import numpy as np

from tl_research import cli, metrics
from tl_research.config import ReaderConfig
from tl_research.data.split import printable
from tl_research.errors import StorageError
from tl_research.files import csv_text, make_folders, storage_errors
from tl_research.settings import setting

_TOGETHER = 256  # images whose rows are in memory at once


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ReaderConfig):
    """Settings of `python -m tl_research.evaluate`."""

    side: str = setting(
        "validation",
        "which images; those of test are meant to be read once, so every reading is counted",
        choices=("validation", "test"),
    )


def evaluate(config):
    """Evaluates the run that an `EvaluateConfig` names, writes the report and returns what stands
    in `report.json`.

    Raises:
        RunDirectoryError: If it is no finished run, or in use.
        DataError: If the images are not those of the run.
        StorageError: If the report cannot be written.
    """
    from tl_research import trained  # imports TensorFlow, which --help need not wait for
    from tl_research.reporting import results

    run = trained.TrainedRun(config.run)
    with run.opened(config.output_dir) as directory:
        data = run.load_data(config.extension, (config.side,), config.data_dir)
        examples = getattr(data, config.side)
        classifier = run.load_classifier(config.extension)
        report = {"side": config.side}
        if config.side == "test":
            # before they are read: a reading that fails later counts too
            report["test_reads"] = _count_reading(run, None if config.output_dir else directory)
            print(
                f"test images read {report['test_reads']} times now: what is chosen by this number "
                "is no longer measured by it"
            )
        batch_size = run.batch_size(config.batch_size)
        logits = trained.predict_logits(classifier, examples, batch_size)
        numbers = run.answer.report(logits, examples.labels, run.classes, run.temperature)
        calibrated = metrics.scaled(logits, run.temperature)
        confusion = run.answer.confusion(logits, examples.labels)
        report = results.without_nan({**report, **numbers})
        with storage_errors(directory.file("report", config.side)):
            make_folders(directory.file("report", config.side))
        texts = {
            "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
            **_tables(run, examples, calibrated, confusion, numbers.get("per_class")),
        }
        for name, text in texts.items():
            directory.write_text(os.path.join("report", config.side, name), text)
    _print(run, report, confusion, directory.file("report", config.side))
    return report


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


def _print(run, report, confusion, directory):
    print(f"{report['side']} {run.answer.summary(report)}")
    pairs = sorted(
        (
            (count, true, other)
            for true, row in enumerate(() if confusion is None else confusion.tolist())
            for other, count in enumerate(row)
            if count and true != other
        ),
        reverse=True,
    )[:5]
    for count, true, other in pairs:
        names = list(map(printable, run.classes))
        print(f"{count} of {confusion[true].sum()} {names[true]} taken for {names[other]}")
    print(f"written to {directory}")
    print("RESULT " + json.dumps(report, allow_nan=False), flush=True)


def main():
    evaluate(cli.config_from_flags(EvaluateConfig))


if __name__ == "__main__":
    cli.define_flags(EvaluateConfig)
    cli.run(main)
