"""A trained classifier as files: the plain Keras model, and models for serving that take images as
they are.

Each is written under a temporary name, asked for its answers to validation images, and deleted if
they differ.
"""

import os
import tempfile
import warnings
from typing import Any

from tl_research import quiet

quiet.import_tensorflow()

import keras
import numpy as np
import tensorflow as tf

from tl_research import machine, metrics
from tl_research.data import image_check
from tl_research.errors import ExportError, UserError
from tl_research.files import (
    make_folders,
    remove,
    rename,
    storage_errors,
    storage_reason,
    sync,
    sync_all,
    temporary_name,
)
from tl_research.models.classifier import folded_logits

NUM_COMPARED = 64
_NUM_TRIED = 4
_TOLERANCE = 1e-3  # relative; rounding of folded against plain BatchNorm


def save_keras(classifier, data, directory, batch_size):
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
    difference = _keep_if_equal(temporary, path, expected, received, _TOLERANCE)
    directory.write_json(os.path.join("export", "classes.json"), list(data.classes))
    print(
        f"exported {path}: logits equal to {difference:.1g} relative on {len(images)} validation "
        "images",
        flush=True,
    )


def save_temperature(calibration: dict[str, Any] | None, directory) -> None:
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
    expected = _in_batches(
        lambda batch: classifier.logits(pixels, [classifier.preprocessing(batch)]),
        images,
        batch_size,
    )
    loaded = keras.saving.load_model(path, compile=False)
    return expected, _in_batches(lambda batch: loaded(batch, training=False), images, batch_size)


def _in_batches(compute, images, batch_size):
    """Returns float32 [N, K], what a function of float32 images [B, S, S, 3] makes of uint8 ones,
    compiled, which keeps of its intermediate results only what it still needs.
    """
    compiled = tf.function(
        lambda batch: compute(tf.cast(batch, tf.float32)),
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], images.dtype)],
    )
    starts = range(0, len(images), batch_size)
    return np.concatenate([compiled(images[i : i + batch_size]).numpy() for i in starts])


def try_saving(classifier):
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
            if difference <= _TOLERANCE * max(largest, 1e-6):
                return
            why = f"then its logits of up to {largest:.3g} differ by {difference:.2g}"
    raise UserError(
        f"the backbone or head of the extension cannot be saved and loaded again: {why}; expected "
        "layers of Keras, or such as keras.saving.register_keras_serializable knows and that have "
        "a get_config; correct it"
    )


def _keep_if_equal(temporary, path, expected, received, tolerance):
    """Gives an artefact its name, or removes it; returns the relative difference of its answers."""
    difference = float(np.linalg.norm(received - expected) / np.linalg.norm(expected))
    with storage_errors(path):
        if not difference <= tolerance:
            remove(temporary)
            raise ExportError(
                f"the logits of {os.path.basename(path)} differ by {difference:.2g} relative on "
                f"{len(expected)} images; expected at most {tolerance:g}; the file was removed"
            )
        sync_all(temporary)
        if os.path.isdir(path):  # no file takes its place
            rename(path, trash := temporary_name(path, "trash"))
            remove(trash)
        os.replace(temporary, path)
        sync(os.path.dirname(path))
    return difference


def _served_class(logits, classes, temperature):
    names = tf.constant(list(map(os.fsencode, classes)))
    best = tf.gather(names, tf.argmax(logits, axis=1))
    return {"probabilities": tf.nn.softmax(logits / temperature), "class": best}


# By kind of answer: what is served of logits [B, K], its outputs and, of one class, its name.
_SERVED = {
    "class": _served_class,
    "set": lambda logits, classes, temperature: {"probabilities": tf.sigmoid(logits / temperature)},
    "number": lambda logits, classes, temperature: {"number": logits[:, 0]},
}


def serving_module(model, answer, classes, image_size, batch_size, temperature):
    """Returns a module whose `serve` takes uint8 images of any size and returns what is served of a
    kind of answer, with probabilities of logits divided by the temperature.
    """
    logits, module = folded_logits(model), tf.Module()

    @tf.function(
        input_signature=[tf.TensorSpec([batch_size, None, None, 3], tf.uint8, name="images")]
    )
    def serve(images):
        # Cast first: LiteRT resizes no integers.
        pixels = image_check.resized(tf.cast(images, tf.float32), image_size)
        return _SERVED[answer.name](logits(pixels), classes, temperature)

    module.serve, module.captured = serve, serve.get_concrete_function().variables
    return module


