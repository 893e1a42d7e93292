"""Evaluates a finished run on its validation or test images.

    python -m tl_research.evaluate --run=DIR --side=validation

Writes to DIR/report/<side>/: report.json (accuracy, balanced accuracy, top-k, log loss,
calibration, with 95 % intervals), per_class.csv, confusion.csv, mistakes.csv (largest loss first)
and predictions.csv. Each reading of the test images is counted in `test.reads` of DIR/results.json.
The last line of stdout is `RESULT ` and report.json.
"""

import dataclasses
import json
import os

from tl_research import cli
from tl_research.config import ToolConfig, setting
from tl_research.files import csv_text, storage_errors


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(ToolConfig):
    """Settings of `python -m tl_research.evaluate`."""

    side: str = setting(
        "validation",
        "which images; those of test are meant to be read once, so every reading is counted",
        choices=("validation", "test"),
    )
    batch_size: int = setting(32, "images at a time", low=1)


def evaluate(config):
    """Evaluates the run that an `EvaluateConfig` names, writes the report and returns what stands
    in `report.json`.

    Raises:
        RunDirectoryError: If it is no finished run, or in use.
        DataError: If the images are not those of the run.
        StorageError: If the report cannot be written.
    """
    from tl_research import trained  # imports TensorFlow, which --help need not wait for
    from tl_research.reporting import metrics, results
    from tl_research.training.run_directory import RunDirectory

    run = trained.TrainedRun(config.run)
    with RunDirectory(run.config) as directory:
        examples, classifier = getattr(run.load_data(), config.side), run.load_classifier()
        report = {"side": config.side}
        if config.side == "test":
            summary = directory.read_json("results.json")
            summary["test"]["reads"] += 1
            # before they are read: a reading that fails later counts too
            directory.write_json("results.json", summary)
            report["test_reads"] = summary["test"]["reads"]
            print(
                f"test images read {report['test_reads']} times now: what is chosen by this number "
                "is no longer measured by it"
            )
        logits = trained.predict_logits(classifier, examples, config.batch_size)
        numbers, confusion = metrics.report(logits, examples.labels)
        report = results.without_nan(
            {**report, **numbers, "per_class": dict(zip(run.classes, metrics.per_class(confusion)))}
        )
        names = ("report.json", "per_class.csv", "confusion.csv", "mistakes.csv", "predictions.csv")
        with storage_errors(directory.file("report", config.side)):
            os.makedirs(directory.file("report", config.side), exist_ok=True)
        texts = (
            json.dumps(report, indent=1, allow_nan=False) + "\n",
            *_tables(run.classes, examples, logits, confusion),
        )
        for name, text in zip(names, texts):
            directory.write_text(os.path.join("report", config.side, name), text)
    _print(report, run.classes, confusion, directory.file("report", config.side))
    return report


def _tables(classes, examples, logits, confusion):
    """Yields the text of each CSV file."""
    from tl_research.reporting import metrics, results

    rows = [
        {
            "class": name,
            **row,
            "recall_low": row["recall_ci95"][0],
            "recall_high": row["recall_ci95"][1],
        }
        for name, row in zip(classes, metrics.per_class(confusion))
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
    yield csv_text(columns, [{name: row[name] for name in columns} for row in rows])
    yield csv_text(
        ("true", *(f"predicted {name}" for name in classes)),
        [
            {
                "true": name,
                **{f"predicted {other}": count for other, count in zip(classes, row.tolist())},
            }
            for name, row in zip(classes, confusion)
        ],
    )
    probabilities, losses = metrics.softmax(logits), results.losses(logits, examples.labels)
    rows = [
        {
            "path": path,
            "true": classes[label],
            "predicted": classes[row.argmax()],
            "probability": row.max(),
            "true_probability": row[label],
            "loss": loss,
            **{f"probability {name}": p for name, p in zip(classes, row)},
        }
        for path, label, row, loss in zip(examples.names, examples.labels, probabilities, losses)
    ]
    columns = ("path", "true", "predicted", "probability", "true_probability", "loss")
    wrong = sorted(
        (row for row in rows if row["predicted"] != row["true"]), key=lambda row: -row["loss"]
    )
    yield csv_text(columns, [{name: row[name] for name in columns} for row in wrong])
    yield csv_text((*columns, *(f"probability {name}" for name in classes)), rows)


def _print(report, classes, confusion, directory):
    top = "".join(
        f", top-{k} {row['accuracy']:.4f}" for k, row in report["top_k"].items() if k != "1"
    )
    print(
        f"{report['side']} accuracy {report['accuracy']:.4f} "
        f"({round(report['accuracy'] * report['n'])}/{report['n']}), 95% interval "
        f"{report['ci95'][0]:.3f}-{report['ci95'][1]:.3f}; balanced "
        f"{report['balanced_accuracy']:.4f}{top}; log loss {report['log_loss']:.4f}; expected "
        f"calibration error {report['expected_calibration_error']:.4f}"
    )
    pairs = sorted(
        (
            (count, true, other)
            for true, row in enumerate(confusion.tolist())
            for other, count in enumerate(row)
            if count and true != other
        ),
        reverse=True,
    )[:5]
    for count, true, other in pairs:
        print(f"{count} of {confusion[true].sum()} {classes[true]} taken for {classes[other]}")
    print(f"written to {directory}")
    print("RESULT " + json.dumps(report, allow_nan=False), flush=True)


def main():
    evaluate(cli.config_from_flags(EvaluateConfig))


if __name__ == "__main__":
    cli.define_flags(EvaluateConfig)
    cli.run(main)
