"""Every backbone's contract.

`TL_RESEARCH_ALL_BACKBONES=1 python -m pytest tests/models/test_backbones.py` builds all of them;
without it, the smallest member of each family.
"""

import hashlib
import importlib
import os
import socket
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research.data import download
from tl_research.errors import DataError, StorageError, UnreachableError, UserError
from tl_research.models import backbones
from tl_research.models.preprocessing import Preprocessing

SMALLEST = {
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "efficientnet": "EfficientNetB0",
    "efficientnet_v2": "EfficientNetV2B0",
    "efficientnet_lite": "EfficientNetLite0",
    "resnet": "ResNet50",
    "resnet_v2": "ResNet50V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "convnext": "ConvNeXtTiny",
    "densenet": "DenseNet121",
    "inception_v3": "InceptionV3",
    "xception": "Xception",
    "nasnet": "NASNetMobile",
}
NAMES = (
    list(backbones.BACKBONES)
    if os.environ.get("TL_RESEARCH_ALL_BACKBONES")
    else list(SMALLEST.values())
)
# the first three and the last two, and how many there are in the smallest member
FIRST_AND_LAST_BLOCKS = {
    "mobilenet_v2": ("stem expanded_conv block_1 block_16 top", 19),
    "mobilenet_v3": ("stem expanded_conv expanded_conv_1 expanded_conv_10 top", 13),
    "efficientnet": ("stem block1a block2a block7a top", 18),
    "efficientnet_v2": ("stem block1a block2a block6h top", 23),
    "efficientnet_lite": ("stem block1a block2a block7a top", 18),
    "resnet": ("conv1 conv2_block1 conv2_block2 conv5_block2 conv5_block3", 17),
    "resnet_v2": ("conv1 conv2_block1 conv2_block2 conv5_block3 post", 18),
    "vgg16": ("block1 block2 block3 block4 block5", 5),
    "vgg19": ("block1 block2 block3 block4 block5", 5),
    "convnext": ("stem stage_0_block_0 stage_0_block_1 stage_3_block_2 top", 23),
    "densenet": ("conv1 conv2_block1 conv2_block2 conv5_block16 top", 63),
    "inception_v3": ("stem mixed0 mixed1 mixed9 mixed10", 12),
    "xception": ("block1 block2 block3 block13 block14", 14),
    "nasnet": ("stem stem_1 stem_2 cell_11 cell_12", 17),
}
ONE_LAYER_OF_A_BLOCK = {  # also layers whose own name says nothing about their block
    "mobilenet_v2": ("out_relu", "top"),
    "mobilenet_v3": ("re_lu", "expanded_conv"),
    "efficientnet": ("rescaling_1", "stem"),
    "efficientnet_v2": ("block6h_add", "block6h"),
    "efficientnet_lite": ("block2b_add", "block2b"),
    "resnet": ("pool1_pool", "conv1"),
    "resnet_v2": ("max_pooling2d", "conv2_block3"),
    "vgg16": ("block5_pool", "block5"),
    "vgg19": ("block5_pool", "block5"),
    "convnext": ("convnext_tiny_downsampling_block_0", "downsampling_block_0"),
    "densenet": ("pool2_conv", "pool2"),
    "inception_v3": ("conv2d_8", "mixed0"),
    "xception": ("conv2d", "block2"),
    "nasnet": ("adjust_conv_projection_1", "cell_1"),
}
EVERYTHING = """
    MobileNetV2 MobileNetV3Small MobileNetV3Large EfficientNetB0 EfficientNetB1 EfficientNetB2
    EfficientNetB3 EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7 EfficientNetV2B0
    EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 EfficientNetV2S EfficientNetV2M
    EfficientNetV2L ResNet50 ResNet101 ResNet152 ResNet50V2 VGG16 VGG19 ConvNeXtTiny ConvNeXtSmall
    ConvNeXtBase DenseNet121 InceptionV3 Xception NASNetMobile EfficientNetLite0
    EfficientNetLite1 EfficientNetLite2
"""


# The table.


def test_table_holds_every_backbone_once_and_knows_each_family():
    assert sorted(backbones.BACKBONES) == sorted(EVERYTHING.split())
    assert {spec.family for spec in backbones.BACKBONES.values()} == set(SMALLEST)


