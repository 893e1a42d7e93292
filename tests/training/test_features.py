"""Cached training is live training: the same numbers, computed once."""

import contextlib
import errno
import os

import numpy as np
import peak_memory
import pytest
import tensorflow as tf

from tl_research.config import Config, Phase
from tl_research.data import pipeline
from tl_research.errors import StorageError, UserError
from tl_research.models.classifier import Classifier
from tl_research.optim import schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.training import features, objective, steps
from tl_research.training.batch import EpochInputs


def _classifier(unfreeze="0%"):
    classifier = Classifier(Config(backbone="Tiny", weights="none", image_size=16), 3)
    classifier.unfreeze(unfreeze)
    return classifier


def test_view_of_an_epoch():
    fixed, fresh, plain = (
        features.Views(0, 3, True),
        features.Views(0, 0, True),
        features.Views(0, 3, False),
    )
    assert [fixed.of_epoch(epoch) for epoch in range(1, 8)] == [0, 1, 2, 0, 1, 2, 0]
    assert [fresh.of_epoch(epoch) for epoch in range(1, 5)] == [0, 1, 2, 3]
    assert [plain.of_epoch(epoch) for epoch in range(1, 5)] == [0, 0, 0, 0]
    # more views than epochs: those used only
    assert [fixed.used(epochs) for epochs in (0, 1, 2, 3, 9)] == [0, 1, 2, 3, 3]
    assert fresh.used(9) == 9 and plain.used(9) == 1
    assert plain.draws(0, 5).shape == (0, 7)
    assert np.isnan(fixed.draws(0, 5)).all() and fixed.draws(0, 5).shape == (5, 7)
    assert not np.isnan(fresh.draws(0, 5)).any()
    np.testing.assert_array_equal(fixed.draws(2, 5), pipeline.augmentation_draws(0, 2, 5, 7))


def _losses(classifier, source, views, num_steps, num_examples=36, batch_size=8):
    """The loss of each training step, one call a step."""
    groups = make_param_groups(
        classifier.trainable_variables(), {}, list(classifier.variables), Config()
    )
    step = steps.TrainStep(
        classifier,
        GroupedOptimizer(groups, Config(optimizer="adam")),
        source,
        objective.CrossEntropy(),
        schedules.make_schedule(Phase("p", 9, "", 1e-3, 0, 0), num_steps),
    )
    losses, epoch = [], 0
    while len(losses) < num_steps:
        epoch += 1
        indices, weights = pipeline.make_batches(
            pipeline.epoch_order(0, epoch, num_examples), batch_size
        )
        view = views.of_epoch(epoch)
        inputs = EpochInputs(
            *tf.nest.map_structure(tf.constant, (indices, weights, source.of_view(view), view))
        )
        for row in range(len(indices)):
            totals = step(inputs, row, 1, len(losses), len(losses))
            losses.append(float(totals["loss_sum"] / totals["examples"]))
    assert step.traces == 1
    return losses[:num_steps]


@pytest.mark.parametrize("unfreeze", ["0%", "block3"])
def test_losses_of_20_cached_steps_equal_live_ones(tiny_backbone, make_examples, unfreeze):
    examples, views = make_examples(36), features.Views(0, 2, True)
    live = _classifier(unfreeze)
    expected = _losses(live, features.LiveSource(live, examples, live.boundary(), views), views, 20)
    cached = _classifier(unfreeze)
    base = features.LiveSource(cached, examples, ("block2_relu",), views)
    stored = features.compute_features(base, 8)
    source = features.derive_features(cached, stored, cached.boundary(), 8)
    assert source.boundary == cached.boundary() and source.cached and not source.streamed
    received = _losses(cached, source, views, 20)
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    assert len(set(expected)) == 20
    other = _classifier(unfreeze)
    without = _losses(
        other,
        features.derive_features(other, stored, other.boundary(), 8),
        features.Views(0, 1, True),
        20,
    )
    # the second epoch's view matters
    assert np.abs(np.array(without[5:10]) / expected[5:10] - 1).max() > 1e-4


def _fetch(source, rows, view, streamed=None):
    of_view = source.of_view(view)
    found = source.lookup(rows, of_view) if streamed is None else streamed
    return source.compute(source.read(rows, of_view, found))


def test_a_view_is_computed_when_it_is_first_used(tiny_backbone, make_examples):
    examples, views, classifier = make_examples(11), features.Views(7, 3, True), _classifier()
    seen = []

    @contextlib.contextmanager
    def bar(view):
        yield lambda *counts: seen.append((view, *counts))

    source = features.LiveSource(classifier, examples, ("block1_relu", "block2_relu"), views)
    cached = features.compute_features(source, 4, bar)
    later = features.derive_features(classifier, cached, ("block2_bn",), 4)
    assert seen == []
    first, second = cached.kept(2)
    assert first.shape == (11, 8, 8, 6) and second.shape == (11, 4, 4, 8)
    cached.of_view(2)
    later.of_view(2)
    assert seen == [(2, done, 3) for done in range(1, 4)]
    images = classifier.augmentation.apply_draws(
        examples.pixels, tf.constant(pipeline.augmentation_draws(7, 2, 11, 7))
    )
    expected = classifier.frozen_part(("block2_relu",))(images)[0]
    np.testing.assert_allclose(second, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        _fetch(cached, tf.constant([10, 3]), 2)[1], tf.gather(second, [10, 3])
    )


