"""A backbone that ends in tokens, with layers that hold layers."""

import keras
import numpy as np


def test_trains_is_resumed_and_averages_over_tokens(assert_resumes, tmp_path, capsys):
    results, _ = assert_resumes(
        "small_vit.py",
        unfreeze=("0%", "block2"),
        epochs=(1, 1),
        precision="mixed_float16",
        crashes=(3, 8),
        verbose=True,
    )
    assert "model: small_vit, weights its own, 0 BatchNorm" in capsys.readouterr().out
    # the head's kernel and bias; in block 2 two norms, four projections, two dense layers with two
    # each; the last norm's two
    trained = [phase["audit"]["trainable_changed"] for phase in results["phases"]]
    assert trained == [2, 2 + 2 * (2 + 4 + 2) + 2]

    model = keras.saving.load_model(tmp_path / "unbroken" / "export" / "model.keras")
    images = np.random.RandomState(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    tokens = model.get_layer("backbone").backbone(images / 127.5 - 1.0, training=False).numpy()
    assert tokens.shape == (4, 4, 64)  # 16 px in patches of 8
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(
        model(images), tokens.mean(axis=1) @ kernel + bias, rtol=1e-5, atol=1e-5
    )
