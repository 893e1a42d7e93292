"""What training minimizes and counts, and what evaluation reports for selection."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tl_research.answers import ANSWERS, Answer, kind_of
from tl_research.config import Config
from tl_research.data.pipeline import Examples
from tl_research.errors import UserError
from tl_research.training.batch import Batch, Tensors

if TYPE_CHECKING:  # they import this module
    from tl_research.training.plan import Plan

PLAIN_LOSS = "plain_loss"  # training loss without label smoothing, comparable to validation


class Objective:
    """What a run optimizes; a subclass defines at least its `answer` and its `loss`.

    Attributes:
        answer: The kind of `answers.ANSWERS` of its labels and logits.
        counted: {what `count` sums up: name of its mean over the training images}.
        refused: Settings that it does not support: they must have their defaults, or be 0.
        identity: Lines that a run and its checkpoints must share, for other data that it reads.
    """

    answer: Answer
    counted: dict[str, str] = {}
    refused: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Config, train: Examples) -> "Objective":
        """Returns the objective for the settings and the training `Examples`."""
        return cls()

    def begin(self, plan: "Plan") -> None:
        """Called once, with the `plan.Plan` of the run, before any step is traced."""

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns float32 [B]: the training loss of float32 logits [B, K] with labels [B, ...]."""
        raise NotImplementedError

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
        """Returns {name: float32 [B]} for each name in `counted`."""
        return {}

    def factors(self, labels: tf.Tensor) -> tf.Tensor | None:
        """Returns float32 [B], factors on the losses with these labels, or None."""
        return None

    def losses(self, logits: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns float32 [B], the training loss of each example of a `batch.Batch`.

        The loss of a blended image is the mean of the losses of both labels, weighted by share.
        """

        def losses_with(labels: tf.Tensor) -> tf.Tensor:
            losses, factors = self.loss(logits, labels), self.factors(labels)
            return losses if factors is None else losses * factors

        losses = losses_with(batch.labels)
        if batch.partner_labels is None or batch.shares is None:
            return losses
        others = losses_with(batch.partner_labels)
        return losses * batch.shares + others * (1.0 - batch.shares)

    def counts(self, logits: tf.Tensor, batch: Batch) -> Tensors:
        """Returns the result of `count` with `counted_labels`."""
        return self.count(logits, self.counted_labels(batch))

    def counted_labels(self, batch: Batch) -> tf.Tensor:
        """Returns the labels [B, ...] to count; a blended image has the one of its larger share."""
        labels = batch.labels
        if batch.partner_labels is None or batch.shares is None:
            return labels
        own = tf.reshape(batch.shares >= 0.5, [-1, *[1] * (labels.shape.rank - 1)])
        return tf.where(own, labels, batch.partner_labels)

    def evaluate(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns {name: number} over a side of the split; `loss` is the unweighted loss."""
        return self.answer.measured(logits, labels)


class CrossEntropy(Objective):
    """One class per image, labels int32 [B]: cross-entropy.

    With smoothing s the target is (1 - s) one-hot + s / K (Szegedy et al. 2016, arXiv:1512.00567,
    section 7).

    Args:
        label_smoothing: Probability s spread evenly over the classes in training.
        class_weights: float [K], factors on the training loss of each class, or None.
    """

    answer = ANSWERS["class"]
    counted = {"correct": "accuracy"}

    def __init__(self, label_smoothing: float = 0.0, class_weights: np.ndarray | None = None):
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        if label_smoothing:  # validation measures another loss than training minimizes
            self.counted = {**self.counted, PLAIN_LOSS: PLAIN_LOSS}

    @classmethod
    def from_config(cls, config: Config, train: Examples) -> "CrossEntropy":
        weights = None
        if config.class_weights == "balanced":
            weights = balanced_weights(train.labels, int(train.labels.max()) + 1)
        return cls(config.label_smoothing, weights)

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return cross_entropy(logits, labels, self.label_smoothing)

    def factors(self, labels: tf.Tensor) -> tf.Tensor | None:
        if self.class_weights is None:
            return None
        return tf.gather(tf.constant(self.class_weights, tf.float32), labels)

    def counts(self, logits: tf.Tensor, batch: Batch) -> Tensors:
        counted = super().counts(logits, batch)
        if PLAIN_LOSS in self.counted:  # also for a subclass with its own `count`
            counted[PLAIN_LOSS] = cross_entropy(logits, self.counted_labels(batch))
        return counted

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
        predicted = tf.argmax(logits, axis=1, output_type=tf.int32)
        return {"correct": tf.cast(tf.equal(predicted, labels), tf.float32)}


class BinaryCrossEntropy(Objective):
    """Any of K classes per image, labels float32 [B, K] of 0 and 1.

    The loss is the mean over classes of the sigmoid cross-entropy; a set is correct if all of its
    classes are.
    """

    answer = ANSWERS["set"]
    counted = {"correct": "accuracy"}
    refused = ("label_smoothing", "class_weights")

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits), axis=1)

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
        same = tf.reduce_all(tf.equal(logits >= 0.0, labels >= 0.5), axis=1)
        return {"correct": tf.cast(same, tf.float32)}


class SquaredError(Objective):
    """A number per image, labels float32 [B]: the squared error of the single logit."""

    answer = ANSWERS["number"]
    counted = {"absolute_error": "mean_absolute_error"}
    refused = ("label_smoothing", "class_weights", "min_test_accuracy")

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.square(logits[:, 0] - labels)

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> Tensors:
        return {"absolute_error": tf.abs(logits[:, 0] - labels)}


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns float32 [B], the cross-entropy of each image.

    Args:
        logits: float32 [B, K].
        labels: int32 [B].
        label_smoothing: As for `CrossEntropy`.
    """
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    num_classes = logits.shape[-1]
    targets = tf.one_hot(labels, num_classes) * (1.0 - label_smoothing)
    return tf.nn.softmax_cross_entropy_with_logits(targets + label_smoothing / num_classes, logits)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns float64 [K], N / (K N_c): all classes weigh the same; the mean over examples is 1."""
    counts = np.maximum(np.bincount(labels, minlength=num_classes), 1)
    return len(labels) / (num_classes * counts)


def make(config: Config, train: Examples, make_own: Callable | None = None) -> Objective:
    """Returns the objective of a run: the user's own, or else the one for its labels.

    Args:
        config: `tl_research.config.Config`.
        train: The training `Examples`.
        make_own: The user's function of both that returns an `Objective`, or None.

    Raises:
        UserError: If it does not fit the kind of labels, or does not support a setting.
    """
    kind = kind_of(train.labels)
    kinds = {one.answer: one for one in (CrossEntropy, BinaryCrossEntropy, SquaredError)}
    objective = (make_own or kinds[kind].from_config)(config, train)
    name = type(objective).__name__
    if not isinstance(objective, Objective) or objective.answer != kind:
        raise UserError(
            f"make_objective returned {name} for labels of the kind {kind.name}; expected an "
            f"Objective with that answer; derive it from {kinds[kind].__name__}"
        )
    for setting in objective.refused:
        value = getattr(config, setting)
        if value and value != getattr(type(config), setting):
            raise UserError(
                f"--{setting}={value} with {name}, which does not support it; expected its "
                "default; leave it out",
                flag=setting,
            )
    return objective