def write_saved_model(model, answer, classes, image_size, temperature, path):
    """Writes a SavedModel directory.

    Returns a function from uint8 [1, H, W, 3] to what it answers, read from there.
    """
    module = serving_module(model, answer, classes, image_size, None, temperature)
    with quiet.dropped_stderr(), tempfile.TemporaryDirectory() as place:
        # TensorFlow looks for the files by a pattern, which a [ in the run's path would be part of.
        link = os.path.join(place, "export")
        os.symlink(os.path.dirname(os.path.abspath(path)), link)
        linked = os.path.join(link, os.path.basename(path))
        tf.saved_model.save(module, linked, signatures=module.serve)
        serve = tf.saved_model.load(linked).signatures["serving_default"]
    return lambda image: {
        name: tensor.numpy() for name, tensor in serve(images=tf.constant(image)).items()
    }


def write_litert(model, answer, classes, image_size, temperature, path):
    """Writes a LiteRT (TensorFlow Lite) file; returns what `write_saved_model` does.

    Raises:
        UserError: If this TensorFlow has no converter.
        ExportError: If it cannot convert the model.
    """
    if not hasattr(tf, "lite"):
        raise UserError(
            f"--format=litert with TensorFlow {tf.__version__}, which has no tf.lite; expected its "
            "converter; install tensorflow 2.21 or leave litert out"
        )
    module = serving_module(model, answer, classes, image_size, 1, temperature)
    try:
        with quiet.dropped_stderr():
            content = tf.lite.TFLiteConverter.from_concrete_functions(
                [module.serve.get_concrete_function()], module
            ).convert()
    except Exception as error:  # the converter raises whatever its compiler does
        if storage_reason(error):
            raise
        raise ExportError(
            f"litert cannot hold this model ({str(error).strip().splitlines()[0]}); expected "
            "operations that it knows; use --format=saved_model"
        ) from error
    with open(path, "wb") as file:
        file.write(content)
    with quiet.dropped_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the interpreter will move to another package
        interpreter = tf.lite.Interpreter(path, num_threads=machine.cores())
        serve = interpreter.get_signature_runner()
        # says which kernels it takes
        serve(images=np.zeros((1, image_size, image_size, 3), np.uint8))
    return lambda image: serve(images=image)


# LiteRT resizes with other rounding errors: up to one pixel in forty, halfway between two values,
# becomes the other one.
FORMATS = {
    "saved_model": ("saved_model", write_saved_model, 1),
    "litert": ("model.tflite", write_litert, 10),
}


def save_for_serving(name, run, model, examples, directory, batch_size):
    """Writes one of `FORMATS` beside the Keras model and compares it with that, on images at their
    own sizes.

    Args:
        name: A key of `FORMATS`.
        run: The `TrainedRun`.
        model: Its Keras model.
        examples: `Examples`, of which the first are compared on.
        directory: The `Directory` to write to.
        batch_size: Images at a time of the Keras model.

    Returns:
        (path, what the comparison gave and of how many, function from uint8 [1, H, W, 3] to the
        model's answers, such an image)

    Raises:
        ExportError: If it answers differently, and was removed, or cannot be written in that
            format.
        StorageError: If it cannot be written.
    """
    file, write, tolerances = FORMATS[name]
    path, temporary = (
        directory.file("export", file),
        temporary_name(directory.file("export", file)),
    )
    count, answer = min(NUM_COMPARED, len(examples)), run.answer
    images = examples.images(range(count))
    logits = _in_batches(lambda batch: model(batch, training=False), images, batch_size)
    expected = answer.outputs(metrics.scaled(logits, run.temperature))
    try:
        with storage_errors(path):
            make_folders(directory.file("export"))
            size, temperature = run.config.image_size, run.temperature
            serve = write(model, answer, run.classes, size, temperature, temporary)
        # one at a time: photographs may be large
        answers = [serve(examples.original(index)[None]) for index in range(count)]
        key = next(name for name in answers[0] if name != "class")
        received = np.concatenate([served[key] for served in answers]).reshape(expected.shape)
        both = map(answer.comparable, (expected, received))
        difference = _keep_if_equal(temporary, path, *both, tolerances * _TOLERANCE)
    finally:
        remove(temporary)
    agreed = " on"
    if "class" in answers[0]:
        named = [os.fsdecode(served["class"][0]) for served in answers]
        pairs = zip(named, answer.decided(expected))
        same = sum(name == run.classes[place] for name, place in pairs)
        agreed = f", the class to that of model.keras for {same} of"
    parity = f"logits equal to {difference:.1g} relative{agreed} {count}"
    return path, parity, serve, examples.original(0)[None]
