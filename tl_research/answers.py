"""The kinds of answers of a network: a class, a set of classes, or a number. NumPy only.

The kind is recorded by name in `run.json`, so that `evaluate`, `predict` and `export` need no code
of an extension.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tl_research import metrics
from tl_research.errors import UserError
from tl_research.files import Json

Array = np.ndarray
_MOST_CONFUSED = 2000  # classes, beyond which tables and pictures would take too much memory


class Answer:
    """One of K classes, and the base of the other kinds. N images have logits [N, K].

    Attributes:
        name: Name of the kind.
        labels: Form of the labels.
        has_probabilities: Whether the outputs are probabilities.
        predicted: Columns of `predict` before those of the outputs.
        columns: Columns of `rows` before those of the outputs.
    """

    name, labels = "class", "int32 [N]"
    has_probabilities = True
    predicted: tuple[str, ...] = ("class", "probability")
    columns: tuple[str, ...] = ("true", "predicted", "probability", "true_probability", "loss")

    def outputs(self, logits: Array) -> Array:
        """Returns the outputs for users, float64 [N, K], probabilities if there are any."""
        return metrics.softmax(logits)

    def comparable(self, outputs: Array) -> Array:
        """Returns the logits [N, K] of outputs, up to a constant per image for one class."""
        logits = np.log(np.maximum(outputs, 1e-30))
        return logits - logits.mean(axis=1, keepdims=True)

    def decided(self, outputs: Array) -> Array:
        """Returns the answers [N, ...], in the form of labels."""
        return outputs.argmax(axis=1)

    def losses(self, logits: Array, labels: Array) -> Array:
        """Returns the plain loss of each image, float64 [N]."""
        return metrics.losses(logits, labels)

    def probability(self, output: Array, answer: Any) -> float:
        """Returns the probability of an answer by the output [K] for an image."""
        return output[answer]

    def certainty(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        """Returns (probability of each decision, float64 [M]; whether it is correct, bool [M]).

        There is one decision per image, or one per image and class for sets.
        """
        return self.outputs(logits).max(axis=1), np.argmax(logits, axis=1) == labels

    def text(self, answer: Any, classes: Sequence[str]) -> str:
        """Returns an answer or label as text."""
        return classes[answer]

    def measured(self, logits: Array, labels: Array) -> dict[str, float]:
        """Returns {metric: number} over a side of the split, with `loss`."""
        loss, accuracy = metrics.loss_and_accuracy(logits, labels)
        return {"loss": loss, "accuracy": accuracy}

    def report(
        self, logits: Array, labels: Array, classes: Sequence[str], temperature: float = 1.0
    ) -> Json:
        """Returns the metrics that `evaluate` writes, a JSON value except for NaN.

        Args:
            logits: float [N, K].
            labels: The labels.
            classes: K names.
            temperature: Divides the logits for log loss and calibration error only.
        """
        numbers, rows = metrics.report(metrics.scaled(logits, temperature), labels)
        per_class = dict(zip(classes, rows))
        return {**numbers, "temperature": temperature, "per_class": per_class}

    def said(self, output: Array, classes: Sequence[str]) -> tuple:
        """Returns the cells of the columns `predicted` for the output [K] of an image."""
        answer = self.decided(output[None])[0]
        return self.text(answer, classes), self.probability(output, answer)

    def rows(self, logits: Array, labels: Array, classes: Sequence[str]) -> list[Json]:
        """Returns a dict per image: label, answer, loss and outputs."""
        outputs = self.outputs(logits)
        return [
            {
                "true": self.text(label, classes),
                "predicted": self.text(answer, classes),
                "probability": self.probability(output, answer),
                "true_probability": self.probability(output, label),
                "loss": loss,
                **{f"probability {name}": share for name, share in zip(classes, output)},
            }
            for label, answer, output, loss in zip(
                labels, self.decided(outputs), outputs, self.losses(logits, labels)
            )
        ]

    def mistakes(self, logits: Array, labels: Array) -> Array:
        """Returns the indices of the images with wrong answers, largest loss first."""
        wrong = self.decided(self.outputs(logits)) != labels
        order = np.argsort(-self.losses(logits, labels), kind="stable")
        return order[wrong.reshape(len(labels), -1).any(axis=1)[order]]

    def confusion(self, logits: Array, labels: Array) -> Array | None:
        """Returns the confusion matrix, int64 [K, K]; None if there is none or K is too large."""
        answers, num_classes = self.decided(logits), np.shape(logits)[1]
        if self.name != "class" or num_classes > _MOST_CONFUSED:
            return None
        return metrics.confusion_matrix(labels, answers, num_classes)

    def summary(self, report: Json) -> str:
        """Returns the metrics of a `report` in one line."""
        numbers = [
            f"{name.replace('_', ' ')} {of:.4f}"
            for name, of in report.items()
            if isinstance(of, float)
        ]
        line = f"{', '.join(numbers)} on {report['n']} images"
        if interval := report.get("ci95"):
            line += "; 95 % interval of the accuracy {:.3f}-{:.3f}".format(*interval)
        return line


class SetOfClasses(Answer):
    """Any of K classes, labels of 0 and 1; outputs are probabilities [N, K], from 0.5 on in the
    set.
    """

    name, labels = "set", "float32 [N, K]"
    predicted = ("classes", "probability")

    def outputs(self, logits: Array) -> Array:
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))

    def comparable(self, outputs: Array) -> Array:
        shares = np.clip(outputs, 1e-4, 1 - 1e-4)  # nearer to 1, float32 rounds logits away
        return np.log(shares / (1 - shares))

    def decided(self, outputs: Array) -> Array:
        return outputs >= 0.5

    def losses(self, logits: Array, labels: Array) -> Array:
        logits = np.asarray(logits, np.float64)
        return (np.logaddexp(0.0, logits) - logits * labels).mean(axis=1)

    def probability(self, output: Array, answer: Any) -> float:
        return np.where(answer, output, 1 - output).prod()

    def certainty(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        outputs = self.outputs(logits).ravel()
        return np.maximum(outputs, 1 - outputs), self.decided(outputs) == labels.ravel()

    def text(self, answer: Any, classes: Sequence[str]) -> str:
        return ";".join(name for name, there in zip(classes, answer) if there)

    def measured(self, logits: Array, labels: Array) -> dict[str, float]:
        answers = self.decided(self.outputs(logits))
        return {
            "loss": float(self.losses(logits, labels).mean()),
            "accuracy": float((answers == labels).all(axis=1).mean()),  # of whole sets
            "macro_f1": metrics.macro_f1(metrics.per_class_of_sets(labels, answers)),
        }

    def report(
        self, logits: Array, labels: Array, classes: Sequence[str], temperature: float = 1.0
    ) -> Json:
        found, count = self.measured(logits, labels), len(labels)
        rows = metrics.per_class_of_sets(labels, self.decided(self.outputs(logits)))
        calibrated = metrics.scaled(logits, temperature)
        error = metrics.expected_calibration_error(*self.certainty(calibrated, labels))
        return {
            "n": count,
            **found,
            "log_loss": float(self.losses(calibrated, labels).mean()),
            "expected_calibration_error": error,
            "temperature": temperature,
            "ci95": metrics.wilson_interval(round(found["accuracy"] * count), count),
            "per_class": dict(zip(classes, rows)),
        }


class Number(Answer):
    """A number: the single logit, [N, 1]."""

    name, labels = "number", "float32 [N]"
    has_probabilities = False
    predicted = ()
    columns = ("true", "predicted", "error", "loss")

    def outputs(self, logits: Array) -> Array:
        return np.asarray(logits, np.float64)

    def comparable(self, outputs: Array) -> Array:
        return outputs

    def decided(self, outputs: Array) -> Array:
        return outputs[:, 0]

    def losses(self, logits: Array, labels: Array) -> Array:
        return np.square(self.outputs(logits)[:, 0] - labels)

    def said(self, output: Array, classes: Sequence[str]) -> tuple:
        return ()

    def text(self, answer: Any, classes: Sequence[str]) -> str:
        return f"{answer:.4g}"

    def rows(self, logits: Array, labels: Array, classes: Sequence[str]) -> list[Json]:
        numbers = zip(*(map(float, of) for of in (labels, self.decided(self.outputs(logits)))))
        return [
            {"true": true, "predicted": said, "error": said - true, "loss": (said - true) ** 2}
            for true, said in numbers
        ]

    def measured(self, logits: Array, labels: Array) -> dict[str, float]:
        losses = self.losses(logits, labels)
        return {
            "loss": float(losses.mean()),
            "mean_absolute_error": float(np.sqrt(losses).mean()),
        }

    def report(
        self, logits: Array, labels: Array, classes: Sequence[str], temperature: float = 1.0
    ) -> Json:
        interval = metrics.normal_interval(np.sqrt(self.losses(logits, labels)))
        found = self.measured(logits, labels)
        return {"n": len(labels), **found, "mean_absolute_error_ci95": interval}


ANSWERS: dict[str, Answer] = {kind.name: kind for kind in (Answer(), SetOfClasses(), Number())}


def kind_of(labels: Array) -> Answer:
    """Returns the kind in `ANSWERS` for these labels.

    Raises:
        UserError: If there is none.
    """
    form = f"{labels.dtype} [{', '.join('NKLM'[: labels.ndim])}]"
    kinds = {kind.labels: kind for kind in ANSWERS.values()}
    if form in kinds:
        return kinds[form]
    raise UserError(f"labels are {form}; expected one of {'; '.join(kinds)}; convert them")
