"""Reads a backbone's weights from an untrusted HDF5 file or Keras model file.

Only hard links are followed, and a data set is read only if it has the shape of its variable, so a
file can neither refer to another file nor make us allocate more than the model itself. Attributes
are never read: a short one can declare gigabytes. Only the weights of a model file are read, so
none of its code runs.
"""

import collections
import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator

import h5py
import keras
import numpy as np

from tl_research.errors import DataError, counted
from tl_research.models import keras_private

_MAX_DEPTH, _MAX_OBJECTS = 12, 100_000


def load_weights_file(model: keras.Model, path: str) -> None:
    """Assigns all variables of a backbone from a weights file, or none, and prints what was
    ignored.

    Supported formats are legacy HDF5 by layer name (at the top level, under `model_weights`, or
    inside one nested model) and Keras 3 `.weights.h5` and `.keras` by position (the model itself,
    or a model nested in the saved one). Layer names that Keras numbers (conv2d_95) are matched by
    order. Extra layers, such as a head, are ignored.

    Args:
        model: A built functional `keras.Model`.
        path: The file, or the directory of a finished run, whose exported model is then used.

    Raises:
        DataError: If the file cannot be read, is unsafe, or lacks a variable of the model, or if a
            value has another shape or is not finite. The model is then unchanged.
    """
    values, problems, extra = _found(model, path)
    if problems:
        raise DataError(
            f"--weights={path} does not fit {model.name}: {len(problems)} of "
            f"{len(problems) + len(values)} variables have no usable value: "
            f"{_first(problems, 5, '; ')}"
        )
    for variable, value in values:
        variable.assign(value)
    for layer in model.layers:
        # Keras' Normalization computes with copies of its variables
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    if extra:
        layers = counted(len(extra), "extra layer")
        print(f"--weights={path}: ignored {layers}: {_first(extra, 20, ', ')}")


def load_head(model: keras.Model, head: keras.Model, path: str, classes: Iterable[str]) -> bool:
    """Assigns the head's weights from a run's model if it fits and has the same classes.

    Args:
        model: The whole classifier, a functional `keras.Model`.
        head: The part of it that is the head.
        path: As for `load_weights_file`, which succeeded for it.
        classes: Names in the order of the labels.

    Returns:
        Whether the weights were assigned: only a run's model has its classes beside it.
    """
    try:
        beside = os.path.join(os.path.dirname(_file(path)), "classes.json")
        with open(beside, encoding="utf-8") as file:
            if json.load(file) != list(classes):
                return False
    except (OSError, ValueError):
        return False
    ours = {id(variable) for variable in head.weights}
    values = [pair for pair in _found(model, path)[0] if id(pair[0]) in ours]
    if len(values) < len(ours):
        return False
    for variable, value in values:
        variable.assign(value)
    return True


def _file(path):
    """Returns the file that --weights names: for a run's directory its exported model."""
    return f"{path}/export/model.keras" if os.path.isdir(path) else path


def _found(model, path):
    """Returns ([(variable, array)], problems of other variables, extra layers) of a weights file.

    Raises:
        DataError: If it cannot be read or is unsafe.
    """
    path = _file(path)
    if not os.path.isfile(path):
        raise DataError(
            f"--weights={path} is not a file; expected imagenet, none, the directory of a finished "
            "run, or the path of an HDF5 weights file or a .keras model."
        )
    try:
        with opened(path) as content, h5py.File(content, "r") as file:
            datasets = walk(file, os.path.getsize(path))
            if any(re.search(r"(^|/)vars/\d+$", name) for name in datasets):
                matches, extra = _match_keras3(model, datasets)
            else:
                matches, extra = _match_legacy(model, datasets)
            return *_read(matches, datasets), extra
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            f"--weights={path} cannot be read: {' '.join(str(error).split())}"
        ) from error


@contextlib.contextmanager
def opened(path: str) -> Iterator[str | io.BytesIO]:
    """Yields what h5py can open: the path, or the weights inside a `.keras` model."""
    if not zipfile.is_zipfile(path):
        yield path
        return
    with zipfile.ZipFile(path) as archive:
        weights = archive.getinfo("model.weights.h5")
        if weights.compress_type != zipfile.ZIP_STORED:  # as Keras writes them
            raise ValueError(f"{weights.filename} is compressed; write the model again with Keras")
        yield io.BytesIO(archive.read(weights))


def _first(items, number, separator):
    return separator.join(items[:number] + ["..."] * (len(items) > number))


def walk(file: h5py.File, file_size: int) -> dict[str, h5py.Dataset]:
    """Returns {path: data set} of the whole file.

    Raises:
        ValueError: If the file refers to other files or declares too much data.
    """
    datasets, declared, visited, groups = {}, 0, 0, [("", file)]
    while groups:
        prefix, group = groups.pop()
        for name in group:
            path = prefix + name
            visited += 1
            if visited > _MAX_OBJECTS or path.count("/") > _MAX_DEPTH:
                raise ValueError("it contains more objects than a weights file")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path} is a link; write the file again with its data inside")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((path + "/", item))
            elif isinstance(item, h5py.Dataset):
                _check_stored(path, item.id.get_create_plist())
                declared += item.size * item.dtype.itemsize if item.shape is not None else 0
                if declared > 2 * file_size + 65536:
                    raise ValueError(
                        f"it declares {declared} bytes of data in a file of {file_size}"
                    )
                datasets[path] = item
    return datasets


