"""What a network answers to an image: a class, a set of classes, or a number. NumPy only.

A finished run's kind stands in its `run.json` by its name, so that `evaluate`, `predict` and
`export` need no code of the user's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tl_research import metrics
from tl_research.errors import UserError

Array = np.ndarray
_MOST_CONFUSED = 2000  # classes


class Answer:
    """A kind of answer; N images have logits [N, K]. By default each has a probability.

    Attributes:
        name: By which it is found.
        labels: Their form.
        has_probabilities: Whether outputs are probabilities.
        predicted: Columns of `predict` before those of the outputs.
        columns: Of `rows`, before those of the outputs.
    """

    name: str
    labels: str
    has_probabilities = True
    predicted: tuple[str, ...] = ("class", "probability")
    columns: tuple[str, ...] = ("true", "predicted", "probability", "true_probability", "loss")

    def outputs(self, logits: Array) -> Array:
        """Returns float64 [N, K], what people are given, of logits [N, K]."""
        raise NotImplementedError

    def comparable(self, outputs: Array) -> Array:
        """Returns [N, K], what outputs tell of logits: these, less the mean of each row."""
        raise NotImplementedError

    def decided(self, outputs: Array) -> Array:
        """Returns [N, ...], the answers to N images, of the form that labels have."""
        raise NotImplementedError

    def losses(self, logits: Array, labels: Array) -> Array:
        """Returns float64 [N], the plain loss of each image."""
        raise NotImplementedError

    def probability(self, output: Array, answer: Any) -> float:
        """Returns how probable an answer is by the output [K] for its image."""
        raise NotImplementedError

    def certainty(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        """Returns (float64 [M], how probable each thing said is by itself; bool [M], whether it is
        right), one of each image, or of each class of a set.
        """
        raise NotImplementedError

    def text(self, answer: Any, classes: Sequence[str]) -> str:
        """Returns what an answer or label is called."""
        raise NotImplementedError

    def measured(self, logits: Array, labels: Array) -> dict[str, float]:
        """Returns {name: number} over a side of the split, `loss` among them."""
        raise NotImplementedError

    def report(
        self, logits: Array, labels: Array, classes: Sequence[str], temperature: float = 1.0
    ) -> dict[str, Any]:
        """Returns what `evaluate` writes: a JSON value, but for NaN.

        Log loss and calibration error are of logits divided by the temperature; all else is as
        without it.
        """
        raise NotImplementedError

    def said(self, output: Array, classes: Sequence[str]) -> tuple:
        """Returns the cells of `predicted` for the output [K] of an image."""
        answer = self.decided(output[None])[0]
        return self.text(answer, classes), self.probability(output, answer)

    def rows(self, logits: Array, labels: Array, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Returns for each image what it is, what was said and its loss, then its outputs."""
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
        """Returns the places of the images whose answer is not their label, largest loss first."""
        wrong = self.decided(self.outputs(logits)) != labels
        order = np.argsort(-self.losses(logits, labels), kind="stable")
        return order[wrong.reshape(len(labels), -1).any(axis=1)[order]]

    def confusion(self, logits: Array, labels: Array) -> Array | None:
        """Returns the confusion matrix, int64 [K, K], of kinds that have one; of too many classes
        for the memory of its tables and pictures None.
        """
        return None

    def summary(self, report: dict[str, Any]) -> str:
        """Returns the line that says what `report` found."""
        numbers = [f"{name} {of:.4f}" for name, of in report.items() if isinstance(of, float)]
        return f"{', '.join(numbers)} of {report['n']} images"


