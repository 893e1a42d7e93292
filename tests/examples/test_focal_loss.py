"""examples/focal_loss.py: the loss by its formula, and a run that goes on with it."""

import os
import types

import numpy as np
import pytest
import tensorflow as tf

from tl_research import extension
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.training import objective

PATH = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "focal_loss.py")
LABELS = np.int32([0, 0, 1, 0])


def _made(**settings):
    train, make = types.SimpleNamespace(labels=LABELS), extension.load(PATH).make_objective
    return objective.make(Config(**settings), train, make)


@pytest.mark.parametrize("class_weights, alpha", [("none", [1, 1]), ("balanced", [2 / 3, 2])])
def test_loss_is_that_of_the_formula(class_weights, alpha):
    logits = np.random.RandomState(0).normal(0, 2, (4, 2)).astype(np.float32)
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[range(4), LABELS]
    expected = -np.array(alpha)[LABELS] * (1 - p) ** 2 * np.log(p)
    batch = types.SimpleNamespace(labels=LABELS, partner_labels=None)
    received = _made(class_weights=class_weights).losses(tf.constant(logits), batch)
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_command_of_the_header_follows_the_recipe():
    """flowers.flags smooths labels, which the command has to take back."""
    with open(PATH) as file:
        (command,) = (line for line in file if line.startswith("    python train.py"))
    with open(os.path.join(os.path.dirname(PATH), "..", "flowers.flags")) as file:
        recipe = [line.strip() for line in file if line.startswith("--")]
    flags = dict(flag[2:].split("=", 1) for flag in [*recipe, *command.split()[2:]])
    settings = {name: flags[name] for name in flags if name not in ("flagfile", "extension")}
    assert _made(**settings).label_smoothing == 0


def test_smoothed_labels_are_refused():
    with pytest.raises(
        UserError, match="--label_smoothing=0.2 with _Focal, which does not support"
    ):
        _made(label_smoothing=0.2)


@pytest.mark.parametrize(
    "settings",
    [{"crashes": (13,)}, {"precision": "mixed_float16", "epochs": (0, 2), "crashes": (3,)}],
)
def test_run_goes_on_with_it(assert_resumes, settings):
    _, rows = assert_resumes("focal_loss.py", class_weights="balanced", **settings)
    for row in rows:  # classes are told apart by chance only: -log p is about ln 3, (1 - p)^2 4/9
        assert float(row["train_loss"]) == pytest.approx(4 / 9 * np.log(3), rel=0.35)
        assert float(row["val_loss"]) == pytest.approx(np.log(3), rel=0.2)  # the plain one
