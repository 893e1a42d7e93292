"""Reads a backbone's weights from an HDF5 file, or a Keras model file, that may come from anyone.

A file is walked through hard links only and read only where a data set has the shape of the
variable it is for, so that it can neither name another file nor make us allocate more than the
model itself. No attribute is read: a short one can declare gigabytes. Of a model file only the
weights are read, so none of its code runs.
"""

import collections
import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from tl_research.errors import DataError

if TYPE_CHECKING:
    import h5py
    import keras

_MAX_DEPTH, _MAX_OBJECTS = 12, 100_000


def load_weights_file(model: "keras.Model", path: str) -> list[str]:
    """Assigns every variable of a backbone from a weights file, all or none, and returns notes on
    what was ignored.

    Understood are legacy HDF5 by layer name (at the top level, under `model_weights`, or a nested
    model deep) and Keras 3 `.weights.h5` and `.keras` by position (the model itself, or one nested
    in the model that was saved). Layer names that Keras numbers itself (conv2d_95) are matched by
    their order. Extra layers, such as a head, are ignored.

    Args:
        model: A built functional `keras.Model`.
        path: The file, or the directory of a finished run, whose exported model it is then.

    Returns:
        List of lines.

    Raises:
        DataError: If the file can't be read, is unsafe, leaves a variable of the model out, or has
            it in another shape or not finite. The model is then unchanged.
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
    if not extra:
        return []
    return [f"--weights={path}: ignored {len(extra)} extra layers: {_first(extra, 20, ', ')}"]


def load_head(model: "keras.Model", head: "keras.Model", path: str, classes: Iterable[str]) -> bool:
    """Gives a head the weights of a run's model that tells the same classes apart, if it fits.

    Args:
        model: The whole classifier, a functional `keras.Model`.
        head: The part of it that is the head.
        path: As of `load_weights_file`, of which it was a success.
        classes: Names in the order of the labels.

    Returns:
        Whether it did: only a run's model has its classes beside it.
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
    """Returns the file that --weights names: of a run's directory the model that it exported."""
    return os.path.join(path, "export", "model.keras") if os.path.isdir(path) else path


def _found(model, path):
    """Returns ([(variable, array)], problems of the others, extra layers) of a weights file.

    Raises:
        DataError: If it can't be read or is unsafe.
    """
    import h5py

    path = _file(path)
    if not os.path.isfile(path):
        raise DataError(
            f"--weights={path} is not a file; expected imagenet, none, the directory of a finished "
            "run, or the path of an HDF5 weights file or a .keras model."
        )
    try:
        with opened(path) as content, h5py.File(content, "r") as file:
            datasets = walk(file, h5py, os.path.getsize(path))
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
            f"--weights={path} can't be read: {' '.join(str(error).split())}"
        ) from error


@contextlib.contextmanager
def opened(path: str) -> Iterator[str | io.BytesIO]:
    """Yields what h5py opens: a file's path or, of a `.keras` model, the weights in it."""
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


def walk(file: "h5py.File", h5py: ModuleType, file_size: int) -> dict[str, "h5py.Dataset"]:
    """Returns {path: data set} of the whole file.

    Raises ValueError for what could read outside it or declares too much.
    """
    datasets, declared, visited, groups = {}, 0, 0, [("", file)]
    while groups:
        prefix, group = groups.pop()
        for name in group:
            path = prefix + name
            visited += 1
            if visited > _MAX_OBJECTS or path.count("/") > _MAX_DEPTH:
                raise ValueError("it holds more objects than a weights file does")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path} is a link; write the file again with its data inside")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((path + "/", item))
            elif isinstance(item, h5py.Dataset):
                _check_stored(path, item.id.get_create_plist(), h5py)
                declared += item.size * item.dtype.itemsize if item.shape is not None else 0
                if declared > 2 * file_size + 65536:
                    raise ValueError(
                        f"it declares {declared} bytes of data in a file of {file_size}"
                    )
                datasets[path] = item
    return datasets


def _check_stored(path, properties, h5py):
    """Raises ValueError unless a data set lies in its file as it is."""
    if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(
            f"{path} keeps its data in another file; write the file again with its data inside"
        )
    if properties.get_nfilters():  # a few bytes can inflate to gigabytes
        raise ValueError(f"{path} is compressed; write the file again without compression")


def _match_keras3(model, datasets):
    """Returns ([(variable, label, data set path or None)], extra groups) of a Keras 3 file, laid
    out by class names.
    """
    found = {id(variable): (path, label) for path, label, variable in _keras3_paths(model, "")}
    expected = [(*found.get(id(each), ("?", each.path)), each) for each in model.weights]
    prefix = _prefix([path for path, _, _ in expected], datasets)
    matches = [
        (variable, label, prefix + path if prefix + path in datasets else None)
        for path, label, variable in expected
    ]
    used = {path for _, _, path in matches}
    return matches, sorted(
        {name.rpartition("/vars/")[0] for name in datasets if name not in used} - {""}
    )


