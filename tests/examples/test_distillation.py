"""examples/distillation.py: its loss worked out by NumPy, whether the teacher looks at pixels in
the step or did so before.
"""

import os

import keras
import numpy as np
import PIL.Image
import pytest

from tl_research.errors import CheckpointError, UserError
from tl_research.training.events import EpochEnded


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """A function that makes a small network of a seed the teacher, and returns it."""

    def make(seed=1, size=16, num_classes=3):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Rescaling(1 / 50), keras.layers.GlobalAveragePooling2D()]
        head = keras.layers.Dense(num_classes, kernel_initializer="random_normal")
        model = keras.Sequential([keras.Input((size, size, 3)), *layers, head])
        model.layers[-1].set_weights([10 * weights for weights in model.layers[-1].get_weights()])
        model.save(tmp_path / "teacher.keras")
        return model

    monkeypatch.setenv("TEACHER", str(tmp_path / "teacher.keras"))
    return make


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _expected_loss(run, photos, split, teacher):
    """Returns the mean loss of the training images by a run's final weights."""
    names = [file for file in split["files"] if file["side"] == "train"]
    images = np.stack([np.asarray(PIL.Image.open(photos / file["path"])) for file in names])
    labels = [split["classes"].index(file["class"]) for file in names]
    model = keras.saving.load_model(run / "export" / "model.keras", compile=False)
    student, taught = (
        network.predict(images.astype(np.float32), verbose=0) for network in (model, teacher)
    )
    hard = -np.log(_softmax(student)[np.arange(len(labels)), labels])
    soft = -(_softmax(taught / 2) * np.log(_softmax(student / 2))).sum(axis=1)
    return np.mean(0.5 * hard + 0.5 * 2**2 * soft)


def test_loss_is_that_of_the_formula(tiny_run, teacher, tmp_path, read_json):
    model = teacher()
    _, rows = tiny_run(
        "run",
        "distillation.py",
        augment=("none",),
        dropout=0.0,
        label_smoothing=0,
        epochs=(1, 0),
        learning_rate=(1e-9,),  # the weights stay as they are, so that all steps are of the same
    )
    split = read_json(tmp_path / "run" / "split.json")
    expected = _expected_loss(tmp_path / "run", tmp_path / "photos", split, model)
    assert float(rows[0]["train_loss"]) == pytest.approx(expected, rel=1e-4)


def test_kept_logits_are_those_of_each_view(tiny_run, teacher):
    """Three views in four epochs, one of them twice."""
    teacher()
    settings = {"augment": ("flip", "rotation=0.2"), "augment_views": 3}
    losses = []
    for cache in ("memory", "off"):
        _, rows = tiny_run(cache, "distillation.py", feature_cache=cache, epochs=(4, 0), **settings)
        losses.append([float(row["train_loss"]) for row in rows])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(losses[0]) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"feature_cache": "memory", "augment_views": 2},
        {"feature_cache": "off", "precision": "mixed_float16", "mixup": 0.4},
    ],
)
def test_run_goes_on_with_it(assert_resumes, teacher, settings):
    teacher()
    assert_resumes("distillation.py", epochs=(0, 2), crashes=(3,), **settings)


def test_other_teacher_is_not_gone_on_with(tiny_run, teacher):
    teacher(seed=1)
    with pytest.raises(RuntimeError, match="stop"):
        tiny_run("run", "distillation.py", observers=[_stop_after_an_epoch])
    teacher(seed=2)
    with pytest.raises(CheckpointError, match="differs in teacher of SHA-256") as error:
        tiny_run("run", "distillation.py")
    assert error.value.exit_code == 7


def _stop_after_an_epoch(event):
    if isinstance(event, EpochEnded):
        raise RuntimeError("stop")


@pytest.mark.parametrize("wrong", [{"num_classes": 4}, {"size": 20}, None])
def test_teacher_that_does_not_fit_is_named(tiny_run, teacher, wrong):
    if wrong:
        teacher(**wrong)
    with pytest.raises(UserError, match="TEACHER=.*teacher.keras cannot teach this run") as error:
        tiny_run("run", "distillation.py")
    assert "\n" not in str(error.value) and os.environ["TEACHER"] in str(error.value)
