"""Weights files: what fits is loaded exactly, what doesn't is named, and what is hostile is
refused.
"""

import contextlib
import io
import os
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tl_research.errors import DataError
from tl_research.models.backbones import build_backbone
from tl_research.models.weights import load_weights_file


def backbone(seed, first=0):
    """A small model with all that makes loading hard: numbered names, an inner Sequential, a
    depthwise kernel, statistics.

    `first` is the number that Keras would give its next convolution, which depends on what the
    process built before.
    """
    layers = keras.layers

    def numbered(base, number):
        return f"{base}_{number}" if number else base

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = keras.Sequential(
        [layers.Conv2D(4, 3, name="stem_conv"), layers.LayerNormalization(name="stem_norm")],
        name="stem",
    )(inputs)
    x = layers.Conv2D(5, 1, name=numbered("conv2d", first))(x)
    x = layers.Conv2D(5, 1, name=numbered("conv2d", first + 1))(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(
        name="bn",
        gamma_initializer="random_normal",
        beta_initializer="random_normal",
        moving_mean_initializer="random_normal",
    )(x)
    return keras.Model(inputs, x, name="small")


def with_head(model, nested):
    inputs = keras.Input((8, 8, 3)) if nested else model.input
    features = model(inputs) if nested else model.output
    x = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))


@pytest.fixture
def path(tmp_path):
    """Where the file with the weights is."""
    return str(tmp_path / "w.weights.h5")


def _legacy(path, model, group="", edit=lambda layer, name, value: (name, value)):
    """Writes `model` as Keras 2 did: <group>/<layer>/<layer>/<variable>:0."""
    with h5py.File(path, "w") as file:
        for layer in model.layers:
            for variable in layer.weights:
                name, value = edit(layer.name, variable.name, variable.numpy())
                if value is not None:
                    file[
                        f"{group}{layer.name}/{name if '/' in name else f'{layer.name}/{name}:0'}"
                    ] = value


def _assert_loads(path, source, target=None, extra=None):
    target = target or backbone(seed=2)
    assert not np.array_equal(source.get_weights()[0], target.get_weights()[0])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        load_weights_file(target, path)
    for a, b in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = said.getvalue().splitlines()
    if extra is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert re.search(extra, lines[0])


def _assert_refused(path, pattern, target=None):
    target = target or backbone(seed=2)
    before = target.get_weights()
    with pytest.raises(DataError, match=pattern) as raised:
        load_weights_file(target, path)
    assert "\n" not in str(raised.value)
    assert path in str(raised.value)
    for a, b in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# What is loaded.


@pytest.mark.parametrize("group", ["", "model_weights/", "small/", "model_weights/small/"])
def test_legacy_file_at_the_top_under_model_weights_or_nested(path, group):
    source = backbone(seed=1)
    _legacy(path, source, group=group)
    _assert_loads(path, source)


@pytest.mark.parametrize("suffix", (".weights.h5", ".h5", ".keras"))
@pytest.mark.parametrize("nested", (None, False, True))
def test_file_that_keras_writes(path, suffix, nested):
    source = backbone(seed=1)
    model = source if nested is None else with_head(source, nested)
    path = path.replace(".weights.h5", suffix)
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    _assert_loads(
        path,
        source,
        extra=None if nested is None else "ignored 1 extra layer: (predictions|layers/dense)$",
    )


def test_keras_own_normalization_uses_what_was_loaded(path):
    source, target = (
        keras.Sequential([keras.Input((1,)), keras.layers.Normalization(name="norm")])
        for _ in range(2)
    )
    source.layers[0].adapt_mean.assign([3.0])
    _legacy(path, source)
    load_weights_file(target, path)
    np.testing.assert_allclose(
        target(np.float32([[5.0]])), [[2.0]], rtol=1e-6, atol=1e-6
    )  # (5 - 3) / 1


