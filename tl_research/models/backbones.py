"""The one table of backbones: what each expects, where its weights come from, and its blocks from
input to output.

Importing this module imports neither TensorFlow nor Keras, so that a configuration can check names
quickly.
"""

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tl_research.data import download
from tl_research.errors import DataError, StorageError, UnreachableError, UserError

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """One row of the table."""

    name: str  # the constructor in `keras.applications`, and the value of `--backbone`
    # its module in `keras.applications`; `efficientnet_lite` is ours, `own` the user's
    family: str = "own"
    # mode of `models.preprocessing.Preprocessing`; `raw`: the model holds its own
    preprocessing: str = "raw"
    min_image_size: int = 1  # smallest accepted side of the input, in pixels
    # regex matched at the start of layer names. The group that matched names the block; the text of
    # group `block` is the name itself
    blocks: str = ""
    # whether the matching layer is the last of its block instead of the first
    match_ends_block: bool = False
    # name in Keras' cache, without top; `{size}` where it depends on the image size
    weights_file: str = ""
    weights_url: str = ""  # where Keras downloads it from


_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_EFFICIENTNET = r"(?P<stem>stem_)|(?P<top>top_)|(?P<block>block\d+[a-z])_"
_KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
# family: preprocessing, smallest image size, blocks, match_ends_block, folder of the weights
_FAMILIES = {
    "mobilenet_v2": (
        "tf",
        32,
        r"(?P<stem>Conv1|bn_Conv1)|(?P<top>Conv_1|out_relu)|(?P<block>expanded_conv|block_\d+)_",
        False,
        _URL + "mobilenet_v2/",
    ),
    "mobilenet_v3": (
        "raw",
        32,
        r"(?P<stem>conv(?:_bn)?$)|(?P<top>conv_1)|(?P<block>expanded_conv(?:_\d+)?)_",
        False,
        _URL + "mobilenet_v3/",
    ),
    "efficientnet": (
        "raw",
        32,
        _EFFICIENTNET,
        False,
        "https://storage.googleapis.com/keras-applications/",
    ),
    "efficientnet_v2": ("raw", 32, _EFFICIENTNET, False, _URL + "efficientnet_v2/"),
    "efficientnet_lite": ("lite", 32, _EFFICIENTNET, False, ""),
    "resnet": (
        "caffe",
        32,
        r"(?P<conv1>conv1_|pool1_)|(?P<block>conv\d_block\d+)_",
        False,
        _URL + "resnet/",
    ),
    "resnet_v2": (
        "tf",
        32,
        r"(?P<conv1>conv1_|pool1_)|(?P<post>post_)|(?P<block>conv\d_block\d+)_",
        False,
        _URL + "resnet/",
    ),
    "vgg16": ("caffe", 32, r"(?P<block>block\d)_", False, _URL + "vgg16/"),
    "vgg19": ("caffe", 32, r"(?P<block>block\d)_", False, _URL + "vgg19/"),
    "convnext": (
        "raw",
        32,
        r"(?P<top>layer_normalization)|convnext_[a-z]+_"
        r"(?:(?P<stem>(?:pre)?stem)|(?P<block>stage_\d_block_\d+|downsampling_block_\d))",
        False,
        _URL + "convnext/",
    ),
    "densenet": (
        "torch",
        32,
        r"(?P<conv1>conv1_|pool1$)|(?P<top>bn$)|(?P<block>conv\d_block\d+|pool\d)_",
        False,
        _URL + "densenet/",
    ),
    "inception_v3": (
        "tf",
        75,
        r"(?P<stem>max_pooling2d_1$)|(?P<block>mixed\d+)$",
        True,
        _URL + "inception_v3/",
    ),
    "xception": ("tf", 71, r"(?P<block>block\d+)_", False, _URL + "xception/"),
    "nasnet": (
        "tf",
        32,
        r"(?P<stem>stem_bn1$)|(?:normal|reduction)_concat_(?P<block>\w+)$",
        True,
        _URL + "nasnet/",
    ),
}


