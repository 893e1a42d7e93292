"""The objective of a run: its own, or the one for the kind of its labels."""

from collections.abc import Callable

import tensorflow as tf

from tl_research.answers import ANSWERS, kind_of
from tl_research.config import Config
from tl_research.data.pipeline import Examples
from tl_research.errors import UserError
from tl_research.training.objective import CrossEntropy, Objective


class BinaryCrossEntropy(Objective):
    """Any of K classes for each image, labels float32 [B, K] of 0 and 1.

    The mean over classes of the cross-entropies of sigmoids; correct is a set that is wholly so.
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
    """A number for each image, labels float32 [B]: the square of what its one logit is off."""

    answer = ANSWERS["number"]
    counted = {"absolute_error": "mean_absolute_error"}
    refused = ("label_smoothing", "class_weights", "min_test_accuracy")

    def loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.square(logits[:, 0] - labels)

    def count(self, logits: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"absolute_error": tf.abs(logits[:, 0] - labels)}


def make(config: Config, train: Examples, make_own: Callable | None = None) -> Objective:
    """Returns the objective of a run: its own, or else the one for such labels.

    Args:
        config: `tl_research.config.Config`.
        train: `Examples` to train on.
        make_own: A function of both that returns an `Objective`.

    Raises:
        UserError: If it is of another kind than the labels, or does not follow a setting.
    """
    kind = kind_of(train.labels)
    kinds = {one.answer: one for one in (CrossEntropy, BinaryCrossEntropy, SquaredError)}
    objective = (make_own or kinds[kind].from_config)(config, train)
    name = type(objective).__name__
    if not isinstance(objective, Objective) or objective.answer != kind:
        raise UserError(
            f"make_objective returned {name} for labels of the kind {kind.name}; expected an "
            f"Objective whose answer is that; derive it from {kinds[kind].__name__}"
        )
    for setting in objective.refused:
        value = getattr(config, setting)
        if value and value != getattr(type(config), setting):
            raise UserError(
                f"--{setting}={value} with {name}, which does not follow it; expected its "
                "default; leave it out",
                flag=setting,
            )
    return objective