def _check_stored(path, properties):
    """Raises ValueError unless a data set is stored uncompressed inside its file."""
    if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(
            f"{path} stores its data in another file; write the file again with its data inside"
        )
    if properties.get_nfilters():  # a few bytes can expand to gigabytes
        raise ValueError(f"{path} is compressed; write the file again without compression")


def _match_keras3(model, datasets):
    """Returns ([(variable, label, data set path)], extra groups) of a Keras 3 file, which is laid
    out by class name.
    """
    layout = keras_private.saved_layout(model)
    prefix = _prefix(layout, datasets)
    paths = {id(variable): prefix + path for path, variable in layout.items()}
    matches = [(each, each.path, paths.get(id(each))) for each in model.weights]
    unused = datasets.keys() - paths.values()
    return matches, sorted({name.rpartition("/vars/")[0] for name in unused} - {""})


def _prefix(paths, datasets):
    """Returns the prefix that most of the paths have in the file."""
    prefixes = collections.Counter(
        name.removesuffix(path)
        for path in paths
        for name in datasets
        if f"/{name}".endswith(f"/{path}")
    )
    return max(sorted(prefixes), default="", key=prefixes.get)


def _match_legacy(model, datasets):
    """Returns ([(variable, label, data set path or None)], extra layers) of a legacy file, matched
    by layer name.
    """
    weighted = {layer.name: layer for layer in model.layers if layer.weights}
    kinds = {keras_private.to_snake_case(type(of).__name__) for of in weighted.values()}
    ours = list(weighted)
    paths, extra = {}, []
    for parent, layers in sorted(_legacy_layers(datasets, ours, kinds).items()):
        aligned = _align(layers, ours, kinds)
        extra += [f"{parent}/{name}".lstrip("/") for name in layers.keys() - aligned.keys()]
        if twice := paths.keys() & aligned.values():
            raise ValueError(f"layer {min(twice)} is in it twice, the second time under {parent}")
        paths |= {aligned[name]: layers[name] for name in aligned}
    matches = [
        (variable, f"{name}/{variable.name}", path)
        for name, layer in weighted.items()
        for variable, path in _pair(layer.weights, paths.get(name, []), datasets)
    ]
    return matches, sorted(extra)


def _legacy_layers(datasets, ours, kinds):
    """Returns {the nested model's group, or "": {layer name in the file: data set paths}}."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for path in datasets:
        parts = path.removeprefix("model_weights/").split("/")
        if len(parts) < 2 or parts[0] in ("optimizer_weights", "top_level_model_weights"):
            continue
        is_layer = [part in ours or _split(part)[0] in kinds for part in parts[:-1]]
        depth = is_layer.index(True) if any(is_layer) else 0
        found[parts[0] if depth else ""][parts[depth]].append(path)
    return found


def _split(name):
    """Returns (class part, number) of a name that Keras may have numbered: ("conv2d", 95) for
    conv2d_95 and ("conv2d", 0) for conv2d.
    """
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (name, 0)


def _align(theirs, ours, kinds):
    """Returns {layer name in the file: layer name in the model}.

    Keras counts conv2d_N over a whole process. So if such names differ but there are as many, the
    Nth in the file is the Nth in the model; if there are not as many, a match by name could be off
    by one, and none is made.
    """
    aligned = {name: name for name in theirs if name in ours}
    for kind in kinds:
        files, models = (
            sorted((n for n in names if _split(n)[0] == kind), key=_split)
            for names in (theirs, ours)
        )
        if len(files) == len(models):
            aligned.update(zip(files, models))
        elif not set(models) <= set(files):
            for name in files:
                aligned.pop(name, None)
    return aligned


def _pair(variables, paths, datasets):
    """Returns [(variable, data set path or None)] of one layer: by name or, in files of older Keras
    versions, by distinct shape.
    """
    by_name = {path.rpartition("/")[2].removesuffix(":0"): path for path in paths}
    names = [variable.name for variable in variables]
    if len(by_name) == len(paths) and by_name.keys() >= set(names):
        return list(zip(variables, map(by_name.get, names)))
    if len(paths) == len(variables) == 1:
        return [(variables[0], paths[0])]  # so that a wrong shape is reported
    shapes = [tuple(variable.shape) for variable in variables]
    theirs = [tuple(datasets[path].shape) for path in paths]
    are_distinct = len({*theirs}) == len(theirs) and len({*shapes}) == len(shapes)
    by_shape = dict(zip(theirs, paths)) if are_distinct else {}
    return list(zip(variables, map(by_shape.get, shapes)))


def _read(matches, datasets):
    """Returns ([(variable, array)], problems).

    Only data sets with the shape of their variable are read.
    """
    values, problems = [], []
    for variable, label, path in matches:
        dataset = datasets.get(path)
        if dataset is None:
            problems.append(f"{label} is missing")
        elif dataset.shape != tuple(variable.shape):
            problems.append(f"{label} is {dataset.shape} there, {tuple(variable.shape)} here")
        elif dataset.dtype.kind not in "fiu":
            problems.append(f"{label} has type {dataset.dtype}")
        else:
            with np.errstate(over="ignore"):  # 1e300 becomes infinity, which is rejected below
                value = dataset[()].astype(variable.dtype)
            if np.all(np.isfinite(value)):
                values.append((variable, value))
            else:
                problems.append(f"{label} holds NaN or infinity")
    return values, problems
