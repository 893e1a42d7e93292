"""examples/muon.py and examples/lamb.py: over two phases, and resumed to the same bits."""

import os

import keras
import numpy as np
import pytest

from tl_research import extension
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.extension import Extension
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import ParamGroup
from tl_research.training.events import PhaseBegan

_EXAMPLES = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "examples"
)
_FORMS = {
    "cached": {"feature_cache": "memory", "epochs": (1, 2)},
    "live float16": {
        "feature_cache": "off",
        "augment": ("flip",),
        "augment_views": 0,
        "precision": "mixed_float16",
        "phases": ("only",),
        "epochs": (2,),
        "unfreeze": ("block3",),
        "learning_rate": (1e-2,),
        "patience": (0,),
    },
}


def _optimizer(name, values):
    """Returns (optimizer of an example, {path: variable}) of one group with rate 1."""
    make = extension.load(os.path.join(_EXAMPLES, name)).make_optimizer
    variables = {path: keras.Variable(value.astype(np.float32)) for path, value in values.items()}
    group = ParamGroup("backbone", tuple(variables), tuple(variables.values()), 1.0)
    return GroupedOptimizer([group], Config(optimizer="adam"), make_optimizer=make), variables


@pytest.mark.parametrize("form", _FORMS)
def test_muon_resumes_to_the_same_bits(assert_resumes, form):
    began = []

    def observer(event):
        if isinstance(event, PhaseBegan):
            began.append([group.name for group in event.groups])

    results, _ = assert_resumes("muon.py", crashes=(7,), observers=[observer], **_FORMS[form])
    assert began[-1] == ["backbone[Muon]", "backbone", "head"]
    audits = [phase["audit"] for phase in results["phases"]]
    assert [audit["trainable_changed"] for audit in audits][-1] == 4
    assert not any(audit["frozen_changed"] for audit in audits)


def test_lamb_resumes_to_the_same_bits(assert_resumes):
    results, _ = assert_resumes("lamb.py", crashes=(7,), **_FORMS["cached"])
    assert results["phases"][-1]["audit"]["trainable_changed"] == 4


def test_muon_is_for_matrices_and_flattens_a_kernel(tmp_path):
    draw = np.random.RandomState(0)
    shapes = {"kernel": (2, 2, 3, 5), "depthwise": (3, 3, 4, 1), "bias": (5,), "matrix": (12, 5)}
    values = {f"backbone/a/{name}": draw.normal(size=shape) for name, shape in shapes.items()}
    values["backbone/a/matrix"] = values["backbone/a/kernel"].reshape(12, 5)
    optimizer, variables = _optimizer("muon.py", values)
    groups = {group.name: group.paths for group in optimizer.groups}
    assert groups == {
        "backbone[Muon]": ("backbone/a/kernel", "backbone/a/matrix"),
        "backbone": ("backbone/a/depthwise", "backbone/a/bias"),
    }
    gradients = {
        path: draw.normal(size=value.shape).astype(np.float32) for path, value in values.items()
    }
    gradients["backbone/a/matrix"] = gradients["backbone/a/kernel"].reshape(12, 5)
    optimizer.apply([gradients[path] for paths in groups.values() for path in paths], 0.1)
    kernel, matrix = variables["backbone/a/kernel"].numpy(), variables["backbone/a/matrix"].numpy()
    np.testing.assert_array_equal(kernel.reshape(12, 5), matrix)
    # All singular values of the step are nearly equal: 0.2 sqrt(12) times the rate, to 35 %.
    step = (values["backbone/a/matrix"] - matrix) / (0.1 * 0.2 * np.sqrt(12))
    singular = np.linalg.svd(step, compute_uv=False)
    assert singular.min() > 0.65 and singular.max() < 1.25
    expected = values["backbone/a/bias"] - 0.1 * np.sign(gradients["backbone/a/bias"])
    np.testing.assert_allclose(variables["backbone/a/bias"], expected, rtol=1e-4)  # Adam's first


def test_lamb_steps_by_the_norm_of_a_variable_and_does_not_decay_vectors():
    draw = np.random.RandomState(0)
    values = {
        "backbone/a/kernel": draw.normal(size=(3, 4)),
        "backbone/a/bias": draw.normal(size=4),
    }
    optimizer, variables = _optimizer("lamb.py", values)
    gradients = [np.float32(draw.normal(size=value.shape)) for value in values.values()]
    optimizer.apply(gradients, 0.1)
    for (path, value), gradient, decay in zip(values.items(), gradients, (0.01, 0.0)):
        decayed = value * (1 - 0.1 * decay)
        ratio = np.linalg.norm(decayed) / np.sqrt(value.size)  # Adam's first step is the sign
        expected = decayed - 0.1 * ratio * np.sign(gradient)
        np.testing.assert_allclose(variables[path], expected, rtol=1e-4, atol=1e-5)


def test_optimizer_that_cannot_be_used_is_told_before_training(tiny_run, tmp_path):
    def make_optimizer(group):
        return keras.optimizers.SGD(clipnorm=1.0) if group.name == "backbone" else None

    with pytest.raises(UserError, match=r"make_optimizer\(backbone\): received clipnorm=1.0"):
        tiny_run("refused", parts=Extension(make_optimizer=make_optimizer))
    assert not (tmp_path / "refused" / "checkpoints").exists()