def test_the_table_itself_imports_neither_tensorflow_nor_keras():
    code = (
        "import sys, tl_research.backbone_table as b; sys.exit('tensorflow' in sys.modules or "
        "'keras' in sys.modules or 'VGG16' not in b.BACKBONES)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "misspelt, nearest",
    [
        ("EfficentNetV2B0", "EfficientNetV2B0"),
        ("mobilenetv2", "MobileNetV2"),
        ("Resnet-50", "ResNet50"),
    ],
)
def test_misspelt_name_gets_the_nearest_one(misspelt, nearest):
    with pytest.raises(UserError, match=f"did you mean {nearest}[?]"):
        backbones.get_spec(misspelt)


def test_name_unlike_any_gets_the_list():
    with pytest.raises(UserError, match="expected one of MobileNetV2, .*NASNetMobile"):
        backbones.get_spec("7")


@pytest.mark.parametrize("name", NAMES)
def test_image_below_the_smallest_size_is_refused(name):
    smallest = backbones.get_spec(name).min_image_size
    with pytest.raises(
        UserError, match=f"at least {smallest} pixels; received image_size={smallest - 1}"
    ):
        backbones.build_backbone(name, smallest - 1, "none")


@pytest.mark.parametrize("name", [name for name in EVERYTHING.split() if "Lite" not in name])
def test_preprocessing_equals_the_modules_own(name):
    spec = backbones.get_spec(name)
    module = importlib.import_module(f"keras.applications.{spec.family}")
    assert hasattr(keras.applications, name)
    images = np.random.RandomState(0).uniform(0, 255, (2, 5, 4, 3)).astype("float32")
    expected = module.preprocess_input(tf.constant(images))
    np.testing.assert_allclose(
        Preprocessing(spec.preprocessing)(images), expected, rtol=1e-5, atol=1e-5
    )


# Preprocessing.


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("raw", [0.0, 127.0, 255.0]),
        ("tf", [-1.0, -1 / 255, 1.0]),
        ("lite", [-127 / 128, 0.0, 1.0]),
        ("caffe", [255 - 103.939, 127 - 116.779, -123.68]),
        ("torch", [-0.485 / 0.229, (127 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
    ],
)
def test_one_pixel_worked_out_by_hand(mode, expected):
    for pixel in (np.float32([[[[0, 127, 255]]]]), np.uint8([[[[0, 127, 255]]]])):
        np.testing.assert_allclose(
            Preprocessing(mode)(pixel)[0, 0, 0], expected, rtol=1e-5, atol=1e-6
        )


def test_mixed_precision_rounds_only_at_the_end():
    layer = Preprocessing("lite", dtype="mixed_bfloat16")
    # bfloat16 has no 127.25 and no 200.5
    outputs = layer(tf.constant([[[[127.25, 200.0, 200.5]]]]))
    assert outputs.dtype == tf.bfloat16
    assert tf.cast(outputs, tf.float32).numpy().ravel().tolist() == [
        0.25 / 128,
        73 / 128,
        73.5 / 128,
    ]


def test_mode_survives_serialization_and_a_wrong_one_is_refused():
    layer = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(Preprocessing("caffe", name="p"))
    )
    assert (type(layer), layer.mode, layer.name) == (Preprocessing, "caffe", "p")
    with pytest.raises(ValueError, match="'bgr'; expected one of raw, tf"):
        Preprocessing("bgr")


# What is built.


