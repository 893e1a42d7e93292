"""Chooses the objective of a run: the user's own, or the one for the kind of its labels."""

from collections.abc import Callable

import tensorflow as tf

from tl_research.answers import ANSWERS, kind_of
from tl_research.config import Config
from tl_research.data.pipeline import Examples
from tl_research.errors import UserError
from tl_research.training.objective import CrossEntropy, Objective


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

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        same = tf.reduce_all(tf.equal(logits >= 0.0, labels >= 0.5), axis=1)
        return {"correct": tf.cast(same, tf.float32)}


class SquaredError(Objective):
    """A number per image, labels float32 [B]: the squared error of the single logit."""

    answer = ANSWERS["number"]
    counted = {"absolute_error": "mean_absolute_error"}
    refused = ("label_smoothing", "class_weights", "min_test_accuracy")

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.square(logits[:, 0] - labels)

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"absolute_error": tf.abs(logits[:, 0] - labels)}


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
