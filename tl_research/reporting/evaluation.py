"""The answers of a network to some images, as figures, tables and pages show them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from tl_research import metrics
from tl_research.answers import Answer
from tl_research.data.pipeline import Examples
from tl_research.files import Json


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The answers of a network to N images."""

    answer: Answer
    logits: np.ndarray  # float [N, K]
    examples: Examples
    classes: Sequence[str]  # K names
    side: str = "validation"  # name of the images
    temperature: float = 1.0  # divides the logits

    @functools.cached_property
    def calibrated(self) -> np.ndarray:
        """The logits divided by the temperature, float64 [N, K]."""
        return metrics.scaled(self.logits, self.temperature)

    @functools.cached_property
    def wrong(self) -> np.ndarray:
        """The indices of the images with wrong answers, largest loss first."""
        return self.answer.mistakes(self.calibrated, self.examples.labels)

    @functools.cached_property
    def confusion(self) -> np.ndarray | None:
        """The confusion matrix, int64 [K, K], or None."""
        return self.answer.confusion(self.logits, self.examples.labels)

    def rows(self, places: np.ndarray) -> list[Json]:
        """Returns a dict for each of these images: path, label, answer, loss and outputs."""
        labels, names = self.examples.labels[places], self.examples.names
        rows = self.answer.rows(self.calibrated[places], labels, self.classes)
        return [{"path": names[place], **row} for place, row in zip(places, rows)]
