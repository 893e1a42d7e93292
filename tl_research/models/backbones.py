"""Builds the backbones of `backbone_table`, or the user's own, with their weights."""

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tl_research.backbone_table import BACKBONES as BACKBONES  # the name by which users add to it
from tl_research.backbone_table import BackboneSpec, get_spec
from tl_research.config import Config
from tl_research.data import download
from tl_research.errors import DataError, StorageError, UnreachableError, UserError
from tl_research.models import efficientnet_lite, keras_private
from tl_research.models.preprocessing import Normalization
from tl_research.models.weights import load_weights_file

_SILENCE_SECONDS = 15.0  # timeout of a stalled transfer by Keras


def build(
    backbone: str | Callable, image_size: int, weights: str, seed: int
) -> tuple[BackboneSpec, keras.Model]:
    """Returns (`BackboneSpec`, functional `keras.Model`) for a backbone.

    Args:
        backbone: A name in `BACKBONES`, or a function that returns the user's own model, or (model,
            {field of `BackboneSpec`: value}) if it does not take raw pixels or has blocks.
        image_size, weights, seed: As for `build_backbone`; the user's own model keeps its weights
            unless `weights` is a file.

    Raises:
        UserError: If the function returns no such model; or as for `build_backbone`.
    """
    if not callable(backbone):
        return get_spec(backbone), build_backbone(backbone, image_size, weights, seed=seed)
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
        # it was read from a file; build its containers in float32 too
        with dtype_policy("float32"):
            return build(backbone, image_size, weights, seed)
    # it may have been a Sequential, or have a dict as its input
    model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if weights not in ("imagenet", "none"):
        load_weights_file(model, weights)
    return spec, model


def compute_dtype(model: keras.Model) -> str:
    """Returns `float16` or `bfloat16` if any layer of a model computes in it, else `float32`."""
    holders = (keras.Model, keras.layers.InputLayer)
    layers = keras_private.all_layers(model)
    dtypes = {layer.compute_dtype for layer in layers if not isinstance(layer, holders)}
    return next((dtype for dtype in ("float16", "bfloat16") if dtype in dtypes), "float32")


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Sets the dtype policy of the layers that are made inside."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _why_not_functional(model, image_size):
    """Returns why something cannot be a backbone, or None."""
    if not isinstance(model, keras.Model):
        return repr(model)
    if (
        type(model).call not in (keras_private.Functional.call, keras.Sequential.call)
        or not model.built
    ):
        return f"{model.name}, which is subclassed or not built"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"{model.name}, which has {len(model.inputs)} inputs, {len(model.outputs)} outputs"
    taken, given = (list(tensor.shape[1:]) for tensor in (model.inputs[0], model.outputs[0]))
    if taken != [image_size, image_size, 3] or None in given or len(given) not in (1, 2, 3):
        return f"{model.name}, from {taken} to {given}"
    return None


def build_backbone(
    name: str, image_size: int, weights: str = "imagenet", seed: int = 0
) -> keras.Model:
    """Returns a backbone without its top: a functional `keras.Model` from images [B, S, S, 3] to
    features [B, h, w, C].

    Its input is the output of `Preprocessing(spec.preprocessing)`. Layer names, and with
    `weights="none"` the values too, depend on the arguments only: Keras draws initial weights from
    global generators and numbers its layers across the whole process, so this function sets the
    global seeds (Python, NumPy, TensorFlow) and numbers from zero.

    Args:
        name: A name in `BACKBONES`.
        image_size: Side S of the square input, in pixels.
        weights: `imagenet`, `none`, or the path of a weights file (see
            `weights.load_weights_file`).
        seed: Seed of the initial weights, an integer.

    Raises:
        UserError: If the name is unknown or the image too small.
        UnreachableError: If the ImageNet weights could not be reached.
        DataError: If a weights file cannot be used.
        StorageError: If Keras' cache cannot be written.
    """
    spec = _spec_for(name, image_size)
    is_lite = spec.family == "efficientnet_lite"
    reach_weights(name, image_size, weights)
    with repeatable(seed):
        if is_lite:
            model = efficientnet_lite.efficientnet_lite(name, image_size)
        elif weights == "imagenet":
            with _weights_errors(spec, image_size):
                model = _from_keras(spec, image_size, weights)
        else:
            model = _from_keras(spec, image_size, None)
    if is_lite and weights == "imagenet":
        efficientnet_lite.load_packaged_weights(name, model)
    elif weights not in ("imagenet", "none"):
        load_weights_file(model, weights)
    return model


def _from_keras(spec, image_size, weights):
    model = getattr(keras.applications, spec.name)(
        include_top=False, weights=weights, input_shape=(image_size, image_size, 3)
    )
    return _like_imagenet(model, weights) if spec.family == "efficientnet" else model


