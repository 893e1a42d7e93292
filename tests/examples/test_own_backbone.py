"""A backbone from a `.keras` file, and its weights from another."""

import keras
import numpy as np
import pytest
from keras import layers


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A model in the file that the example reads."""
    keras.utils.set_random_seed(7)
    x = inputs = keras.Input((16, 16, 3))
    for number in (1, 2):
        x = layers.Conv2D(6, 3, 2, use_bias=False, name=f"block{number}_conv")(x)
        x = layers.BatchNormalization(name=f"block{number}_bn")(x)
    inner = keras.Sequential([layers.Conv2D(8, 1), layers.BatchNormalization()], name="block3_pair")
    model = keras.Model(inputs, layers.ReLU(name="block3_relu")(inner(x)), name="mine")
    model.save(tmp_path / "mine.keras")
    monkeypatch.setattr("os.environ", {"OWN_BACKBONE": str(tmp_path / "mine.keras")})
    return model


def test_begins_with_the_weights_of_the_file_and_is_resumed(
    saved, assert_resumes, tmp_path, capsys
):
    results, _ = assert_resumes(
        "own_backbone.py", epochs=(1, 1), unfreeze=("0%", "block2"), crashes=(3, 8), verbose=True
    )
    said = capsys.readouterr().out
    assert "model: mine, weights its own, 2 BatchNorm layers folded" in said
    assert "backbone: 1 BatchNorm layers inside other layers are not folded" in said
    # the head; block 2: kernel, gamma, beta; block 3: kernel, bias, gamma, beta
    trained = [phase["audit"]["trainable_changed"] for phase in results["phases"]]
    assert trained == [2, 2 + 3 + 4]

    model = keras.saving.load_model(tmp_path / "unbroken" / "export" / "model.keras")
    backbone = model.get_layer("backbone").backbone
    kernels = [each.get_layer("block1_conv").kernel for each in (backbone, saved)]
    np.testing.assert_array_equal(*kernels)  # frozen


def test_weights_of_an_exported_model_replace_those_of_the_file(saved, tiny_run, tmp_path, capsys):
    tiny_run("first", "own_backbone.py", epochs=(0, 1), unfreeze=("0%", "all"))
    exported = str(tmp_path / "first" / "export" / "model.keras")
    tiny_run("second", "own_backbone.py", epochs=(1, 0), weights=exported)
    models = [
        keras.saving.load_model(tmp_path / name / "export" / "model.keras")
        for name in ("first", "second")
    ]
    first, second = (model.get_layer("backbone").backbone.get_weights() for model in models)
    for ours, theirs in zip(second, first, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(first[0] - saved.get_weights()[0]).max() > 0
    assert f"--weights={exported}: ignored 1 extra layer: " in capsys.readouterr().out
