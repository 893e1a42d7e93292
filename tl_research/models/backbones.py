"""Builds the backbones of `backbone_table`, or one's own, with their weights."""

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tl_research.backbone_table import BACKBONES as BACKBONES  # so named by who adds to it
from tl_research.backbone_table import BackboneSpec, get_spec
from tl_research.config import Config
from tl_research.data import download
from tl_research.errors import DataError, StorageError, UnreachableError, UserError

if TYPE_CHECKING:
    import keras

_SILENCE_SECONDS = 15.0  # that end a transfer of Keras


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

    def constructor(size: int, keras_weights: str | None = None) -> "keras.Model":
        if spec.family == "efficientnet_lite":
            return efficientnet_lite.efficientnet_lite(name, size)
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


def check(config: Config) -> None:
    """Raises UserError or DataError for what of a `Config` cannot be built, whatever the images
    are: a name, a size, a file of weights or a layer that is not there.
    """
    _spec_for(config.backbone, config.image_size)
    if config.weights not in ("imagenet", "none") and not os.path.exists(config.weights):
        raise DataError(
            f"--weights={config.weights} is not there; expected imagenet, none, a Keras weights or "
            "model file, or the directory of a finished run; correct it"
        )


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

    def call(layer: "keras.Layer", *args: Any, **kwargs: Any) -> Any:
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
    blocks: list[tuple[str, list[str]]] = [("", [])]
    ended = False
    for layer in model.layers:
        found, (name, names) = _block_of(spec.blocks, layer.name), blocks[-1]
        begins = ended if spec.match_ends_block else found and name not in ("", found)
        if begins:
            name, names = "", []
            blocks.append((name, names))
        names.append(layer.name)
        blocks[-1], ended = (found or name, names), bool(found)
    if not blocks[-1][0] and len(blocks) > 1:  # layers behind the last marker
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

    named: dict[str, keras.Variable] = {}
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
