"""The trained classifier as a plain Keras model file.

It is written under a temporary name, compared with the trained network on validation images, and
deleted if the logits differ.
"""

import os
import tempfile
from collections.abc import Callable

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
    """Saves the plain Keras model and the class names, and compares the saved model with the
    trained network.

    Args:
        classifier: The trained `Classifier`, in float32, so that the file works anywhere.
        data: `Dataset`; its validation images are compared.
        directory: The open `RunDirectory`.
        batch_size: Batch size of the comparison; that of training needs no additional memory.

    Raises:
        ExportError: If the logits of validation images differ; the file is removed.
        StorageError: If it cannot be written.
    """
    path = directory.file("export/model.keras")
    temporary = f"{temporary_name(directory.file('export', 'model'))}.keras"
    images = data.validation.images(range(min(NUM_COMPARED, len(data.validation))))
    with storage_errors(path):
        make_folders(directory.file("export"))
        expected, received = _saved(classifier, images, temporary, batch_size)
    difference = relative_difference(expected, received)
    keep_if(differing("model.keras", difference, TOLERANCE, len(images)), temporary, path)
    directory.write_json("export/classes.json", list(data.classes))
    print(
        f"exported {path}: logits equal within a relative {difference:.1g} on {len(images)} "
        "validation images",
        flush=True,
    )


def _saved(classifier, images, path, batch_size):
    """Saves the Keras model; returns the logits of the network and of the model loaded again."""
    classifier.model.save(path)
    pixels = (classifier.graph.input,)  # computed from variables: constants would double the memory
    expected = in_batches(
        lambda batch: classifier.logits(pixels, [classifier.preprocessing(batch)]),
        images,
        batch_size,
    )
    loaded = keras.saving.load_model(path, compile=False)
    return expected, in_batches(lambda batch: loaded(batch, training=False), images, batch_size)


def in_batches(compute: Callable, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the outputs of a function for all images, float32 [N, K].

    Args:
        compute: A function of float32 images [B, S, S, 3]. It is compiled, so that intermediate
            results are freed as early as possible.
        images: uint8 [N, S, S, 3].
        batch_size: Images at a time.
    """
    compiled = tf.function(
        lambda batch: compute(tf.cast(batch, tf.float32)),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], images.dtype)],
        autograph=False,
    )
    starts = range(0, len(images), batch_size)
    return np.concatenate([compiled(images[i : i + batch_size]).numpy() for i in starts])


def try_saving(classifier: Classifier) -> None:
    """Tries before training whether the model can be saved after it.

    Args:
        classifier: A `Classifier` in float32 with parts of an extension.

    Raises:
        UserError: If it cannot be saved and loaded, or its logits differ after that.
        StorageError: If there is no room for it.
    """
    size = classifier.image_size
    draw = np.random.RandomState(0)
    images = tf.constant(draw.uniform(0, 255, (_NUM_TRIED, size, size, 3)), tf.float32)
    with tempfile.TemporaryDirectory() as directory, storage_errors(directory):
        try:
            path = f"{directory}/model.keras"
            expected, received = _saved(classifier, images, path, batch_size=1)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            why = str(error).rpartition("Exception encountered: ")[2].partition(". ")[0]
        else:
            difference = relative_difference(expected, received)
            if difference <= TOLERANCE:
                return
            why = f"its logits then differ by {difference:.2g} relative"
    raise UserError(
        f"the backbone or head of the extension cannot be saved and loaded again: {why}; expected "
        "layers of Keras, or layers with get_config and "
        "keras.saving.register_keras_serializable; correct it"
    )


def relative_difference(expected: np.ndarray, received: np.ndarray) -> float:
    """Returns the norm of the difference relative to that of `expected`; 0 if they are equal."""
    difference, norm = (float(np.linalg.norm(of)) for of in (received - expected, expected))
    return difference and difference / max(norm, 1e-30)


def differing(name: str, difference: float, tolerance: float, count: int) -> str | None:
    """Returns the error text if the logits of an exported file differ too much, or None.

    Args:
        name: The file's name.
        difference: Relative difference of the logits.
        tolerance: The largest one that is allowed.
        count: Number of images compared.
    """
    if difference <= tolerance:
        return None
    return (
        f"the logits of {name} differ by {difference:.2g} relative on {count} images; expected at "
        f"most {tolerance:g}; the file was removed"
    )


def keep_if(wrong: str | None, temporary: str, path: str) -> None:
    """Renames an exported file to its final name, or removes it if it is wrong.

    Args:
        wrong: Error text, or None.
        temporary: Where the file is.
        path: Its final name.

    Raises:
        ExportError: If it is wrong.
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