class OneClass(Answer):
    """One of K classes: outputs are probabilities [N, K]."""

    name, labels = "class", "int32 [N]"

    def outputs(self, logits: Array) -> Array:
        return metrics.softmax(logits)

    def comparable(self, outputs: Array) -> Array:
        logits = np.log(np.maximum(outputs, 1e-30))
        return logits - logits.mean(axis=1, keepdims=True)

    def decided(self, outputs: Array) -> Array:
        return outputs.argmax(axis=1)

    def losses(self, logits: Array, labels: Array) -> Array:
        return metrics.losses(logits, labels)

    def probability(self, output: Array, answer: Any) -> float:
        return output[answer]

    def certainty(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        return self.outputs(logits).max(axis=1), np.argmax(logits, axis=1) == labels

    def text(self, answer: Any, classes: Sequence[str]) -> str:
        return classes[answer]

    def confusion(self, logits: Array, labels: Array) -> Array | None:
        answers, num_classes = np.argmax(logits, axis=1), np.shape(logits)[1]
        if num_classes > _MOST_CONFUSED:
            return None
        return metrics.confusion_matrix(labels, answers, num_classes)

    def measured(self, logits: Array, labels: Array) -> dict[str, float]:
        loss, accuracy = metrics.loss_and_accuracy(logits, labels)
        return {"loss": loss, "accuracy": accuracy}

    def report(
        self, logits: Array, labels: Array, classes: Sequence[str], temperature: float = 1.0
    ) -> dict[str, Any]:
        numbers, rows = metrics.report(metrics.scaled(logits, temperature), labels)
        per_class = dict(zip(classes, rows))
        return {**numbers, "temperature": temperature, "per_class": per_class}

    def summary(self, report: dict[str, Any]) -> str:
        top = "".join(
            f", top-{k} {row['accuracy']:.4f}" for k, row in report["top_k"].items() if k != "1"
        )
        return (
            f"accuracy {report['accuracy']:.4f} "
            f"({round(report['accuracy'] * report['n'])}/{report['n']}), 95% interval "
            f"{report['ci95'][0]:.3f}-{report['ci95'][1]:.3f}; balanced "
            f"{report['balanced_accuracy']:.4f}{top}; log loss {report['log_loss']:.4f}; expected "
            f"calibration error {report['expected_calibration_error']:.4f}, both at temperature "
            f"{report['temperature']:.4g}"
        )


class SetOfClasses(Answer):
    """Any of K classes, labels of 0 and 1; outputs are probabilities [N, K], half or more is in."""

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
    ) -> dict[str, Any]:
        found, count = self.measured(logits, labels), len(labels)
        rows = metrics.per_class_of_sets(labels, self.decided(self.outputs(logits)))
        interval = metrics.wilson_interval(round(found["accuracy"] * count), count)
        calibrated = metrics.scaled(logits, temperature)
        error = metrics.expected_calibration_error(*self.certainty(calibrated, labels))
        return {
            "n": count,
            **found,
            "log_loss": float(self.losses(calibrated, labels).mean()),
            "expected_calibration_error": error,
            "temperature": temperature,
            "ci95": interval,
            "per_class": dict(zip(classes, rows)),
        }


class Number(Answer):
    """A number: it is the one logit, [N, 1]."""

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

    def rows(self, logits: Array, labels: Array, classes: Sequence[str]) -> list[dict[str, Any]]:
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
    ) -> dict[str, Any]:
        interval = metrics.normal_interval(np.sqrt(self.losses(logits, labels)))
        found = self.measured(logits, labels)
        return {"n": len(labels), **found, "mean_absolute_error_ci95": interval}


ANSWERS: dict[str, Answer] = {kind.name: kind for kind in (OneClass(), SetOfClasses(), Number())}


def kind_of(labels: Array) -> Answer:
    """Returns the kind of `ANSWERS` that labels are of.

    Raises:
        UserError: If they are of none.
    """
    form = f"{labels.dtype} [{', '.join('NKLM'[: labels.ndim])}]"
    kinds = {kind.labels: kind for kind in ANSWERS.values()}
    if form in kinds:
        return kinds[form]
    raise UserError(f"labels are {form}; expected one of {'; '.join(kinds)}; convert them")