@pytest.mark.parametrize("name", NAMES)
def test_smallest_image_builds_with_contiguous_blocks_and_unique_variable_names(name):
    spec = backbones.get_spec(name)
    size = spec.min_image_size
    model = backbones.build_backbone(name, size, "none")
    assert model.input_shape == (None, size, size, 3)
    assert len(model.output_shape) == 4  # no top, no pooling

    blocks = backbones.backbone_blocks(spec, model)
    names = [block for block, _ in blocks]
    assert [layer for _, layers in blocks for layer in layers] == [
        layer.name for layer in model.layers
    ]
    assert len(set(names)) == len(names)
    expected, number = FIRST_AND_LAST_BLOCKS[spec.family]
    if name == SMALLEST[spec.family]:
        assert names[:3] + names[-2:] == expected.split()
        assert len(names) == number
        layer, block = ONE_LAYER_OF_A_BLOCK[spec.family]
        assert layer in dict(blocks)[block]

    named = backbones.named_variables(model)
    assert [id(v) for v in named.values()] == [id(v) for v in model.weights]
    layers = {layer.name: layer for layer in model.layers}
    for path, variable in named.items():
        prefix, layer, *inner, own = path.split("/")
        assert (prefix, own) == ("backbone", variable.name)
        assert any(variable is v for v in layers[layer].weights), path
        assert len(inner) <= 1


def test_two_variables_of_one_name_are_refused():
    class Twins(keras.layers.Layer):
        def build(self, _):
            self.first, self.second = self.add_weight(name="w"), self.add_weight(name="w")

        def call(self, x):
            return x * self.first + self.second

    model = keras.Sequential([keras.Input((2,)), Twins(name="twins")])
    with pytest.raises(ValueError, match="layer 'twins' share names"):
        backbones.named_variables(model)