def _table():
    rows = [
        (
            "MobileNetV2",
            "mobilenet_v2",
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
        ),
        *((f"EfficientNetLite{n}", "efficientnet_lite", "") for n in range(3)),
        ("ResNet50V2", "resnet_v2", f"resnet50v2{_KERNELS}"),
        ("VGG16", "vgg16", f"vgg16{_KERNELS}"),
        ("VGG19", "vgg19", f"vgg19{_KERNELS}"),
        ("DenseNet121", "densenet", f"densenet121{_KERNELS}"),
        ("InceptionV3", "inception_v3", f"inception_v3{_KERNELS}"),
        ("Xception", "xception", f"xception{_KERNELS}"),
        ("NASNetMobile", "nasnet", "nasnet_mobile_no_top.h5"),
        *(
            (
                f"MobileNetV3{n}",
                "mobilenet_v3",
                f"weights_mobilenet_v3_{n.lower()}_224_1.0_float_no_top_v2.h5",
            )
            for n in ("Small", "Large")
        ),
        *((f"EfficientNetB{n}", "efficientnet", f"efficientnetb{n}_notop.h5") for n in range(8)),
        *(
            (f"EfficientNetV2{n}", "efficientnet_v2", f"efficientnetv2-{n.lower()}_notop.h5")
            for n in ("B0", "B1", "B2", "B3", "S", "M", "L")
        ),
        *((f"ResNet{n}", "resnet", f"resnet{n}{_KERNELS}") for n in (50, 101, 152)),
        *(
            (f"ConvNeXt{n}", "convnext", f"convnext_{n.lower()}_notop.h5")
            for n in ("Tiny", "Small", "Base")
        ),
    ]
    table = {}
    for name, family, file in rows:
        *contract, folder = _FAMILIES[family]
        url = folder + ("NASNet-mobile-no-top.h5" if family == "nasnet" else file)
        table[name] = BackboneSpec(name, family, *contract, weights_file=file, weights_url=url)
    return table


BACKBONES = _table()
_SILENCE_SECONDS = 15.0  # that end a transfer of Keras


