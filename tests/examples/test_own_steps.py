"""examples/sam.py and examples/gradient_accumulation.py, and steps that are refused."""

import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf

from tl_research import extension
from tl_research.config import Config
from tl_research.data.pipeline import Examples
from tl_research.errors import AuditError, UserError
from tl_research.extension import Extension
from tl_research.models.classifier import Classifier
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.training.batch import EpochInputs
from tl_research.training.features import CachedSource, LiveSource, Views
from tl_research.training.objective import CrossEntropy
from tl_research.training.steps import TrainStep

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_EXAMPLES = os.path.join(_ROOT, "examples")
_INPUTS = np.random.RandomState(0).uniform(size=(9, 10)).astype(np.float32)
_ONE_PHASE = {
    "phases": ("only",),
    "epochs": (2,),
    "unfreeze": ("block3",),
    "learning_rate": (1e-2,),
    "patience": (0,),
    "augment": ("flip",),
    "feature_cache": "memory",
}
_LIVE = {"feature_cache": "off", "augment_views": 0}
_FORMS = {
    "cached": _ONE_PHASE,
    "live float16": {**_ONE_PHASE, **_LIVE, "precision": "mixed_float16"},
}


def take_steps(kind, rows, count=1, **kwargs):
    """Takes steps of SGD, rate 0.5, with the head of the tiny backbone on `_INPUTS`.

    Returns ({path: array} before them, the same after them, the totals of each); arguments are the
    class, the rows of the batch and more for the class.
    """
    classifier = Classifier(
        Config(backbone="Tiny", weights="none", image_size=16, augment="none", dropout=0.0), 3
    )
    classifier.unfreeze("0%")
    variables = classifier.trainable_variables()
    groups = make_param_groups(variables, {}, list(classifier.variables), Config())
    names, pixels = tuple(map(str, range(9))), tf.zeros([9, 16, 16, 3], tf.uint8)
    examples = Examples(names, names, np.arange(9, dtype=np.int32) % 3, 16, pixels)
    inputs, boundary = [tf.constant(_INPUTS)], classifier.boundary()
    live = LiveSource(classifier, examples, boundary, Views(0, 0, False))
    source = CachedSource(live, boundary, lambda _: inputs, [tf.float32])
    optimizer = GroupedOptimizer(groups, Config(optimizer="sgd", momentum=0.0))
    rate = tf.constant(0.5)
    step = kind(classifier, optimizer, source, CrossEntropy(), lambda _: rate, **kwargs)
    before = {path: variable.numpy() for path, variable in variables.items()}
    indices = tf.constant([rows], tf.int32)
    epoch = EpochInputs(indices, tf.ones(indices.shape), inputs, tf.constant(0))
    totals = [step(epoch, 0, 1, number, number) for number in range(count)]
    after = {path: variable.numpy() for path, variable in variables.items()}
    return before, after, [{name: t.numpy() for name, t in each.items()} for each in totals]


@pytest.fixture
def take_step(tiny_backbone):
    """`take_steps` of one step."""

    def take(*args, **kwargs):
        before, after, (totals,) = take_steps(*args, **kwargs)
        return before, after, totals

    return take


@pytest.fixture
def accumulation(tmp_path):
    """A function of a number of parts to the path of the example with that many."""

    def write(parts):
        with open(os.path.join(_EXAMPLES, "gradient_accumulation.py")) as file:
            text = file.read()
        assert text.count("PARTS = 4\n") == 1
        (tmp_path / f"{parts}.py").write_text(text.replace("PARTS = 4\n", f"PARTS = {parts}\n"))
        return str(tmp_path / f"{parts}.py")

    return write


def _loss_and_gradients(kernel, bias, labels, inputs):
    logits = inputs.astype(np.float64) @ kernel + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    error = (softmax - np.eye(3)[labels]) / len(labels)
    loss = -np.log(softmax[range(len(labels)), labels]).sum()
    return loss, inputs.T @ error, error.sum(axis=0)


# Sharpness-aware minimization.


