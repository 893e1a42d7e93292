"""A head with a hidden layer: both layers train."""

import math

import keras
import numpy as np


def test_trains_both_layers_and_is_resumed(assert_resumes, tmp_path):
    results, _ = assert_resumes(
        "two_layer_head.py",
        epochs=(1, 1),
        lr_multiplier=("head/hidden/=2",),
        precision="mixed_float16",
        crashes=(3, 8),
    )
    # two kernels and two biases, then those of block 3's convolution too
    assert [phase["audit"]["trainable_total"] for phase in results["phases"]] == [4, 6]
    assert [phase["audit"]["trainable_changed"] for phase in results["phases"]] == [4, 6]

    model = keras.saving.load_model(tmp_path / "unbroken" / "export" / "model.keras")
    images = np.random.RandomState(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    backbone = model.get_layer("backbone").backbone
    features = backbone(model.get_layer("preprocessing")(images), training=False).numpy()
    kernel, bias, last_kernel, last_bias = model.get_layer("head").get_weights()
    hidden = features.mean(axis=(1, 2)) @ kernel + bias
    hidden *= 0.5 * (1.0 + np.vectorize(math.erf)(hidden / math.sqrt(2.0)))  # GELU
    np.testing.assert_allclose(
        model(images), hidden @ last_kernel + last_bias, rtol=1e-5, atol=1e-5
    )