def get_spec(name: str) -> BackboneSpec:
    """Returns the `BackboneSpec` called `name`.

    Raises:
        UserError: If there is none, with the nearest name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    lower = {known.lower(): known for known in BACKBONES}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[near[0]]}?" if near else f"expected one of {', '.join(BACKBONES)}."
    raise UserError(f"No backbone is called {name!r}; {hint}")


def build(
    backbone: str | Callable, image_size: int, weights: str, seed: int
) -> tuple[BackboneSpec, "keras.Model"]:
    """Returns (`BackboneSpec`, functional `keras.Model`) of a backbone.

    Args:
        backbone: A name in `BACKBONES`, or a function that returns a model of one's own, or (model,
            {field of `BackboneSpec`: value}) where it is not fed raw pixels or has blocks.
        image_size, weights, seed: As of `build_backbone`; the weights of one's own are what the
            function returns, unless this is a file.

    Raises:
        UserError: If a function returns what is no such model; or as of `build_backbone`.
    """
    if not callable(backbone):
        return get_spec(backbone), build_backbone(backbone, image_size, weights, seed=seed)
    import keras

    with repeatable(seed):
        made = backbone()
    model, options = made if isinstance(made, tuple) else (made, {})
    if wrong := _why_not_functional(model, image_size):
        raise UserError(
            f"make_backbone returned {wrong}; expected a functional Keras model from images "
            f"[B, {image_size}, {image_size}, 3] to [B, h, w, C], [B, t, C] or [B, C]; correct it"
        )
    try:
        spec = BackboneSpec(model.name, **options)
        re.compile(spec.blocks)
    except (TypeError, re.error) as error:
        raise UserError(
            f"make_backbone returned a model and {options!r} ({error}); expected a dict with "
            "preprocessing, blocks or neither; correct it"
        ) from error
    if compute_dtype(model) == "float32" != keras.config.dtype_policy().compute_dtype:
        with dtype_policy("float32"):  # read from a file; now what holds its layers has it too
            return build(backbone, image_size, weights, seed)
    # of whatever kind it was: a Sequential, or one whose input is a dict
    model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if weights not in ("imagenet", "none"):
        _load_file(model, weights)
    return spec, model


def compute_dtype(model: "keras.Model") -> str:
    """Returns `float16` or `bfloat16` if layers of a model compute in it, else `float32`."""
    import keras

    holders = (keras.Model, keras.layers.InputLayer)
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, holders)]
    dtypes = {layer.compute_dtype for layer in layers}
    return next((dtype for dtype in ("float16", "bfloat16") if dtype in dtypes), "float32")


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Makes layers compute as a policy says that are made inside."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _why_not_functional(model, image_size):
    """Returns what is wrong with what was to be a backbone, or None."""
    import keras
    from keras.src.models import Functional  # no public name

    if not isinstance(model, keras.Model):
        return repr(model)
    if type(model).call not in (Functional.call, keras.Sequential.call) or not model.built:
        return f"{model.name}, which is subclassed or not built"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"{model.name}, which has {len(model.inputs)} inputs, {len(model.outputs)} outputs"
    taken, given = (list(tensor.shape[1:]) for tensor in (model.inputs[0], model.outputs[0]))
    if taken != [image_size, image_size, 3] or None in given or len(given) not in (1, 2, 3):
        return f"{model.name}, from {taken} to {given}"
    return None


def build_backbone(
    name: str, image_size: int, weights: str = "imagenet", seed: int = 0
) -> "keras.Model":
    """Returns a backbone without top: a functional `keras.Model`, images [B, S, S, 3] -> features
    [B, h, w, C].

    Its input is what `Preprocessing(spec.preprocessing)` returns. Layer names, and with
    `weights="none"` the values too, are a pure function of the arguments: Keras draws initial
    weights from global generators and numbers its own layers by what the process built before, so
    this function sets the global seeds (Python, NumPy, TensorFlow) and numbers from zero.

    Args:
        name: A name in `BACKBONES`.
        image_size: Side S of the square input, in pixels.
        weights: `imagenet`, `none`, or the path of a weights file (see
            `weights.load_weights_file`).
        seed: Seed of the initial weights, an integer.

    Raises:
        UserError: If the name is unknown or the image too small.
        UnreachableError: If the ImageNet weights could not be reached.
        DataError: If a weights file can't be used.
        StorageError: If Keras' cache can't be written.
    """
    import keras

    spec = _spec_for(name, image_size)
    if spec.family == "efficientnet_lite":
        from tl_research.models import efficientnet_lite

        constructor = functools.partial(efficientnet_lite.efficientnet_lite, name)
    else:

        def constructor(size: int, keras_weights: str | None = None) -> "keras.Model":
            model = getattr(keras.applications, name)(
                include_top=False, weights=keras_weights, input_shape=(size, size, 3)
            )
            return _like_imagenet(model, keras_weights) if spec.family == "efficientnet" else model

    reach_weights(name, image_size, weights)
    with repeatable(seed):
        if weights != "imagenet" or spec.family == "efficientnet_lite":
            model = constructor(image_size)
        else:
            with _weights_errors(spec, image_size):
                model = constructor(image_size, "imagenet")
    if spec.family == "efficientnet_lite" and weights == "imagenet":
        efficientnet_lite.load_packaged_weights(name, model)
    elif weights not in ("imagenet", "none"):
        _load_file(model, weights)
    return model


def _load_file(model, path):
    from tl_research.models.weights import load_weights_file

    for note in load_weights_file(model, path):
        print(note)


def reach_weights(name: str, image_size: int, weights: str) -> None:
    """Downloads ImageNet weights that are not in Keras' cache yet.

    Arguments and errors as of `build_backbone`, which calls this.
    """
    spec = _spec_for(name, image_size)
    if weights != "imagenet" or not spec.weights_url:
        return
    url, file = imagenet_file(spec, image_size)
    folder, filename = os.path.split(file)
    home = os.path.dirname(folder)
    # Keras would use /tmp/.keras, which anyone may have filled
    if os.path.exists(home) and not os.access(home, os.W_OK):
        raise StorageError(
            f"{home} can't be written: set KERAS_HOME to a folder that can, or give --weights=FILE."
        )
    if os.path.exists(file):
        return
    try:
        download.fetch(url, folder, filename)
    except UnreachableError as error:
        raise UnreachableError(
            f"{name}'s ImageNet weights: {error}, or give --weights=FILE, or --if_offline=embedded "
            "for EfficientNetLite0's packaged weights"
        ) from error


def _spec_for(name, image_size):
    spec = get_spec(name)
    if image_size < spec.min_image_size:
        raise UserError(
            f"{name} needs images of at least {spec.min_image_size} pixels; received "
            f"image_size={image_size}."
        )
    return spec


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Makes what is built inside depend on nothing that the process did before.

    Sets the global seeds, numbers Keras' own layer names (conv2d_7) from zero, and leaves the
    process's numbering as it was.
    """
    import keras

    # public Keras can only clear the whole session
    from keras.src.backend.common import global_state

    names = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", None)
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", names)


