"""A head that pools in two ways: what is cached is pooled."""

import keras
import numpy as np


def test_is_resumed_and_keeps_pooled_features(assert_resumes, tmp_path, capsys):
    assert_resumes(
        "average_and_max_head.py",
        phases=("head",),
        epochs=(2,),
        unfreeze=("0%",),
        learning_rate=(1e-2,),
        patience=(0,),
        augment_views=1,
        precision="mixed_float16",
        crashes=(8,),
        verbose=True,
    )
    assert "cache: 20 float32, 0 KiB per image" in capsys.readouterr().out  # twice 10 channels

    model = keras.saving.load_model(tmp_path / "unbroken" / "export" / "model.keras")
    images = np.random.RandomState(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    backbone = model.get_layer("backbone").backbone
    features = backbone(model.get_layer("preprocessing")(images), training=False).numpy()
    pooled = np.concatenate([features.mean(axis=(1, 2)), features.max(axis=(1, 2))], axis=1)
    kernel, bias = model.get_layer("head").get_weights()
    assert kernel.shape == (20, 3)
    np.testing.assert_allclose(model(images), pooled @ kernel + bias, rtol=1e-5, atol=1e-5)
