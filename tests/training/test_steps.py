"""A training step does exactly what its equations say, against steps worked out without it."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Config, Phase
from tl_research.data import mixing, pipeline
from tl_research.models.classifier import Classifier
from tl_research.optim import loss_scale, schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.training import evaluation, features, objective, steps
from tl_research.training.batch import EpochInputs

_TINY = Config(backbone="Tiny", weights="none", image_size=16, augment="none", dropout=0.0)


@pytest.fixture
def classifier(tiny_backbone):
    return Classifier(_TINY, 3)


@pytest.fixture
def half_classifier(tiny_backbone):
    keras.config.set_dtype_policy("mixed_float16")
    yield Classifier(_TINY, 3)
    keras.config.set_dtype_policy("float32")


def _make_step(
    classifier,
    examples,
    rate=0.5,
    optimizer="sgd",
    num_steps=10,
    backbone_multiplier=1.0,
    clip_norm=0.0,
    warmup=0,
    schedule="constant",
    tensors=None,
    loss=None,
    kind=steps.TrainStep,
    blend=mixing.MixUp(1.0),
):
    groups = make_param_groups(
        classifier.trainable_variables(),
        {},
        list(classifier.variables),
        Config(backbone_lr_multiplier=backbone_multiplier),
    )
    optimizer = GroupedOptimizer(
        groups, Config(optimizer=optimizer, momentum=0.0, clip_norm=clip_norm)
    )
    boundary, views = classifier.boundary(), features.Views(0, 0, False, mixing=blend)
    source = features.LiveSource(classifier, examples, boundary, views)
    if tensors is not None:
        kept = [tf.constant(tensors)]
        source = features.CachedSource(source, boundary, lambda _: kept, [tf.float32])
    rate_at = schedules.make_schedule(Phase("p", 1, "0%", rate, 0, warmup, schedule), num_steps)
    return kind(classifier, optimizer, source, loss or objective.CrossEntropy(), rate_at)


def _call(step, indices, weights=None, first=0, count=None, done=0, scale=None, mix=None):
    indices = np.array(indices, np.int32)
    weights = (
        np.ones(indices.shape, np.float32) if weights is None else np.array(weights, np.float32)
    )
    epoch = EpochInputs(
        tf.constant(indices), tf.constant(weights), step.source.of_view(0), tf.constant(0), mix
    )
    totals = step(
        epoch,
        first,
        len(indices) if count is None else count,
        done,
        done,
        scaling={**loss_scale.initial(), "loss_scale": scale} if scale else None,
    )
    return {name: tensor.numpy() for name, tensor in totals.items()}


def _values(classifier):
    return {path: variable.numpy() for path, variable in classifier.variables.items()}


def _pooled(classifier, examples):
    """The features of all examples, by Keras."""
    images = classifier.preprocessing(tf.cast(examples.pixels, tf.float32))
    return classifier.backbone(images, training=False).numpy().mean(axis=(1, 2))


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_variable_that_lion_moves_there_and_back_has_moved(tiny_backbone, make_examples):
    classifier = Classifier(_TINY, 2)
    classifier.unfreeze("0%")
    step = _make_step(
        classifier, make_examples(2), optimizer="lion", tensors=np.zeros((2, 10), np.float32)
    )
    totals = _call(step, [[0], [1]])  # first one class, then the other
    moved = dict(zip(classifier.trainable_variables(), totals["moved"]))
    # all features are 0
    assert not _values(classifier)["head/bias"].any() and moved == {
        "head/kernel": 0,
        "head/bias": 1,
    }


def test_peaks_are_of_gradients_after_clipping(classifier, make_examples):
    free = _call(_make_step(classifier, make_examples(9), rate=1e-9), [[0, 1, 2]])
    clipped = _call(
        _make_step(classifier, make_examples(9), rate=1e-9, clip_norm=0.01), [[0, 1, 2]]
    )
    np.testing.assert_allclose(
        clipped["max_gradient_norm"],
        free["max_gradient_norm"] * 0.01 / np.linalg.norm(free["max_gradient_norm"]),
        rtol=1e-4,
    )
    np.testing.assert_allclose(clipped["gradient_norm_sum"], free["gradient_norm_sum"], rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_head_step_equals_the_one_worked_out_by_hand(classifier, make_examples, smoothing):
    examples, chosen = make_examples(9), [4, 0, 7, 2]
    before, inputs = _values(classifier), _pooled(classifier, examples)[chosen]
    totals = _call(
        _make_step(classifier, examples, loss=objective.CrossEntropy(smoothing)), [chosen]
    )
    logits = inputs @ before["head/kernel"] + before["head/bias"]
    targets = np.eye(3)[examples.labels[chosen]] * (1 - smoothing) + smoothing / 3
    error = (_softmax(logits) - targets) / 4
    after = _values(classifier)
    np.testing.assert_allclose(
        after["head/kernel"], before["head/kernel"] - 0.5 * inputs.T @ error, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        after["head/bias"], before["head/bias"] - 0.5 * error.sum(axis=0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        totals["loss_sum"], -(targets * np.log(_softmax(logits))).sum(), rtol=1e-5
    )
    assert totals["correct"] == (logits.argmax(axis=1) == examples.labels[chosen]).sum()
    assert totals["examples"] == 4 and totals["steps"] == 1 and totals["finite"] == 1
    norms = [np.linalg.norm(inputs.T @ error), np.linalg.norm(error.sum(axis=0))]
    np.testing.assert_allclose(totals["max_gradient_norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(totals["gradient_norm_sum"], [np.hypot(*norms)], rtol=1e-4)
    weights = np.sqrt(sum(np.sum(np.square(after[path])) for path in ("head/kernel", "head/bias")))
    np.testing.assert_allclose(
        totals["update_ratio"], [0.5 * np.hypot(*norms) / weights], rtol=1e-4
    )
    for path in before:
        if not path.startswith("head/"):
            np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_finetune_step_equals_plain_tensorflow(classifier, make_examples, clip_norm):
    examples, chosen = make_examples(9), [4, 0, 7, 2]
    classifier.unfreeze("block2")
    trainable = classifier.trainable_variables()
    assert {path.split("/")[1] for path in trainable if path.startswith("backbone")} == {
        "block2_conv",
        "block2_bn",
        "block3_conv",
    }
    before = _values(classifier)
    pixels, labels = tf.gather(examples.pixels, chosen), examples.labels[chosen]
    with tf.GradientTape() as tape:
        logits = classifier.model(tf.cast(pixels, tf.float32))
        loss = tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(tf.one_hot(labels, 3), logits)
        )
    gradients = tape.gradient(loss, [variable.value for variable in trainable.values()])
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    assert norm > 0.05
    scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
    _call(_make_step(classifier, examples, backbone_multiplier=0.25, clip_norm=clip_norm), [chosen])
    after = _values(classifier)
    for (path, _), gradient in zip(trainable.items(), gradients):
        multiplier = 0.25 if path.startswith("backbone") else 1.0
        np.testing.assert_allclose(
            after[path],
            before[path] - 0.5 * multiplier * scale * gradient,
            rtol=1e-4,
            atol=1e-6,
            err_msg=path,
        )
        assert (after[path] != before[path]).any()
    for path in before.keys() - trainable.keys():
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def test_steps_of_one_call_equal_steps_of_many(classifier, make_examples):
    examples = make_examples(9)
    rows = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    start = _values(classifier)
    totals = _call(_make_step(classifier, examples, optimizer="adam", rate=0.01), rows)
    together = _values(classifier)
    moved = np.concatenate(
        [np.ravel(together[path] - start[path]) for path in ("head/kernel", "head/bias")]
    )
    weights = np.concatenate([np.ravel(together[path]) for path in ("head/kernel", "head/bias")])
    np.testing.assert_allclose(
        totals["update_ratio"], [np.linalg.norm(moved) / np.linalg.norm(weights) / 3], rtol=1e-4
    )
    for path, value in start.items():
        classifier.variables[path].assign(value)
    step = _make_step(classifier, examples, optimizer="adam", rate=0.01)
    for first, count in ((0, 1), (1, 2)):
        _call(step, rows, first=first, count=count, done=first)
    for path, value in _values(classifier).items():
        np.testing.assert_array_equal(value, together[path])
    assert (together["head/kernel"] != start["head/kernel"]).all()


def test_padding_has_no_influence(classifier, make_examples):
    examples, start, results = make_examples(9), _values(classifier), []
    classifier.unfreeze("block2")
    for row, weights in (([4, 0], [1, 1]), ([4, 0, 7], [1, 1, 0]), ([4, 0, 2], [1, 1, 0])):
        for path, value in start.items():
            classifier.variables[path].assign(value)
        totals = _call(_make_step(classifier, examples), [row], [weights])
        assert totals["examples"] == 2
        results.append((totals, _values(classifier)))
    for path in start:
        np.testing.assert_array_equal(results[1][1][path], results[2][1][path])
        np.testing.assert_allclose(results[0][1][path], results[1][1][path], rtol=1e-5, atol=1e-7)
    for name in ("loss_sum", "correct"):
        np.testing.assert_allclose(results[0][0][name], results[1][0][name], rtol=1e-6)
        assert results[1][0][name] == results[2][0][name]


def test_traced_once_over_epochs_of_calls_of_different_length(classifier, make_examples):
    examples = make_examples(10)
    step = _make_step(classifier, examples)
    for epoch in (1, 2):
        indices, weights = pipeline.make_batches(pipeline.epoch_order(0, epoch, 10), 4)
        for first, count in ((0, 1), (1, 2)):
            _call(step, indices, weights, first, count, done=3 * (epoch - 1) + first)
    assert step.traces == 1


def test_learning_rate_is_that_of_the_step_in_the_phase(classifier, make_examples):
    step = _make_step(
        classifier, make_examples(9), rate=0.8, num_steps=8, warmup=0.5, schedule="cosine"
    )
    rates = [float(_call(step, [[0, 1]], done=done)["learning_rate"]) for done in range(8)]
    np.testing.assert_allclose(
        rates,
        [
            0.2,
            0.4,
            0.6,
            0.8,
            0.8,
            0.8 * (1 + np.cos(np.pi / 4)) / 2,
            0.4,
            0.8 * (1 - np.cos(np.pi / 4)) / 2,
        ],
        rtol=1e-5,
    )
    totals = _call(step, [[0, 1]] * 4, done=3)
    np.testing.assert_allclose(
        [totals["largest_rate"], totals["learning_rate"]], [0.8, 0.4], rtol=1e-5
    )


def test_dropout_depends_on_the_global_step_alone(tiny_backbone, make_examples):
    examples, kernels = make_examples(9), []
    for done in (5, 5, 6):
        classifier = Classifier(dataclasses.replace(_TINY, dropout=0.5), 3)
        _call(_make_step(classifier, examples), [[0, 1, 2]], done=done)
        kernels.append(_values(classifier)["head/kernel"])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_step_that_is_not_finite_changes_nothing_and_ends_the_call(
    classifier, make_examples, optimizer
):
    examples = make_examples(9)
    tensors = _pooled(classifier, examples)
    tensors[5] = np.inf
    step = _make_step(classifier, examples, optimizer=optimizer, tensors=tensors)
    _call(step, [[0, 1], [2, 3]])
    good, state = _values(classifier), step.optimizer.state()
    totals = _call(step, [[4, 5], [6, 7]], done=2)
    assert totals["finite"] == 0 and totals["steps"] == 0  # and [6, 7] was not taken either
    for path, value in _values(classifier).items():
        np.testing.assert_array_equal(value, good[path])
    assert state.keys() == step.optimizer.state().keys()
    for name, value in step.optimizer.state().items():
        np.testing.assert_array_equal(value, state[name])
    assert _call(step, [[6, 7]], done=2)["finite"] == 1
    assert (_values(classifier)["head/kernel"] != good["head/kernel"]).any()


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_infinite_gradient_of_a_finite_loss_changes_nothing(classifier, make_examples, clip_norm):
    @tf.custom_gradient
    def explode(losses):
        return losses, lambda upstream: upstream * np.inf

    class Exploding(objective.CrossEntropy):
        def loss(self, logits, labels):
            return explode(super().loss(logits, labels))

    before = _values(classifier)
    step = _make_step(classifier, make_examples(9), clip_norm=clip_norm, loss=Exploding())
    totals = _call(step, [[0, 1]])
    assert totals["finite"] == 0 and np.isfinite(totals["loss_sum"])
    for path, value in _values(classifier).items():
        np.testing.assert_array_equal(value, before[path])


# Preparing a step.


class _BackAndForth(steps.TrainStep):
    """Moves every variable away and back: rounding leaves some of them elsewhere."""

    def summed_gradients(self, batch_of, scale):
        for variable in self.variables:
            variable.assign_add(0.01 * tf.ones_like(variable))
        found = super().summed_gradients(batch_of, scale)
        for variable in self.variables:
            variable.assign_sub(0.01 * tf.ones_like(variable))
        return found


@pytest.mark.parametrize("kind", [steps.TrainStep, _BackAndForth])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_preparing_takes_a_step_that_is_undone(tiny_backbone, make_examples, policy, kind):
    keras.config.set_dtype_policy(policy)
    classifier = Classifier(_TINY, 3)
    keras.config.set_dtype_policy("float32")
    classifier.unfreeze("block2")
    seen = []

    class Watched(kind):
        def __call__(self, *args, **kwargs):
            totals = super().__call__(*args, **kwargs)
            seen.append((totals, _values(classifier), self.optimizer.state()))
            return totals

    step = _make_step(classifier, make_examples(9), optimizer="adam", rate=0.01, kind=Watched)
    rows = [tf.constant([[0, 1, 2]]), tf.ones([1, 3]), tf.zeros([0, 7]), tf.constant(0)]
    step(EpochInputs(*rows), 0, 1, 0, 0)  # so that moments and counts are not 0
    step.prepare(EpochInputs(tf.constant([[3, 4, 5]]), *rows[1:]))
    (_, values, slots), (totals, moved, moved_slots) = seen
    assert totals["finite"] and totals["examples"] == 3 and not totals.get("skipped_steps", 0)
    for path in classifier.trainable_variables():
        assert (moved[path] != values[path]).any(), path
    assert all((moved_slots[name] != slots[name]).any() for name in slots)
    for path, value in _values(classifier).items():
        np.testing.assert_array_equal(value, values[path], err_msg=path)
    for name, value in step.optimizer.state().items():
        np.testing.assert_array_equal(value, slots[name], err_msg=name)


# float16: the loss scale.


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_scaled_step_in_float16_equals_the_step_in_float32(
    half_classifier, make_examples, clip_norm
):
    examples, chosen, updates, norms = make_examples(9), [4, 0, 7, 2], [], []
    keras.config.set_dtype_policy("float32")
    for classifier in (half_classifier.in_float32(), half_classifier):
        classifier.unfreeze("block2")
        before = _values(classifier)
        totals = _call(_make_step(classifier, examples, clip_norm=clip_norm), [chosen], scale=256.0)
        assert totals["steps"] == 1 and totals["finite"] == 1
        norms.append(totals["gradient_norm_sum"])
        updates.append(
            [
                value - before[path]
                for path, value in _values(classifier).items()
                if path in classifier.trainable_variables()
            ]
        )
    # of the gradients divided by the scale, before they are clipped
    np.testing.assert_allclose(norms[1], norms[0], rtol=5e-3)
    for single, half in zip(*updates):
        assert np.linalg.norm(half - single) < 1e-2 * np.linalg.norm(single)
    if clip_norm:  # rate x clip_norm
        np.testing.assert_allclose(
            np.sqrt(sum(np.sum(np.square(update)) for update in updates[1])), 0.5 * 0.05, rtol=1e-3
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_overflow_skips_the_step_of_all_groups_and_halves_the_scale(
    half_classifier, make_examples, optimizer
):
    classifier, examples = half_classifier, make_examples(9)
    classifier.unfreeze("block2")
    step = _make_step(
        classifier,
        examples,
        optimizer=optimizer,
        rate=0.8,
        num_steps=8,
        warmup=0.5,
        backbone_multiplier=0.25,
    )
    start, state = _values(classifier), step.optimizer.state()
    # the gradient of the backbone overflows; that of the head, in float32, does not
    totals = _call(step, [[0, 1]] * 30, count=1, scale=2.0**24)
    assert (totals["steps"], totals["skipped_steps"], totals["finite"], totals["loss_scale"]) == (
        1,
        1,
        1,
        2.0**23,
    )
    assert totals["examples"] == 2 and np.isfinite(totals["loss_sum"])
    assert (
        not totals["gradient_norm_sum"].any()
        and not totals["max_gradient_norm"].any()
        and not totals["update_ratio"].any()
    )
    assert totals["largest_rate"] == 0
    for path, value in start.items():
        np.testing.assert_array_equal(_values(classifier)[path], value)
    for name, value in state.items():
        np.testing.assert_array_equal(step.optimizer.state()[name], value)
    # In one call: skipped until the scale fits; each takes its place in the data and in the
    # schedule.
    totals = _call(step, [[0, 1], [2, 3], [4, 5]] * 10, count=30, scale=2.0**24)
    skipped = int(totals["skipped_steps"])
    assert (
        totals["steps"] == 30
        and totals["loss_scale"] == 2.0 ** (24 - skipped)
        and 3 <= skipped < 20
    )
    assert 0 < totals["good_steps"] <= 30 - skipped and totals["skipped_in_a_row"] == 0
    if optimizer == "adam":
        assert {
            int(value)
            for name, value in step.optimizer.state().items()
            if name.endswith("iterations")
        } == {30 - skipped}
    rates = [
        float(_call(step, [[0, 1]] * 30, count=1, done=done, scale=2.0**24)["learning_rate"])
        for done in range(4)
    ]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8], rtol=1e-5)
    assert step.traces == 1


def test_steps_that_no_scale_makes_finite_end_the_call(half_classifier, make_examples):
    examples = make_examples(9)
    tensors = _pooled(half_classifier, examples)
    tensors[5] = np.inf
    step = _make_step(half_classifier, examples, tensors=tensors)
    start = _values(half_classifier)
    totals = _call(step, [[4, 5]] * 25)
    # 19 are skipped, the 20th ends it; after 15 halvings the scale stays at 1. No loss of theirs
    # counts.
    assert (totals["steps"], totals["skipped_steps"], totals["finite"], totals["loss_scale"]) == (
        19,
        19,
        0,
        1.0,
    )
    assert totals["examples"] == 0 and totals["loss_sum"] == 0
    for path, value in _values(half_classifier).items():
        np.testing.assert_array_equal(value, start[path])
    totals = _call(step, [[4, 5], [0, 1], [2, 3]])
    assert (totals["steps"], totals["skipped_steps"], totals["finite"], totals["examples"]) == (
        3,
        1,
        1,
        4,
    )
    assert (_values(half_classifier)["head/kernel"] != start["head/kernel"]).any()


def test_label_smoothing_formula():
    logits, labels = (
        np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], np.float32),
        np.array([0, 2], np.int32),
    )
    log_p = np.log(_softmax(logits))
    # K = 3, s = 0.3: the true class has target 0.7 + 0.1, the others 0.1.
    expected = [
        -(0.8 * log_p[0, 0] + 0.1 * log_p[0, 1] + 0.1 * log_p[0, 2]),
        -(0.1 * log_p[1, 0] + 0.1 * log_p[1, 1] + 0.8 * log_p[1, 2]),
    ]
    np.testing.assert_allclose(objective.cross_entropy(logits, labels, 0.3), expected, rtol=1e-5)
    np.testing.assert_allclose(
        objective.cross_entropy(logits, labels), [-log_p[0, 0], -log_p[1, 2]], rtol=1e-5
    )


@pytest.mark.parametrize("batch_size", [4, 16])
def test_evaluation_counts_every_example_once_in_order(classifier, make_examples, batch_size):
    examples = make_examples(10)
    source = features.LiveSource(
        classifier, examples, classifier.boundary(), features.Views(0, 0, False)
    )
    logits = evaluation.EvalStep(classifier, source, batch_size)()
    assert logits.shape == (10, 3)
    np.testing.assert_allclose(
        logits,
        classifier.model.predict(examples.pixels.numpy().astype(np.float32), verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )
    assert keras.backend.backend() == "tensorflow"


def test_evaluation_sees_the_weights_of_now(classifier, make_examples):
    examples = make_examples(4)
    classifier.unfreeze("block3")
    source = features.LiveSource(
        classifier, examples, classifier.boundary(), features.Views(0, 0, False)
    )
    evaluate = evaluation.EvalStep(classifier, source, 4)
    evaluate()
    for path in ("backbone/block3_conv/kernel", "head/bias"):
        classifier.variables[path].assign(classifier.variables[path] + 1.0)
    np.testing.assert_allclose(
        evaluate(), classifier.model(tf.cast(examples.pixels, tf.float32)), rtol=1e-4, atol=1e-5
    )


def test_class_weights_multiply_the_loss_of_each_example(classifier, make_examples):
    examples, chosen, of_class = make_examples(9), [4, 0, 7, 2], np.array([2.0, 0.5, 1.0])
    before, inputs = _values(classifier), _pooled(classifier, examples)[chosen]
    totals = _call(
        _make_step(classifier, examples, loss=objective.CrossEntropy(class_weights=of_class)),
        [chosen],
    )
    logits, labels = inputs @ before["head/kernel"] + before["head/bias"], examples.labels[chosen]
    weights = of_class[labels]
    # divided by the examples, not by their weights
    error = weights[:, None] * (_softmax(logits) - np.eye(3)[labels]) / 4
    np.testing.assert_allclose(
        _values(classifier)["head/bias"],
        before["head/bias"] - 0.5 * error.sum(axis=0),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        _values(classifier)["head/kernel"],
        before["head/kernel"] - 0.5 * inputs.T @ error,
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        totals["loss_sum"], -(weights * np.log(_softmax(logits))[range(4), labels]).sum(), rtol=1e-5
    )
    assert totals["examples"] == 4


@pytest.mark.parametrize("what", ["pixels", "features", "cached features"])
def test_mixup_blends_images_or_features_and_targets(classifier, make_examples, what):
    examples, chosen = make_examples(9), [4, 0, 7, 2]
    partners, shares = (
        np.array([5, 3, 1, 0, 8, 7, 2, 6, 4], np.int32),
        np.linspace(0.1, 0.9, 9).astype(np.float32),
    )
    before, share, partner = _values(classifier), shares[chosen], partners[chosen]
    pixels = examples.pixels.numpy().astype(np.float32)

    def pooled(images):
        maps = classifier.backbone(classifier.preprocessing(images), training=False)
        return maps.numpy().mean(axis=(1, 2))

    def blended(rows, of_partners):
        weights = share.reshape(-1, *[1] * (rows.ndim - 1))
        return weights * rows + (1 - weights) * of_partners

    if what == "pixels":
        inputs, settings = pooled(blended(pixels[chosen], pixels[partner])), {}
    else:
        inputs = blended(pooled(pixels[chosen]), pooled(pixels[partner]))
        settings = {"blend": None, "tensors": pooled(pixels) if "cached" in what else None}
    logits = inputs @ before["head/kernel"] + before["head/bias"]
    targets = (
        share[:, None] * np.eye(3)[examples.labels[chosen]]
        + (1 - share)[:, None] * np.eye(3)[examples.labels[partner]]
    )
    error = (_softmax(logits) - targets) / 4
    totals = _call(
        _make_step(classifier, examples, **settings),
        [chosen],
        mix=mixing.Mix(tf.constant(partners), tf.constant(shares)),
    )
    np.testing.assert_allclose(
        _values(classifier)["head/bias"],
        before["head/bias"] - 0.5 * error.sum(axis=0),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        _values(classifier)["head/kernel"],
        before["head/kernel"] - 0.5 * inputs.T @ error,
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        totals["loss_sum"], -(targets * np.log(_softmax(logits))).sum(), rtol=1e-5
    )
    answers = np.where(share >= 0.5, examples.labels[chosen], examples.labels[partner])
    assert totals["correct"] == (logits.argmax(axis=1) == answers).sum()