def test_sam_takes_the_gradient_at_the_distance_up_the_slope(take_step):
    rows = [4, 0, 7, 2]
    step = extension.load(os.path.join(_EXAMPLES, "sam.py")).Step
    before, after, totals = take_step(step, rows)
    inputs, labels = _INPUTS[rows], np.array(rows) % 3
    kernel, bias = before["head/kernel"], before["head/bias"]
    loss, of_kernel, of_bias = _loss_and_gradients(kernel, bias, labels, inputs)
    up = 0.05 / np.sqrt((of_kernel**2).sum() + (of_bias**2).sum())
    _, second, second_bias = _loss_and_gradients(
        kernel + up * of_kernel, bias + up * of_bias, labels, inputs
    )
    assert np.abs(second - of_kernel).max() > 1e-3  # so that plain SGD would fail
    np.testing.assert_allclose(after["head/kernel"], kernel - 0.5 * second, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["head/bias"], bias - 0.5 * second_bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(totals["loss_sum"], loss, rtol=1e-5)


@pytest.mark.parametrize("form", _FORMS)
def test_sam_resumes_to_the_same_bits(assert_resumes, form):
    results, _ = assert_resumes("sam.py", crashes=(4,), **_FORMS[form])
    assert results["phases"][0]["audit"]["trainable_changed"] == 4


def test_sam_is_compiled_whole(take_step):
    """XLA would raise an error if it could not be."""
    step = extension.load(os.path.join(_EXAMPLES, "sam.py")).Step
    _, plain, _ = take_step(step, [4, 0, 7, 2])
    _, compiled, _ = take_step(step, [4, 0, 7, 2], xla=True)
    for path, value in plain.items():
        np.testing.assert_allclose(compiled[path], value, rtol=1e-5, atol=1e-6)


# Gradient accumulation.


@pytest.mark.parametrize("parts", [2, 9])
def test_parts_of_a_batch_add_up_to_the_whole(take_step, accumulation, parts):
    rows = [4, 0, 7, 2, 1]
    _, expected, whole = take_step(TrainStep, rows)
    _, after, totals = take_step(extension.load(accumulation(parts)).Step, rows)
    for path, value in expected.items():
        np.testing.assert_allclose(after[path], value, rtol=1e-6, atol=1e-7)
    for name in ("loss_sum", "correct", "examples", "gradient_norm_sum"):
        np.testing.assert_allclose(totals[name], whole[name], rtol=1e-6)


def test_one_part_is_the_step_itself(take_step, accumulation):
    rows = [4, 0, 7, 2, 1]
    expected, same = (
        take_step(kind, rows)[1:] for kind in (TrainStep, extension.load(accumulation(1)).Step)
    )
    for arrays, others in zip(same, expected):
        for name, value in others.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def test_accumulation_resumes_to_the_same_bits(assert_resumes):
    form = _FORMS["live float16"]
    results, _ = assert_resumes("gradient_accumulation.py", crashes=(4,), **form)
    assert results["phases"][0]["audit"]["trainable_changed"] == 4


# Noise in the gradients, the recipe of docs/extending.md.


@pytest.fixture
def noise(tmp_path):
    """The path of the recipe."""
    with open(os.path.join(_ROOT, "docs", "extending.md")) as file:
        (code,) = re.findall("```python\n(import tensorflow as tf\n.*?)```", file.read(), re.DOTALL)
    (tmp_path / "noise.py").write_text(code)
    return str(tmp_path / "noise.py")


def test_noise_of_a_step_depends_on_the_variable_and_the_step(tiny_backbone, noise):
    rows = [4, 0, 7, 2]
    inputs, labels = _INPUTS[rows], np.array(rows) % 3
    before, after, _ = take_steps(extension.load(noise).Step, rows, 2)
    weights = [before["head/kernel"], before["head/bias"]]
    for step in (0, 1):
        _, *gradients = _loss_and_gradients(*weights, labels, inputs)
        draws = [
            tf.random.stateless_normal(
                of.shape, tf.constant([(2000 + i) << 32, step], tf.int64), alg="philox"
            ).numpy()
            for i, of in enumerate(weights)
        ]
        weights = [
            of - 0.5 * (gradient + 1e-3 * draw)
            for of, gradient, draw in zip(weights, gradients, draws)
        ]
    np.testing.assert_allclose(after["head/kernel"], weights[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["head/bias"], weights[1], rtol=1e-5, atol=1e-6)


def test_noise_resumes_to_the_same_bits(assert_resumes, noise):
    results, _ = assert_resumes(noise, crashes=(4,), **_FORMS["live float16"])
    assert results["phases"][0]["audit"]["trainable_changed"] == 4


# Replicas.

_SCRIPT = r"""
import contextlib, json, sys
import tensorflow as tf
sys.path.insert(0, sys.argv[1])
import test_own_steps, tiny_network
from tl_research import extension
from tl_research.models import backbones

halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
backbones.BACKBONES["Tiny"] = tiny_network.TINY
backbones.build_backbone = tiny_network.build_tiny
losses, strategy = {}, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for path in sys.argv[2:]:
    for scope in (contextlib.nullcontext(), strategy.scope()):
        with scope:
            step = extension.load(path).Step
            _, _, totals = test_own_steps.take_steps(step, [4, 0, 7, 2, 1, 8], 5)
        losses.setdefault(path, []).append([float(each["loss_sum"]) for each in totals])
print(json.dumps(losses))
"""


def test_two_replicas_have_the_losses_of_one(run_script, noise):
    sam, accumulation = (
        os.path.join(_EXAMPLES, name) for name in ("sam.py", "gradient_accumulation.py")
    )
    here = os.path.dirname(os.path.abspath(__file__))
    stdout = run_script(_SCRIPT, here, sam, accumulation, noise)
    losses = json.loads(stdout.splitlines()[-1])
    for one, two in losses.values():
        np.testing.assert_allclose(two, one, rtol=1e-5)
        assert len(set(one)) == 5
    assert losses[sam][0][0] == pytest.approx(losses[accumulation][0][0], rel=1e-6)
    assert abs(losses[sam][0][4] / losses[accumulation][0][4] - 1) > 1e-3


# What is refused.


class _Moves(TrainStep):
    """Also moves a variable that is not its own."""

    def update(self, gradients, loss, sums, rate, scale):
        self.classifier.variables["backbone/block1_conv/kernel"].assign_add(
            tf.ones([3, 3, 3, 6]) * 1e-3
        )
        return super().update(gradients, loss, sums, rate, scale)


class _Gradients(TrainStep):
    def gradients(self, batch):
        return super().gradients(batch, None)


class _TooFew(TrainStep):
    def gradients(self, batch, scale):
        gradients, loss, sums = super().gradients(batch, scale)
        return gradients[:1], loss, sums


class _NoneForOne(TrainStep):
    def gradients(self, batch, scale):
        gradients, loss, sums = super().gradients(batch, scale)
        return [None, *gradients[1:]], loss, sums


class _TooFewToApply(TrainStep):
    def update(self, gradients, loss, sums, rate, scale):
        return super().update(gradients[1:], loss, sums, rate, scale)


class _NoStep:
    pass


def test_step_that_moves_what_is_not_its_own_fails_the_audit(tiny_run):
    with pytest.raises(AuditError, match="1 frozen variables moved .backbone/block1_conv") as error:
        tiny_run("moves", parts=Extension(Step=_Moves), **_ONE_PHASE)
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    "step, message",
    [
        (_Gradients, r"Step.gradients\(self, batch\).*expected \(self, batch, scale\)"),
        (_NoStep, r"Step is .*_NoStep.*; expected a subclass of .*TrainStep"),
        (_TooFew, "received 1 gradients, .*; expected one for each of 4 variables; freeze"),
        (
            _NoneForOne,
            r"received 4 gradients, None for \['backbone/block3_conv/kernel'\]; expected one",
        ),
        (_TooFewToApply, "received 3 gradients, .*; expected one for each of 4 variables"),
    ],
)
def test_step_that_cannot_be_taken_is_one_line(tiny_run, step, message):
    with pytest.raises(UserError, match=message) as error:
        tiny_run("refused", parts=Extension(Step=step), **_ONE_PHASE)
    assert "\n" not in str(error.value)
