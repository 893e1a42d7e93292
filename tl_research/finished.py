"""A finished run in Python: what the programs `predict`, `evaluate` and `export` do, as methods."""

import os
from collections.abc import Iterable
from typing import Any

from tl_research import evaluate, export, predict, trained
from tl_research.config import run_called


class FinishedRun:
    """A finished run, with what can be done with it.

    Args:
        path: Its directory, such as `experiment.run(...)["run"]`, or `latest`, as of --run.
        extension: Its Python file, if it has layers or images of one.

    Attributes:
        path: As given.
        results: The contents of `results.json`.
        classes: Names in the order of the labels.

    Raises:
        RunDirectoryError: If that is no finished run of this version.
    """

    def __init__(self, path: str | os.PathLike, extension: str | None = None):
        run = trained.TrainedRun(run_called(os.fspath(path)))
        self.path, self.results, self.classes = run.path, run.results, run.classes
        self._named: dict[str, Any] = {"run": run.path, "extension": extension}

    def predict(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """Returns for each image a dict: its `path`, what is on it (of a class `class` and
        `probability`), and `outputs`, {class: probability}; or its `path` and the `error` why it
        cannot be used.

        Args:
            images: As `places` of `predict.predict`, such as paths of images and folders.

        Raises:
            DataError: If a path does not exist.
        """
        config = predict.PredictConfig(**self._named)
        run, predictions = predict.predict(config, list(images))
        return [
            {"path": path, "error": reason}
            if outputs is None
            else {
                "path": path,
                **dict(zip(run.answer.predicted, run.answer.said(outputs, run.classes))),
                "outputs": dict(zip(run.classes, outputs.tolist())),
            }
            for path, reason, outputs in predictions
        ]

    def evaluate(self, side: str = "validation", **settings: Any) -> dict[str, Any]:
        """Returns what `evaluate.evaluate` does of a side; `settings` are of `EvaluateConfig`."""
        return evaluate.evaluate(
            evaluate.EvaluateConfig(**{**self._named, "run": (self.path,)}, side=side, **settings)
        )

    def export(self, *formats: str, **settings: Any) -> dict[str, str]:
        """Returns {format: path} of what `export.export` writes; `settings` are of
        `ExportConfig`.
        """
        named: dict[str, Any] = {"format": formats} if formats else {}
        return export.export(export.ExportConfig(**self._named, **named, **settings))