def _prefix(paths, datasets):
    """Returns what stands in the file before most of the paths."""
    prefixes = {
        name[: -len(path)]
        for path in paths
        for name in datasets
        if ("/" + name).endswith("/" + path)
    }
    there = {prefix: sum(prefix + path in datasets for path in paths) for prefix in prefixes}
    return max(sorted(there), default="", key=there.get)


def _keras3_paths(saved, prefix, label="", visited=None):
    """Returns [(data set path, label, variable)] as Keras' saving_lib lays out what it saves.

    A model's layers come before its other attributes; in a list what has no name of its own goes by
    its class, counted.
    """
    from keras.src.saving.keras_saveable import KerasSaveable
    from keras.src.saving.saving_lib import _walk_saveable

    visited = set() if visited is None else visited
    if isinstance(saved, KerasSaveable):
        if id(saved) in visited:
            return []
        visited.add(id(saved))
        own = [*getattr(saved, "_trainable_variables", ())]
        own += getattr(saved, "_non_trainable_variables", ())
        paths = [(f"{prefix}vars/{i}", f"{label}{each.name}", each) for i, each in enumerate(own)]
        inside = _walk_saveable(saved)
    else:
        paths, inside = [], _counted(saved.values() if isinstance(saved, dict) else saved)
    for name, each in inside:
        if isinstance(each, KerasSaveable):
            of_each = f"{label}{getattr(each, 'name', name)}/"
            paths += _keras3_paths(each, f"{prefix}{name}/", of_each, visited)
        elif isinstance(each, (list, dict, tuple)):
            paths += _keras3_paths(each, f"{prefix}{name}/", label, visited)
    return paths


def _counted(items):
    """Yields (name that Keras gives it in a list, item)."""
    from keras.src.saving.keras_saveable import KerasSaveable
    from keras.src.utils.naming import to_snake_case

    counts = collections.Counter()
    for each in items:
        kind = type(each).__name__ if isinstance(each, KerasSaveable) else "container"
        kind = to_snake_case(kind)
        yield kind + (f"_{counts[kind]}" if counts[kind] else ""), each
        counts[kind] += 1


def _match_legacy(model, datasets):
    """Returns ([(variable, label, data set path or None)], extra layers) of a legacy file, matched
    by layer name.
    """
    from keras.src.utils.naming import to_snake_case

    weighted = {layer.name: layer for layer in model.layers if layer.weights}
    ours, kinds = list(weighted), {to_snake_case(type(of).__name__) for of in weighted.values()}
    paths, extra = {}, []
    for parent, layers in sorted(_legacy_layers(datasets, ours, kinds).items()):
        aligned = _align(layers, ours, kinds)
        for name in layers:
            if name not in aligned:
                extra.append(f"{parent}/{name}" if parent else name)
            elif aligned[name] in paths:
                raise ValueError(
                    f"layer {aligned[name]} stands in it twice, the second time under {parent}"
                )
            else:
                paths[aligned[name]] = layers[name]
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
    """Returns (class part, number) of a name that Keras may have numbered: ("conv2d", 95), and
    ("conv2d", 0) of the first.
    """
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (name, 0)


def _align(theirs, ours, kinds):
    """Returns {layer name in the file: layer name in the model}.

    Keras counts conv2d_N over a whole process, so where such names differ but their number agrees,
    the Nth of the file is the Nth of the model; where the number differs too, a match by name could
    be off by one and none is made.
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
    """Returns [(variable, data set path or None)] of one layer: by name, or, in files of older
    Keras, by distinct shapes.
    """
    by_name = {path.rpartition("/")[2].removesuffix(":0"): path for path in paths}
    if len(by_name) == len(paths) and {variable.name for variable in variables} <= by_name.keys():
        return [(variable, by_name[variable.name]) for variable in variables]
    if len(paths) == len(variables) == 1:
        return [(variables[0], paths[0])]  # so that a wrong shape is named
    shapes = [tuple(variable.shape) for variable in variables]
    theirs = [tuple(datasets[path].shape) for path in paths]
    are_distinct = len({*theirs}) == len(theirs) and len({*shapes}) == len(shapes)
    by_shape = dict(zip(theirs, paths)) if are_distinct else {}
    return list(zip(variables, map(by_shape.get, shapes)))


def _read(matches, datasets):
    """Returns ([(variable, array)], problems).

    Only data sets of a variable's own shape are read.
    """
    import numpy as np

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
            with np.errstate(over="ignore"):  # 1e300 becomes infinity, which is refused below
                value = dataset[()].astype(variable.dtype)
            if np.all(np.isfinite(value)):
                values.append((variable, value))
            else:
                problems.append(f"{label} holds NaN or infinity")
    return values, problems
