"""examples/stochastic_depth.py: which branches are left out, and how often."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tl_research import extension
from tl_research.config import Config
from tl_research.models.classifier import Classifier
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.training import features, objective
from tl_research.training.batch import Batch

PATH = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "stochastic_depth.py")


@pytest.fixture
def make_step(make_examples):
    """A function of what is opened to the example's step on EfficientNetLite0 at 32 px."""

    def make(unfreeze):
        config = Config(
            dataset="drawn_flowers", backbone="EfficientNetLite0", weights="none", image_size=32
        )
        classifier = Classifier(config, 3)
        classifier.unfreeze(unfreeze)
        groups = make_param_groups(
            classifier.trainable_variables(), {}, list(classifier.variables), Config()
        )
        views = features.Views(0, 0, False)
        source = features.LiveSource(classifier, make_examples(8), classifier.boundary(), views)
        optimizer = GroupedOptimizer(groups, Config(optimizer="sgd"))
        kind = extension.load(PATH).Step
        return kind(classifier, optimizer, source, objective.CrossEntropy(), lambda step: 0.1)

    return make


def _batch(step, count=8):
    rows = tf.range(count)
    return Batch(
        None, rows, tf.ones([count]), tf.constant(8.0), rows, 0, tf.constant(step, tf.int64)
    )


def test_frozen_backbone_is_left_as_it_is(make_step):
    step = make_step("0%")
    pooled = tf.random.stateless_normal([8, 1280], seed=(0, 1))
    expected = step.classifier.logits(step.source.boundary, [pooled])
    np.testing.assert_array_equal(step.logits([pooled], _batch(5)), expected)


def test_last_branch_is_dropped_for_a_fifth_of_the_images_and_scaled_for_the_rest(make_step):
    """With only the last residual block open, its sum is worked out from its two inputs."""
    step = make_step("block6d")
    graph, (boundary,) = step.classifier.graph, step.source.boundary
    count = 400
    tensor = tf.random.stateless_normal([count, *graph.shape(boundary)], seed=(0, 2))
    branch, shortcut = graph.run({boundary: tensor}, ("block6d_project_bn", "block6c_add"))
    dropped = shortcut.numpy()
    kept = dropped + branch.numpy() / np.float32(0.8)
    received = step.logits([tensor], _batch(7, count)).numpy()
    logits_of = [
        step.classifier.logits(("block6d_add",), [tf.constant(values)]).numpy()
        for values in (dropped, kept)
    ]
    is_dropped = [np.isclose(received, of, rtol=1e-4, atol=1e-5).all(axis=1) for of in logits_of]
    assert (is_dropped[0] ^ is_dropped[1]).all()
    assert 0.14 < is_dropped[0].mean() < 0.26  # three standard errors of 0.2 of 400
    np.testing.assert_array_equal(received, step.logits([tensor], _batch(7, count)))
    assert (received != step.logits([tensor], _batch(8, count)).numpy()).any()


def test_run_is_resumed_to_the_same_bits(assert_resumes):
    results, _ = assert_resumes(
        "stochastic_depth.py",
        backbone="EfficientNetLite0",
        image_size=32,
        unfreeze=("0%", "block6c"),
        epochs=(0, 1),
        augment="none",
        crashes=(3,),
    )
    audit = results["phases"][0]["audit"]
    assert audit["trainable_changed"] == audit["trainable_total"] and audit["frozen_changed"] == 0