def test_names_and_values_depend_on_the_arguments_alone():
    first = backbones.build_backbone("Xception", 71, "none", seed=3)
    keras.layers.Conv2D(1, 1)  # Keras' own numbering goes on to conv2d_1
    tf.random.normal([2])
    second = backbones.build_backbone("Xception", 71, "none", seed=3)
    assert "conv2d_3" in [layer.name for layer in second.layers]
    assert [v.path for v in first.weights] == [v.path for v in second.weights]
    for a, b in zip(first.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(a, b)
    other = backbones.build_backbone("Xception", 71, "none", seed=4)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


def test_process_numbering_goes_on_after_a_build():
    before = keras.layers.Conv2D(1, 1).name
    backbones.build_backbone("VGG16", 32, "none")
    after = keras.layers.Conv2D(1, 1).name
    number = int(before.rpartition("_")[2]) if before != "conv2d" else 0
    assert after == f"conv2d_{number + 1}"


# Weights from Keras' cache, and what becomes of a download that fails. Nothing here reaches a
# network.


@pytest.fixture
def home(tmp_path):
    """An empty cache of Keras."""
    os.mkdir(tmp_path / "models")
    with mock.patch.object(keras.src.backend.config, "_KERAS_DIR", str(tmp_path)):
        yield str(tmp_path)


def _cache(home, name):
    return os.path.join(home, "models", name)


@pytest.mark.parametrize("name", [name for name in NAMES if "Lite" not in name])
def test_table_names_the_file_and_address_that_keras_asks_for(home, name):
    class Asked(Exception):
        pass

    size = max(backbones.get_spec(name).min_image_size, 96)
    with (
        mock.patch.object(keras.src.utils.file_utils, "get_file", side_effect=Asked) as get_file,
        pytest.raises(Asked),
    ):
        getattr(keras.applications, name)(
            weights="imagenet", include_top=False, input_shape=(size, size, 3)
        )
    url, file = backbones.imagenet_file(backbones.get_spec(name), size)
    assert get_file.call_args.args[:2] == (os.path.basename(file), url)
    assert os.path.dirname(file) == os.path.join(home, "models")


def test_weights_in_the_cache_are_loaded_without_asking_anyone(home):
    source = backbones.build_backbone("MobileNetV2", 96, "none", seed=1)
    source.save(_cache(home, "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"))
    with mock.patch.object(download, "_transfer", side_effect=AssertionError):
        model = backbones.build_backbone("MobileNetV2", 96, "imagenet", seed=2)
    for a, b in zip(source.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_efficientnet_sees_the_same_pixels_from_a_file_as_from_imagenet(home, monkeypatch):
    source = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    norm = source.layers[2]
    norm.set_weights(
        [np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]), np.int32(0)]
    )
    file = _cache(home, "efficientnetb0_notop.h5")
    source.save(file)
    with open(file, "rb") as opened:
        digest = hashlib.md5(opened.read()).hexdigest()
    hashes = keras.src.applications.efficientnet.WEIGHTS_HASHES
    monkeypatch.setitem(hashes, "b0", (None, digest))
    reference = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(32, 32, 3)
    )
    images = np.random.RandomState(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")

    def outputs(model):
        return keras.Model(model.input, model.get_layer("stem_conv").output)(images)

    expected = outputs(reference)
    # Keras itself: the same weights, another function
    assert np.abs(outputs(source) - expected).max() > 0.1
    for weights in ("imagenet", file):
        np.testing.assert_allclose(
            outputs(backbones.build_backbone("EfficientNetB0", 32, weights)),
            expected,
            rtol=0,
            atol=1e-4,
        )

    assigned = backbones.build_backbone("EfficientNetB0", 32, "none")
    for variable, value in zip(assigned.weights, reference.get_weights()):
        # as a restored checkpoint does; Keras' own layer would go on with its constants
        variable.assign(value)
    np.testing.assert_allclose(outputs(assigned), expected, rtol=0, atol=1e-4)

    weights_file = os.path.join(home, "ours.weights.h5")
    assigned.save_weights(weights_file)
    # Keras' own model reads ours: the layout goes by class names
    source.load_weights(weights_file)
    np.testing.assert_array_equal(source.get_weights()[0], np.float32([0.485, 0.456, 0.406]))


def test_host_that_is_not_reached_is_unreachable_and_says_what_to_do(home):
    with (
        mock.patch.dict(
            os.environ, {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
        ),
        pytest.raises(UnreachableError, match="refused") as raised,
    ):
        backbones.build_backbone("EfficientNetV2B0", 224)
    message = str(raised.value)
    for part in (
        "https://storage.googleapis.com/tensorflow/keras-applications/efficientnet_v2/"
        "efficientnetv2-b0_notop.h5",
        os.path.join(home, "models", "efficientnetv2-b0_notop.h5"),
        "--weights=FILE",
        "--if_offline=embedded",
    ):
        assert part in message
    assert "\n" not in message


def test_what_is_downloaded_is_where_keras_loads_it(home):
    source = backbones.build_backbone("MobileNetV2", 96, "none", seed=1)

    def transfer(url, target, part, size, deadline_seconds):
        source.save(f"{home}/source.h5")
        os.replace(f"{home}/source.h5", part)

    with mock.patch.object(download, "_transfer", side_effect=transfer) as transferred:
        models = [backbones.build_backbone("MobileNetV2", 96, "imagenet") for _ in range(2)]
    transferred.assert_called_once()
    for model in models:
        for a, b in zip(source.get_weights(), model.get_weights()):
            np.testing.assert_array_equal(a, b)


def test_error_that_is_neither_networks_nor_files_is_not_dressed_up(home):
    open(_cache(home, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"), "w").close()
    before = socket.getdefaulttimeout()
    with (
        mock.patch.object(keras.applications, "VGG16", side_effect=lambda **_: 1 / 0),
        pytest.raises(ZeroDivisionError),
    ):
        backbones.build_backbone("VGG16", 32)
    assert socket.getdefaulttimeout() == before


def test_file_with_a_wrong_hash_is_an_error_and_not_offline(home):
    path = _cache(home, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")
    with open(path, "wb") as file:
        file.write(b"not these")
    with (
        # Keras downloads it again, to the same bytes
        mock.patch.object(keras.src.utils.file_utils, "urlretrieve"),
        pytest.raises(DataError, match="corrupted file.*delete it") as raised,
    ):
        backbones.build_backbone("VGG16", 32)
    assert not isinstance(raised.value, UnreachableError)
    assert path in str(raised.value)


def test_cache_that_cannot_be_written_is_a_storage_error(home):
    with open(os.path.join(home, "file"), "w"):
        pass
    with (
        mock.patch.object(keras.src.backend.config, "_KERAS_DIR", os.path.join(home, "file")),
        pytest.raises(StorageError, match="KERAS_HOME"),
    ):
        backbones.build_backbone("VGG16", 32)
    with (
        mock.patch.object(os, "access", return_value=False),  # Keras would turn to /tmp/.keras
        pytest.raises(StorageError, match="KERAS_HOME"),
    ):
        backbones.build_backbone("VGG16", 32)