def _like_imagenet(model, keras_weights):
    """Returns EfficientNetB0-B7 as Keras builds it for ImageNet weights, whichever weights it has.

    Keras adds the layer that divides by the root of the standard deviation only under
    `weights="imagenet"`: the same weights loaded from a file would see other pixels. The
    normalization layer is ours, see there.
    """
    import keras

    from tl_research.models.preprocessing import Normalization

    def clone(layer: "keras.Layer") -> "keras.Layer":
        kind = Normalization if isinstance(layer, keras.layers.Normalization) else type(layer)
        return kind.from_config(layer.get_config())

    def call(layer: "keras.Layer", *args, **kwargs) -> Any:
        outputs = layer(*args, **kwargs)
        if keras_weights is None and isinstance(layer, Normalization):
            outputs = keras.layers.Rescaling(
                [std**-0.5 for std in (0.229, 0.224, 0.225)], name="rescaling_1"
            )(outputs)
        return outputs

    inputs = keras.Input(model.input_shape[1:], name="input_layer")
    like = keras.models.clone_model(
        model, input_tensors=inputs, clone_function=clone, call_function=call
    )
    like.set_weights(model.get_weights())
    return like


def imagenet_file(spec: BackboneSpec, image_size: int) -> tuple[str, str]:
    """Returns (address, place in Keras' cache) of the ImageNet weights."""
    from keras.src.backend.config import keras_home  # where `get_file` looks; no public name

    # MobileNetV2 has weights for each of these
    size = image_size if image_size in (96, 128, 160, 192) else 224
    return (
        spec.weights_url.format(size=size),
        os.path.join(
            os.path.expanduser(keras_home()), "models", spec.weights_file.format(size=size)
        ),
    )


@contextlib.contextmanager
def _weights_errors(spec, image_size):
    """What fails inside, where Keras loads a file that is there, becomes one line with a remedy."""
    url, file = imagenet_file(spec, image_size)
    before = socket.getdefaulttimeout()
    # Keras downloads a damaged file again, and has no timeout of its own
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not (
            isinstance(error, (OSError, ValueError, KeyError))
            or str(error).startswith("URL fetch failure on")
        ):
            raise
        raise DataError(
            f"{file} is not {spec.name}'s ImageNet weights ({' '.join(str(error).split())}): "
            f"delete it, or replace it by {url}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def backbone_blocks(spec: BackboneSpec, model: "keras.Model") -> list[tuple[str, tuple[str, ...]]]:
    """Returns [(block name, its layer names)] from input to output.

    Every layer of `model.layers` stands in one block.

    A layer that matches nothing belongs to the block of the layer before it (the first layers: to
    the first block). Where several branches are listed interleaved, a block is still one contiguous
    run of `model.layers`.
    """
    blocks, ended = [[None, []]], False
    for layer in model.layers:
        name, block = _block_of(spec.blocks, layer.name), blocks[-1]
        begins = ended if spec.match_ends_block else name and block[0] not in (None, name)
        if begins:
            block = [None, []]
            blocks.append(block)
        block[0], ended = name or block[0], bool(name)
        block[1].append(layer.name)
    if blocks[-1][0] is None and len(blocks) > 1:  # layers behind the last marker
        _, rest = blocks.pop()
        blocks[-1][1].extend(rest)
    return [(name or "backbone", tuple(names)) for name, names in blocks]


def _block_of(pattern, layer_name):
    """Returns the name of the block that a layer's name tells, or None."""
    match = re.match(pattern, layer_name)
    name = match and (match.groupdict().get("block") or match.lastgroup)
    return f"cell_{name}" if name and name.isdigit() else name


def named_variables(model: "keras.Model", prefix: str = "backbone") -> dict[str, "keras.Variable"]:
    """Returns {"backbone/<layer>/<variable>": variable} of all weights, in the model's order, those
    of inner models and of layers of layers one level deeper.

    Raises:
        UserError: If two variables share a name.
    """

    def path_of(variable: "keras.Variable", layer: "keras.Layer") -> str:
        parts = variable.path.split("/")
        inside = parts[parts.index(layer.name) + 1 :] if layer.name in parts[:-1] else parts[-1:]
        return "/".join([prefix, layer.name, *inside])

    named = {}
    for layer in model.layers:
        inner = hasattr(layer, "layers")
        own = (
            named_variables(layer, f"{prefix}/{layer.name}")
            if inner
            else {path_of(variable, layer): variable for variable in layer.weights}
        )
        if len(own) != len(layer.weights) or named.keys() & own.keys():
            raise UserError(
                f"variables of layer {layer.name!r} share names; expected a path for each; give "
                "its layers and weights names of their own"
            )
        named.update(own)
    return named
