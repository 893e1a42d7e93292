"""What each objective minimizes and counts, by numbers worked out by hand, and what it refuses."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.training import objective

_LN3 = np.log(3)  # a sigmoid of 3/4


def _batch(labels, partners=None, shares=None):
    labels = tf.constant(labels)
    others = None if partners is None else tf.constant(partners)
    return types.SimpleNamespace(labels=labels, partner_labels=others, shares=shares)


def _train(labels):
    return types.SimpleNamespace(labels=labels)


_LABELS = {
    "class": np.int32([0, 1, 2]),
    "set": np.float32([[1, 0], [0, 1], [1, 1]]),
    "number": np.float32([1, 2, 3]),
}


def test_set_has_the_mean_of_its_sigmoids_cross_entropies():
    logits = tf.constant([[_LN3, -_LN3], [_LN3, _LN3]], tf.float32)
    labels = np.float32([[1, 0], [1, 0]])
    own = objective.BinaryCrossEntropy()
    np.testing.assert_allclose(
        own.losses(logits, _batch(labels)),
        [np.log(4 / 3), (np.log(4 / 3) + np.log(4)) / 2],
        rtol=1e-6,
    )
    assert own.counts(logits, _batch(labels))["correct"].numpy().tolist() == [1.0, 0.0]


def test_number_has_the_square_of_its_error():
    logits, labels = tf.constant([[1.0], [5.0]]), np.float32([3, 4])
    own = objective.SquaredError()
    assert own.losses(logits, _batch(labels)).numpy().tolist() == [4.0, 1.0]
    assert own.counts(logits, _batch(labels))["absolute_error"].numpy().tolist() == [2.0, 1.0]


def test_blended_image_has_both_losses_and_the_larger_part_counts():
    shares = tf.constant([0.75, 0.25])
    number = _batch(np.float32([1, 1]), np.float32([3, 3]), shares)
    logits = tf.constant([[1.0], [1.0]])
    own = objective.SquaredError()
    assert own.losses(logits, number).numpy().tolist() == [1.0, 3.0]
    assert own.counts(logits, number)["absolute_error"].numpy().tolist() == [0.0, 2.0]
    sets = _batch(np.float32([[1, 0], [1, 0]]), np.float32([[0, 1], [0, 1]]), shares)
    logits = tf.constant([[1.0, -1.0], [1.0, -1.0]])
    counted = objective.BinaryCrossEntropy().counts(logits, sets)
    assert counted["correct"].numpy().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", _LABELS)
def test_training_counts_what_evaluation_measures(kind):
    labels = _LABELS[kind]
    own = objective.make(Config(label_smoothing=0), _train(labels))
    assert own.answer.name == kind
    width = {"class": 3, "set": 2, "number": 1}[kind]
    logits = np.random.RandomState(1).normal(size=(3, width)).astype(np.float32)
    found = own.evaluate(logits, labels)
    batch = _batch(labels)
    assert np.mean(own.losses(logits, batch)) == pytest.approx(found["loss"], rel=1e-6)
    for name, counts in own.counts(logits, batch).items():
        assert np.mean(counts) == pytest.approx(found[own.counted[name]], rel=1e-6)


def test_plain_loss_is_counted_beside_a_smoothed_one():
    labels = np.int32([0, 1])
    logits = tf.constant([[_LN3, 0, 0], [_LN3, 0, 0]], tf.float32)  # softmax 3/5, 1/5, 1/5
    own = objective.make(Config(label_smoothing=0.3), _train(labels))
    assert own.counted == {"correct": "accuracy", "plain_loss": "plain_loss"}
    batch = _batch(labels)
    smoothed = [-(0.8 * np.log(0.6) + 0.2 * np.log(0.2)), -(0.1 * np.log(0.6) + 0.9 * np.log(0.2))]
    np.testing.assert_allclose(own.losses(logits, batch), smoothed, rtol=1e-6)
    plain = own.counts(logits, batch)["plain_loss"]
    np.testing.assert_allclose(plain, [-np.log(0.6), -np.log(0.2)], rtol=1e-6)
    # of a blended image that of the larger part, also of a subclass that counts otherwise
    mixed = _batch(labels, np.int32([1, 0]), tf.constant([0.4, 0.9]))

    class Counts(objective.CrossEntropy):
        def count(self, logits, labels):
            return {"correct": tf.zeros([2])}

    counts = Counts(0.3).counts(logits, mixed)
    np.testing.assert_allclose(counts["plain_loss"], [-np.log(0.2), -np.log(0.2)], rtol=1e-6)
    assert objective.make(Config(label_smoothing=0), _train(labels)).counted == {
        "correct": "accuracy"
    }


def test_balanced_weights_make_classes_count_alike():
    labels = np.int32([0, 1, 1, 1, 2, 2])
    weights = objective.balanced_weights(labels, 3)
    np.testing.assert_allclose(weights, [2, 2 / 3, 1])
    own = objective.make(Config(class_weights="balanced"), _train(labels))
    losses = own.losses(tf.zeros([6, 3]), _batch(labels))
    np.testing.assert_allclose(losses, np.log(3) * weights[labels], rtol=1e-6)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("number", {"min_test_accuracy": 0.5}),
        ("number", {"label_smoothing": 0.2}),
        ("set", {"class_weights": "balanced"}),
    ],
)
def test_setting_that_it_cannot_follow_is_refused(kind, settings):
    (name,) = settings
    with pytest.raises(UserError, match=f"--{name}=.* does not support it; expected") as error:
        objective.make(Config(**settings), _train(_LABELS[kind]))
    assert error.value.flag == name


@pytest.mark.parametrize("kind", ["number", "set"])
def test_default_smoothing_is_of_classes_only(kind):
    for settings in ({}, {"label_smoothing": 0}):
        objective.make(Config(**settings), _train(_LABELS[kind]))
    assert objective.make(Config(), _train(_LABELS["class"])).label_smoothing == 0.1


def test_gate_of_whole_sets_is_followed():
    own = objective.make(Config(min_test_accuracy=0.5), _train(_LABELS["set"]))
    assert own.evaluate(np.float32([[1, -1]]), np.float32([[1, 0]]))["accuracy"] == 1.0


@pytest.mark.parametrize(
    "own, name",
    [(objective.SquaredError(), "SquaredError"), (None, "NoneType"), (lambda: 1, "function")],
)
def test_objective_of_another_kind_or_none_is_refused(own, name):
    with pytest.raises(UserError, match=f"make_objective returned {name} for labels of the kind"):
        objective.make(Config(), _train(_LABELS["class"]), lambda config, train: own)
