"""A trained classifier as a file: the plain Keras model.

It is written under a temporary name, asked for its answers to validation images, and deleted if
they differ.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

from tl_research import quiet

quiet.import_tensorflow()

import keras
import numpy as np
import tensorflow as tf

from tl_research.data.dataset import Dataset
from tl_research.errors import ExportError, UserError
from tl_research.files import (
    make_folders,
    remove,
    rename,
    storage_errors,
    sync,
    sync_all,
    temporary_name,
)
from tl_research.models.classifier import Classifier
from tl_research.run.directory import RunDirectory

NUM_COMPARED = 64
_NUM_TRIED = 4
TOLERANCE = 1e-3  # relative; rounding of folded against plain BatchNorm


def save_keras(
    classifier: Classifier, data: Dataset, directory: RunDirectory, batch_size: int
) -> None:
    """Saves the plain Keras model and the class names, and checks that it answers as the trained
    network does.

    Args:
        classifier: The trained `Classifier`, in float32: the file is to serve anywhere.
        data: `Dataset`; the check is on its validation images.
        directory: The open `RunDirectory`.
        batch_size: Images at a time of the check, that of training: no more memory is needed then.

    Raises:
        ExportError: If the logits of validation images differ; the file is removed.
        StorageError: If it cannot be written.
    """
    path = directory.file("export", "model.keras")
    temporary = f"{temporary_name(directory.file('export', 'model'))}.keras"
    images = data.validation.images(range(min(NUM_COMPARED, len(data.validation))))
    with storage_errors(path):
        make_folders(directory.file("export"))
        expected, received = _saved(classifier, images, temporary, batch_size)
    difference = relative_difference(expected, received)
    keep_if(differing("model.keras", difference, TOLERANCE, len(images)), temporary, path)
    directory.write_json(os.path.join("export", "classes.json"), list(data.classes))
    print(
        f"exported {path}: logits equal to {difference:.1g} relative on {len(images)} validation "
        "images",
        flush=True,
    )


def save_temperature(calibration: dict[str, Any] | None, directory: RunDirectory) -> None:
    """Writes the temperature beside the Keras model, whose logits it divides.

    Args:
        calibration: Of `results.json`; of None nothing is written.
        directory: The open `RunDirectory`.
    """
    if calibration:
        path = os.path.join("export", "calibration.json")
        directory.write_json(path, {"temperature": calibration["temperature"]})


def _saved(classifier, images, path, batch_size):
    """Saves the Keras model; returns the logits of the network and of the model read from there."""
    classifier.model.save(path)
    pixels = (classifier.graph.input,)  # all from variables: constants would take memory again
    expected = in_batches(
        lambda batch: classifier.logits(pixels, [classifier.preprocessing(batch)]),
        images,
        batch_size,
    )
    loaded = keras.saving.load_model(path, compile=False)
    return expected, in_batches(lambda batch: loaded(batch, training=False), images, batch_size)


def in_batches(compute: Callable, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns float32 [N, K], what a function of float32 images [B, S, S, 3] makes of uint8 ones,
    compiled, which keeps of its intermediate results only what it still needs.
    """
    compiled = tf.function(
        lambda batch: compute(tf.cast(batch, tf.float32)),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], images.dtype)],
    )
    starts = range(0, len(images), batch_size)
    return np.concatenate([compiled(images[i : i + batch_size]).numpy() for i in starts])


def try_saving(classifier: Classifier) -> None:
    """Tries before training what `save_keras` does after it.

    Args:
        classifier: A `Classifier` in float32, with parts of the user's.

    Raises:
        UserError: If it cannot be saved and loaded, or answers differently then.
        StorageError: If there is no room for it.
    """
    size = classifier.image_size
    draw = np.random.RandomState(0)
    images = tf.constant(draw.uniform(0, 255, (_NUM_TRIED, size, size, 3)), tf.float32)
    with tempfile.TemporaryDirectory() as directory, storage_errors(directory):
        try:
            path = os.path.join(directory, "model.keras")
            expected, received = _saved(classifier, images, path, batch_size=1)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            why = str(error).rpartition("Exception encountered: ")[2].partition(". ")[0]
        else:
            largest, difference = np.abs(expected).max(), np.abs(received - expected).max()
            if difference <= TOLERANCE * max(largest, 1e-6):
                return
            why = f"then its logits of up to {largest:.3g} differ by {difference:.2g}"
    raise UserError(
        f"the backbone or head of the extension cannot be saved and loaded again: {why}; expected "
        "layers of Keras, or such as keras.saving.register_keras_serializable knows and that have "
        "a get_config; correct it"
    )


def relative_difference(expected: np.ndarray, received: np.ndarray) -> float:
    """Returns the norm of the difference, by that of what was expected."""
    return float(np.linalg.norm(received - expected) / np.linalg.norm(expected))


def differing(name: str, difference: float, tolerance: float, count: int) -> str | None:
    """Returns what is to be said of an artefact whose logits differ too much, or None."""
    if difference <= tolerance:
        return None
    return (
        f"the logits of {name} differ by {difference:.2g} relative on {count} images; expected at "
        f"most {tolerance:g}; the file was removed"
    )


def keep_if(wrong: str | None, temporary: str, path: str) -> None:
    """Gives an artefact its name; or removes it and raises ExportError, which says what is
    wrong.
    """
    with storage_errors(path):
        if wrong:
            remove(temporary)
            raise ExportError(wrong)
        sync_all(temporary)
        make_folders(os.path.dirname(path))
        if os.path.isdir(path):  # no file takes its place
            rename(path, trash := temporary_name(path, "trash"))
            remove(trash)
        os.replace(temporary, path)
        sync(os.path.dirname(path))
