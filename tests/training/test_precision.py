"""Every precision, compiled with XLA or not, folded or plain, live or cached, trains what it should
and as float32 does.
"""

import dataclasses
import itertools
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tl_research.config import Config
from tl_research.data.dataset import Dataset
from tl_research.errors import CompileError
from tl_research.extension import Extension
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.reporting.console import Console
from tl_research.reporting.recorder import Recorder
from tl_research.reporting.summaries import Summaries
from tl_research.run.directory import RunDirectory
from tl_research.signals import Signals
from tl_research.training import loop, time_limit
from tl_research.training.plan import Plan
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState

# Of the losses of two epochs against float32, uncompiled, plain and live: 2^-24, 2^-11 and 2^-8 for
# each rounding.
TOLERANCES = {"float32": 1e-5, "mixed_float16": 2e-3, "mixed_bfloat16": 1.5e-2}
COMBINATIONS = list(itertools.product(TOLERANCES, (False, True), ("off", "on"), ("off", "memory")))


def _build(name, image_size, weights, seed=0, middle=None):
    """Returns a backbone of a frozen convolution and a block: depthwise with strides, BatchNorm, a
    convolution and a sum.
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((image_size, image_size, 3), name="input")
    x = layers.Conv2D(8, 3, 2, "same", use_bias=False, name="block1_conv")(inputs)
    x = layers.ReLU(6.0, name="block1_relu")(layers.BatchNormalization(name="block1_bn")(x))
    x = layers.DepthwiseConv2D(3, 2, "same", use_bias=False, name="block2_depthwise")(x)
    x = before = layers.ReLU(6.0, name="block2_relu")(
        layers.BatchNormalization(name="block2_bn")(x)
    )
    x = layers.BatchNormalization(name="block2_project_bn")(
        layers.Conv2D(8, 1, name="block2_project")(x)
    )
    x = middle(x) if middle else x
    model = keras.Model(inputs, layers.Add(name="block2_add")([x, before]), name="small")
    draw = np.random.RandomState(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [draw.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()]
            )
    return model


@pytest.fixture
def train(make_examples, tmp_path, monkeypatch):
    """A function that trains the network's head and `block2` for two epochs of three steps.

    Returns the `Plan` and the `TrainState`.
    """
    monkeypatch.setitem(
        backbones.BACKBONES,
        "Small",
        backbones.BackboneSpec("Small", "small", "lite", 16, r"(?P<block>block\d)_", False, "", ""),
    )

    def train(precision, xla, fold, cache, middle=None, flag="auto", batchnorm="inference"):
        monkeypatch.setattr(
            backbones,
            "build_backbone",
            lambda *args, **kwargs: _build(*args, **kwargs, middle=middle),
        )
        keras.config.set_dtype_policy(precision)
        config = Config(
            dataset="drawn_flowers",
            backbone="Small",
            workdir=str(tmp_path / str(len(os.listdir(tmp_path)))),
            image_size=16,
            batch_size=4,
            phases=("finetune",),
            epochs=(2,),
            unfreeze=("block2",),
            learning_rate=(1e-2,),
            patience=0,
            optimizer="sgd",
            augment=("none",),
            precision=precision,
            xla=flag,
            fold_batchnorm=fold,
            verbose=True,
            feature_cache=cache,
            batchnorm=batchnorm,
        )
        classifier = Classifier(dataclasses.replace(config, weights="none"), 3)
        validation = make_examples(5, seed=1)
        data = Dataset(("0", "1", "2"), make_examples(10), validation, validation, ())
        with RunDirectory(config) as directory:
            plan = Plan(config, Extension(), classifier, data, directory, xla=xla, started=0.0)
            state, summaries = TrainState(), Summaries(directory.path, -1)
            recorder = Recorder(plan.objective.answer, data, directory, summaries)
            observers = [recorder, Console(config)]
            loop.fit(plan, state, resume=Resume(plan, directory, Signals()), observers=observers)
            summaries.close()
        return plan, state

    yield train
    keras.config.set_dtype_policy("float32")


def _losses(state):
    return [row[name] for row in state.past.history for name in ("train_loss", "val_loss")]


_reference = []  # the losses of the first combination, which every other one is compared with


@pytest.mark.parametrize("precision, xla, fold, cache", COMBINATIONS, ids=lambda value: str(value))
def test_every_combination_trains_exactly_its_set_and_as_float32_does(
    train, capsys, precision, xla, fold, cache
):
    if not _reference:
        _reference.extend(_losses(train(*COMBINATIONS[0])[1]))
        capsys.readouterr()
    plan, state = train(precision, xla, fold, cache)
    (ended,) = state.past.finished
    variables = plan.classifier.variables
    count = len(variables)
    # Two kernels and a bias, gamma and beta of two BatchNorms, the head's two.
    assert ended["audit"] == {
        "trainable_changed": 9,
        "trainable_total": 9,
        "frozen_changed": 0,
        "frozen_total": count - 9,
        "batchnorm_stats_changed": 0,
    }
    assert ended["traces"] == 1 and plan.compiler.xla == xla and plan.cache.plan.place == cache
    assert 0 < ended["compile_seconds"] < ended["seconds"]
    assert (
        f"in {ended['compile_seconds']:.1f} s, XLA {'on' if xla else 'off'}\n"
        in capsys.readouterr().out
    )
    np.testing.assert_allclose(_losses(state), _reference, rtol=TOLERANCES[precision])
    if precision != "float32":
        assert plan.classifier.backbone.compute_dtype == precision.removeprefix("mixed_")
        assert _losses(state) != _reference
    assert {str(variable.dtype) for variable in variables.values()} == {"float32"}
    slots = {
        name: value
        for name, value in state.optimizer.state().items()
        if not name.endswith("/iterations")
    }
    assert len(slots) == 9 and {str(value.dtype) for value in slots.values()} == {"float32"}
    assert state.weights.logits["selected"].dtype == np.float32
    assert ("skipped_steps" in ended) == (precision == "mixed_float16") and not ended.get(
        "skipped_steps"
    )


def _printed(x):
    """An operation on text, which XLA does not have, that changes nothing."""
    return x + 0.0 * tf.strings.to_number(tf.strings.as_string(tf.reduce_sum(x)))


def test_what_xla_cannot_compile_is_named_and_with_auto_goes_on_without(train, capsys):
    plan, state = train(
        "float32", True, "on", "off", middle=layers.Lambda(_printed, name="block2_printed")
    )
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith("warning: XLA cannot compile operation ")
    assert "AsString of layer block2_printed: " in warning and warning.endswith(
        "; use --xla=off; continuing without XLA"
    )
    (ended,) = state.past.finished
    assert (
        ended["traces"] == 1 and not plan.compiler.xla and ended["audit"]["trainable_changed"] == 9
    )


def test_what_xla_cannot_compile_ends_a_run_that_insists(train):
    with pytest.raises(
        CompileError,
        match="^XLA cannot compile operation .*AsString of layer block2_printed: [^\n]*$",
    ) as error:
        train(
            "float32",
            True,
            "on",
            "off",
            middle=layers.Lambda(_printed, name="block2_printed"),
            flag="on",
        )
    assert error.value.exit_code == 1


def test_preparing_a_step_leaves_batch_statistics_where_they_were(train, monkeypatch):
    moved, prepare = [], time_limit.prepare

    def values(classifier):
        return [variable.numpy() for variable in classifier.variables.values()]

    def spy(plan, *arguments):
        before = values(plan.classifier)
        setup = prepare(plan, *arguments)
        after = values(plan.classifier)
        moved.extend((value != old).any() for value, old in zip(after, before))
        return setup

    monkeypatch.setattr(time_limit, "prepare", spy)
    _, state = train("float32", False, "on", "off", batchnorm="training")
    (ended,) = state.past.finished
    assert moved and not any(moved) and ended["audit"]["batchnorm_stats_changed"] == 4