def test_filling_the_cache_again_gives_equal_bits(tiny_backbone, make_examples):
    examples, views = make_examples(11), features.Views(0, 2, True)
    first, second = (
        features.compute_features(
            features.LiveSource(_classifier(), examples, ("block2_relu",), views), 4
        )
        for _ in range(2)
    )
    for view in (1, 0):
        np.testing.assert_array_equal(first.kept(view)[0], second.kept(view)[0])


@pytest.mark.parametrize("boundary", [None, ("block2_bn",), ("block1_relu",)])
def test_derived_features_equal_recomputed_ones(tiny_backbone, make_examples, boundary):
    examples, views, classifier = make_examples(11), features.Views(0, 2, True), _classifier()
    boundary = boundary or classifier.head_boundary
    base = features.compute_features(
        features.LiveSource(classifier, examples, ("block1_relu",), views), 4
    )
    derived = features.derive_features(classifier, base, boundary, 4)
    recomputed = features.compute_features(
        features.LiveSource(classifier, examples, boundary, views), 4
    )
    for view in (0, 1):
        rows = tf.constant([10, 0, 5])
        for received, expected in zip(_fetch(derived, rows, view), recomputed.kept(view)):
            np.testing.assert_allclose(received, tf.gather(expected, rows), rtol=1e-4, atol=1e-5)


def test_features_that_float16_cannot_hold_are_refused():
    with pytest.raises(
        UserError,
        match=(
            "--cache_dtype=float16 with features up to 7e[+]04; expected at most 65504; use "
            "bfloat16"
        ),
    ):
        features.Storage(dtype="float16").collect([[np.float32([[1.0], [-7e4]])]], 2)
    (kept,) = features.Storage(dtype="float16").collect([[np.float32([[1.0], [-65504.0]])]], 2)
    assert kept.numpy().tolist() == [[1.0], [-65504.0]]


def test_derived_features_are_those_of_the_weights_of_now(tiny_backbone, make_examples):
    """A layer that an earlier phase trained lies behind the cache: what is derived must not be of
    its old weights.
    """
    examples, views, classifier = make_examples(6), features.Views(0, 0, False), _classifier()
    base = features.compute_features(
        features.LiveSource(classifier, examples, ("block2_relu",), views), 4
    )
    features.derive_features(classifier, base, classifier.head_boundary, 4).kept(0)
    kernel = classifier.variables["backbone/block3_conv/kernel"]
    kernel.assign(kernel * 2.0 + 0.1)
    derived = features.derive_features(classifier, base, classifier.head_boundary, 4)
    expected = features.compute_features(
        features.LiveSource(classifier, examples, classifier.head_boundary, views), 4
    ).kept(0)[0]
    np.testing.assert_allclose(_fetch(derived, tf.range(6), 0)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(None, 0), ("float16", 1e-3), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_features_on_disk_and_in_fewer_bits_are_those_in_memory(
    tiny_backbone, make_examples, tmp_path, dtype, tolerance, on_disk
):
    """The tolerances are the relative rounding of 11 and 8 significant bits, twice: of the kept and
    the derived features.
    """
    examples, views, classifier = make_examples(11), features.Views(0, 2, True), _classifier()
    live = features.LiveSource(classifier, examples, ("block1_relu",), views)
    storage = features.Storage(str(tmp_path) if on_disk else None, dtype)
    expected = features.derive_features(
        classifier, features.compute_features(live, 4), ("block2_bn",), 4
    )
    base = features.compute_features(live, 4, storage=storage)
    source = features.derive_features(classifier, base, ("block2_bn",), 4, storage)
    (kept,) = base.kept(1)
    assert kept.dtype == (dtype or "float32") and kept.shape == (11, 8, 8, 6)
    # the files have no names
    assert source.streamed == base.streamed == on_disk and not list(tmp_path.iterdir())
    rows = np.array([[10, 0, 5], [3, 3, 1]], np.int32)
    streamed = list(source.stream(rows, 1)) if on_disk else [None, None]
    for row, brought in zip(rows, streamed, strict=True):
        (received,), (wanted,) = (
            _fetch(each, tf.constant(row), 1, brought if each is source else None)
            for each in (source, expected)
        )
        assert received.dtype == tf.float32
        assert np.linalg.norm(received - wanted) <= 2 * tolerance * np.linalg.norm(wanted)


def test_disk_without_room_is_a_storage_error(tiny_backbone, make_examples, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    live = features.LiveSource(
        _classifier(), make_examples(3), ("block1_relu",), features.Views(0, 1, True)
    )
    with pytest.raises(StorageError, match="No space left on device"):
        features.compute_features(live, 4, storage=features.Storage(str(tmp_path))).kept(0)
    assert not list(tmp_path.iterdir())


def test_kept_features_are_in_memory_once():
    part = np.ones((100, 256, 256), np.float32)  # 25 MiB
    peak_memory.forget_peak()
    before = peak_memory.peak_mib()
    (kept,) = features.Storage().collect(([part] for _ in range(8)), 790)
    assert kept.shape == (790, 256, 256) and tf.reduce_min(kept[-1]) == 1.0
    assert peak_memory.peak_mib() - before < 1.15 * 8 * part.nbytes / 2**20
