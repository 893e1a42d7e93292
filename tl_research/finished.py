"""A finished run in Python, with the programs `predict`, `evaluate` and `export` as methods."""

import os
from collections.abc import Iterable
from typing import Any

from tl_research import evaluate, export, predict, trained
from tl_research.config import run_called
from tl_research.files import Json


class FinishedRun(trained.TrainedRun):
    """A finished run.

    Args:
        path: Its directory, such as `experiment.run(...)["run"]`, or `latest`, as for --run.
        extension: Its Python file, if layers or images come from one.

    Raises:
        RunDirectoryError: If it is not a finished run of this version.
    """

    def __init__(self, path: str | os.PathLike, extension: str | None = None):
        super().__init__(run_called(os.fspath(path)))
        self._named: dict[str, Any] = {"run": self.path, "extension": extension}

    def predict(self, images: Iterable[Any]) -> list[Json]:
        """Returns a dict for each image: its `path`, the answer (`class` and `probability` for a
        class) and `outputs`, {class: probability}; or its `path` and the `error` why it cannot be
        used.

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

    def evaluate(self, side: str = "validation", **settings: Any) -> Json:
        """Evaluates a side, see `evaluate.evaluate`; `settings` are those of `EvaluateConfig`."""
        named = {**self._named, "run": (self.path,)}
        return evaluate.evaluate(evaluate.EvaluateConfig(**named, side=side, **settings))

    def export(self, *formats: str, **settings: Any) -> dict[str, str]:
        """Exports the model, see `export.export`; `settings` are those of `ExportConfig`."""
        named: dict[str, Any] = {"format": formats} if formats else {}
        return export.export(export.ExportConfig(**self._named, **named, **settings))