def test_real_backbone_round_trip(path):
    source = build_backbone("MobileNetV2", 32, "none", seed=1)
    source.save_weights(path)
    loaded, printed = _build(path, seed=2)
    assert printed == ""
    for a, b in zip(source.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def _build(path, **options):
    """Returns (backbone from the file, what building it printed)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return build_backbone("MobileNetV2", 32, path, **options), printed.getvalue()


def test_notes_are_printed(path):
    source = build_backbone("MobileNetV2", 32, "none", seed=1)
    _legacy(path, source)
    with h5py.File(path, "a") as file:
        file["Logits/Logits/kernel:0"] = np.zeros((2, 2))
    assert _build(path)[1] == f"--weights={path}: ignored 1 extra layer: Logits\n"


# conv2d_9, conv2d_10: not in order of their text
@pytest.mark.parametrize("first", (1, 9, 94))
@pytest.mark.parametrize("group", ("", "model_weights/small/"))
def test_names_that_keras_numbers_are_matched_by_order(path, first, group):
    source = backbone(seed=1, first=first)
    _legacy(path, source, group=group)
    _assert_loads(path, source)


def test_numbered_names_with_an_offset_and_one_more_are_not_guessed(path):
    _legacy(path, backbone(seed=1, first=1))
    with h5py.File(path, "a") as file:
        file["conv2d_3/conv2d_3/kernel:0"] = np.zeros((1, 1, 5, 5))
    _assert_refused(path, "conv2d/kernel is missing.*conv2d_1/kernel is missing")


def test_old_names_are_matched_by_distinct_shapes(path):
    source = backbone(seed=1)
    old = {"kernel": "W_1", "bias": "b_1"}
    _legacy(
        path,
        source,
        edit=lambda layer, name, value: (
            f"{layer}_{old[name]}:0/".strip("/")
            if layer.startswith("conv2d")
            else "depthwise/depthwise_kernel:0"
            if layer == "depthwise"
            else name,
            value,
        ),
    )
    _assert_loads(path, source)


def test_old_names_of_equal_shapes_are_not_guessed(path):
    _legacy(
        path,
        backbone(seed=1),
        edit=lambda layer, name, value: (f"v_{name}" if layer == "bn" else name, value),
    )
    _assert_refused(path, "bn/gamma is missing; bn/beta is missing")


def test_problems_are_counted_and_the_first_five_named(path):
    def edit(layer, name, value):
        if layer == "stem":
            return name, None
        return name, value[..., None] if layer in ("bn", "depthwise") else value

    _legacy(path, backbone(seed=1), edit=edit)
    _assert_refused(
        path,
        r"does not fit small: 9 of 13 variables .*: stem/kernel is missing; "
        r"stem/bias is missing; stem/gamma is missing; stem/beta is missing; "
        r"depthwise/kernel is \(3, 3, 5, 1, 1\) there, \(3, 3, 5, 1\) here; \.\.\.$",
    )


def test_keras3_file_of_another_model_is_refused(path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    _assert_refused(
        path, "13 of 13 variables have no usable value: stem/stem_conv/kernel is missing"
    )


def test_layer_that_stands_twice_is_refused(path):
    _legacy(path, backbone(seed=1))
    with h5py.File(path, "a") as file:
        file["other/bn/gamma:0"] = np.zeros(5)
    _assert_refused(path, "layer bn is in it twice, the second time under other")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])  # the last is finite only in float64
def test_value_that_is_not_finite_is_refused(path, bad):
    _legacy(
        path,
        backbone(seed=1),
        edit=lambda layer, name, value: (
            name,
            np.full(value.shape, bad, "float64") if name == "moving_mean" else value,
        ),
    )
    _assert_refused(path, "bn/moving_mean holds NaN or infinity")


def test_strings_are_not_numbers(path):
    _legacy(
        path,
        backbone(seed=1),
        edit=lambda layer, name, value: (
            name,
            np.full(value.shape, b"1.0") if name == "moving_mean" else value,
        ),
    )
    _assert_refused(path, "bn/moving_mean has type")


def test_file_that_is_missing_a_folder_or_not_hdf5_is_one_line(path):
    _assert_refused(
        path, "is not a file; expected imagenet, none, the directory of a finished run, or"
    )
    os.mkdir(path)
    _assert_refused(path, "is not a file")
    os.rmdir(path)
    with open(path, "wb") as file:
        file.write(b"\x80\x04not an hdf5 file")
    _assert_refused(path, "cannot be read: .*signature")


def test_cut_file_is_refused(path):
    _legacy(path, backbone(seed=1))
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    _assert_refused(path, "cannot be read")


# Files that would fit the model exactly if they were followed, read or inflated.


@pytest.fixture
def secret(path, tmp_path):
    """A file with all weights; the one at `path` lacks those of a layer."""
    _legacy(str(tmp_path / "secret.h5"), backbone(seed=1))
    _legacy(
        path,
        backbone(seed=1),
        edit=lambda layer, name, value: (name, None if layer == "depthwise" else value),
    )
    return str(tmp_path / "secret.h5")


def _add(path, write):
    with h5py.File(path, "a") as file:
        write(file)


@pytest.mark.parametrize(
    "make",
    [lambda secret: h5py.ExternalLink(secret, "/depthwise"), lambda _: h5py.SoftLink("/stem")],
    ids=["external", "soft"],
)
def test_link_is_refused(path, secret, make):
    _add(path, lambda file: file.__setitem__("depthwise", make(secret)))
    _assert_refused(path, "depthwise is a link")


def test_link_below_a_layer_is_refused(secret, path):
    _add(
        path,
        lambda file: file.create_group("depthwise").__setitem__(
            "kernel:0", h5py.ExternalLink(secret, "/depthwise/depthwise/kernel:0")
        ),
    )
    _assert_refused(path, "depthwise/kernel:0 is a link")


def test_file_that_is_a_link_in_keras3_layout_is_refused(secret, path):
    model = backbone(seed=1)
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/depthwise_conv2d/vars"]
        file["layers/depthwise_conv2d/vars"] = h5py.ExternalLink(secret, "/depthwise/depthwise")
    _assert_refused(path, "layers/depthwise_conv2d/vars is a link")


def test_data_kept_in_another_file_is_refused(secret, path):
    raw = secret + ".raw"
    np.ones((3, 3, 5, 1), "float32").tofile(raw)
    _add(
        path,
        lambda file: file.create_dataset(
            "depthwise/depthwise/kernel:0",
            (3, 3, 5, 1),
            "float32",
            external=[(raw, 0, h5py.h5f.UNLIMITED)],
        ),
    )
    with h5py.File(path) as file:
        # h5py itself does read it
        assert file["depthwise/depthwise/kernel:0"][()].sum() == 45
    _assert_refused(path, "kernel:0 stores its data in another file")


def test_virtual_data_set_is_refused(secret, path):
    layout = h5py.VirtualLayout((3, 3, 5, 1), "float32")
    layout[:] = h5py.VirtualSource(secret, "depthwise/depthwise/kernel:0", (3, 3, 5, 1))
    _add(path, lambda file: file.create_virtual_dataset("depthwise/depthwise/kernel:0", layout))
    _assert_refused(path, "kernel:0 stores its data in another file")


def test_declared_terabytes_are_refused(secret, path):
    _add(
        path,
        lambda file: file.create_dataset(
            "extra/extra/kernel:0", (10**6, 10**6), "float32", chunks=(1, 64)
        ),
    )
    _assert_refused(path, "declares 4000000")


def test_compressed_data_is_refused(secret, path):
    _add(
        path,
        lambda file: file.create_dataset(
            "depthwise/depthwise/kernel:0",
            data=np.zeros((3, 3, 5, 1), "float32"),
            compression="gzip",
        ),
    )
    _assert_refused(path, "kernel:0 is compressed")


def test_layers_inside_layers_are_found_in_a_model_that_keras_saved(tmp_path):
    def transformer(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((6, 4))
        x = keras.layers.MultiHeadAttention(2, 2, name="attention")(inputs, inputs)
        return keras.Model(inputs, keras.layers.LayerNormalization(name="norm")(x))

    path = str(tmp_path / "model.keras")
    source, inputs = transformer(1), keras.Input((6, 4))
    x = keras.layers.GlobalAveragePooling1D()(source(inputs))
    keras.Model(inputs, keras.layers.Dense(2)(x)).save(path)
    _assert_loads(path, source, transformer(2), "ignored 1 extra layer: layers/dense")


def _rewritten(place, edit=lambda members: None, **kwargs):
    """Saves a model and writes its members anew, with the arguments of `ZipFile`; returns where."""
    saved = str(place / "saved.keras")
    backbone(seed=1).save(saved)
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    path = saved.replace("saved", "again")
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_of_a_model_file_nothing_but_the_weights_is_read(tmp_path):
    path = _rewritten(tmp_path, lambda members: members.update({"config.json": b"{"}))
    _assert_loads(path, backbone(seed=1))


def test_model_file_that_is_compressed_cut_or_has_no_weights_is_refused(tmp_path):
    path = _rewritten(tmp_path, compression=zipfile.ZIP_DEFLATED)
    _assert_refused(path, "model.weights.h5 is compressed")
    path = _rewritten(tmp_path, lambda members: members.pop("model.weights.h5"))
    _assert_refused(path, "no item named 'model.weights.h5'")
    path = _rewritten(tmp_path)
    with open(path, "r+b") as file:  # another byte in the weights
        file.seek(os.path.getsize(path) // 2)
        file.write(b"\xff\x00\xff")
    _assert_refused(path, "Bad CRC-32")


def test_link_in_a_model_file_is_refused(tmp_path):
    def link(members):
        content = io.BytesIO(members["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            file["linked"] = h5py.ExternalLink("/etc/hostname", "/")
        members["model.weights.h5"] = content.getvalue()

    path = _rewritten(tmp_path, link)
    _assert_refused(path, "linked is a link")


def test_group_that_holds_itself_ends(secret, path):
    _add(path, lambda file: file.create_group("depthwise").__setitem__("again", file["/"]))
    _assert_refused(path, "more objects than a weights file")