def reach_weights(name: str, image_size: int, weights: str) -> None:
    """Downloads ImageNet weights that are not in Keras' cache yet.

    `build_backbone` calls this, and raises the same errors.

    Args:
        name, image_size, weights: As for `build_backbone`.
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
            f"{home} cannot be written: set KERAS_HOME to a writable folder, or use --weights=FILE."
        )
    if os.path.exists(file):
        return
    try:
        download.fetch(url, folder, filename)
    except UnreachableError as error:
        raise UnreachableError(
            f"{name}'s ImageNet weights: {error}, or use --weights=FILE, or --if_offline=embedded "
            "for EfficientNetLite0's packaged weights"
        ) from error


def check(config: Config) -> None:
    """Raises UserError or DataError if the backbone of a `Config` cannot be built for any images:
    an unknown name, a wrong size, or a missing weights file.
    """
    _spec_for(config.backbone, config.image_size)
    if config.weights not in ("imagenet", "none") and not os.path.exists(config.weights):
        raise DataError(
            f"--weights={config.weights} does not exist; expected imagenet, none, a Keras weights "
            "or model file, or the directory of a finished run; correct it"
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
    """Makes what is built inside independent of what the process did before.

    Sets the global seeds, numbers Keras' layer names (conv2d_7) from zero, and restores the
    process's numbering at the end.
    """
    counts = keras_private.swap_name_counts()  # public Keras can only clear the whole session
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        keras_private.swap_name_counts(counts)


def _like_imagenet(model, keras_weights):
    """Returns EfficientNetB0-B7 in the form that Keras builds for ImageNet weights.

    Keras adds the layer that divides by the root of the standard deviation only if
    `weights="imagenet"`: the same weights from a file would get other pixels. The normalization
    layer is replaced by ours, see `preprocessing.Normalization`.
    """

    def clone(layer: keras.Layer) -> keras.Layer:
        kind = Normalization if isinstance(layer, keras.layers.Normalization) else type(layer)
        return kind.from_config(layer.get_config())

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
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
    """Returns (URL, path in Keras' cache) of the ImageNet weights."""
    # MobileNetV2 has separate weights for each of these
    size = image_size if image_size in (96, 128, 160, 192) else 224
    home = os.path.expanduser(keras_private.keras_home())
    return (
        spec.weights_url.format(size=size),
        os.path.join(home, "models", spec.weights_file.format(size=size)),
    )


@contextlib.contextmanager
def _weights_errors(spec, image_size):
    """Turns an error inside, where Keras loads a cached file, into one line with a remedy."""
    url, file = imagenet_file(spec, image_size)
    before = socket.getdefaulttimeout()
    # Keras downloads a damaged file again, without a timeout of its own
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


def backbone_blocks(spec: BackboneSpec, model: keras.Model) -> list[tuple[str, tuple[str, ...]]]:
    """Returns [(block name, its layer names)] from input to output; every layer is in one block.

    A layer whose name does not match belongs to the block of the layer before it (the first layers
    to the first block). Even if branches are interleaved, a block is a contiguous part of
    `model.layers`.
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
    if not blocks[-1][0] and len(blocks) > 1:  # layers after the last marker
        _, rest = blocks.pop()
        blocks[-1][1].extend(rest)
    return [(name or "backbone", tuple(names)) for name, names in blocks]


def _block_of(pattern, layer_name):
    """Returns the name of the block that a layer's name matches, or None."""
    match = re.match(pattern, layer_name)
    name = match and (match.groupdict().get("block") or match.lastgroup)
    return f"cell_{name}" if name and name.isdigit() else name


def named_variables(model: keras.Model, prefix: str = "backbone") -> dict[str, "keras.Variable"]:
    """Returns {"backbone/<layer>/<variable>": variable} of all weights, in the model's order; those
    of nested models and layers have longer paths.

    Raises:
        UserError: If two variables share a name.
    """

    def path_of(variable: "keras.Variable", layer: keras.Layer) -> str:
        parts = variable.path.split("/")
        inside = parts[parts.index(layer.name) + 1 :] if layer.name in parts[:-1] else parts[-1:]
        return "/".join([prefix, layer.name, *inside])

    named: dict[str, keras.Variable] = {}
    for layer in model.layers:
        own = (
            named_variables(layer, f"{prefix}/{layer.name}")
            if hasattr(layer, "layers")
            else {path_of(variable, layer): variable for variable in layer.weights}
        )
        if len(own) != len(layer.weights) or named.keys() & own.keys():
            raise UserError(
                f"variables of layer {layer.name!r} share names; expected a path for each; give "
                "its layers and weights different names"
            )
        named.update(own)
    return named
