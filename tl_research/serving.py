"""Models for serving, which take images of any size and do not need this package.

They include resizing and preprocessing and no augmentation; BatchNorm is folded, probabilities are
calibrated.
"""

import contextlib
import functools
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from tl_research import quiet

quiet.import_tensorflow()

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tl_research import __version__, artefacts, machine, metrics
from tl_research.answers import Answer
from tl_research.data import image_check
from tl_research.data.pipeline import Examples
from tl_research.data.split import printable
from tl_research.errors import ExportError, UserError
from tl_research.files import (
    Json,
    escaped,
    make_folders,
    remove,
    storage_errors,
    storage_reason,
    temporary_name,
)
from tl_research.models.classifier import folded_logits
from tl_research.run.directory import Directory, paths_below
from tl_research.trained import TrainedRun

Shape = tuple[int | None, int | None, int | None]  # (B, H, W) of images; None stands for any number
_NUM_COMPARED = 256
_NUM_CALIBRATED = 100
_WARM_UP, _TIMED = 5, 50  # answers
_OPSET = 18  # of ONNX
# The EXIF entry of the orientation up to its two bytes of value: tag 0x112, type short, count 1; in
# both byte orders.
_ORIENTATION = (b"\x12\x01\x03\x00\x01\x00\x00\x00", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00")
_TRY_LITERT = """
import sys, numpy
from ai_edge_litert.interpreter import Interpreter
images = numpy.zeros(list(map(int, sys.argv[2:])), numpy.uint8)
Interpreter(sys.argv[1]).get_signature_runner()(images=images)
"""
_EXIF_BYTES = 1 << 17  # searched at the start of a file


def _served_class(logits, classes, temperature):
    names = tf.constant(list(map(os.fsencode, classes)))
    best = tf.gather(names, tf.argmax(logits, axis=1))
    return {"probabilities": tf.nn.softmax(logits / temperature), "class": best}


# By kind of answer: the outputs served for logits [B, K] and, for one class, its name.
_SERVED = {
    "class": _served_class,
    "set": lambda logits, classes, temperature: {"probabilities": tf.sigmoid(logits / temperature)},
    "number": lambda logits, classes, temperature: {"number": logits[:, 0]},
}


def serving_module(
    model: keras.Model,
    answer: Answer,
    classes: tuple[str, ...],
    temperature: float,
    shape: Shape = (None, None, None),
) -> tf.Module:
    """Returns a module with two functions: `serve` takes uint8 images [B, H, W, 3], `serve_bytes`
    the contents [B] of JPEG, PNG and GIF files. Both return a dict of outputs.

    Args:
        model: The Keras model.
        answer: The kind of answer, from `answers.ANSWERS`.
        classes: Class names.
        temperature: Divides the logits before they become probabilities.
        shape: The shape of images.
    """
    logits, module, size = folded_logits(model), tf.Module(), model.input_shape[1]
    pixels_of_network = tf.TensorSpec([shape[0], size, size, 3], tf.float32)

    # shared, so that constants are stored once
    @tf.function(input_signature=[pixels_of_network], autograph=False)
    def network(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return _SERVED[answer.name](logits(pixels), classes, temperature)

    @tf.function(
        input_signature=[tf.TensorSpec([*shape, 3], tf.uint8, name="images")], autograph=False
    )
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # Cast first: LiteRT resizes no integers.
        return network(image_check.resized(tf.cast(images, tf.float32), size))

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False
    )
    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return network(
            tf.map_fn(
                lambda content: image_check.resized(tf.cast(_decoded(content), tf.float32), size),
                image_bytes,
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32),
            )
        )

    module.serve, module.serve_bytes = serve, serve_bytes
    module.captured = serve.get_concrete_function().variables
    return module


def _decoded(content):
    """Returns the image in a file's contents, uint8 [H, W, 3], upright, as training reads it."""
    pixels = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
    orientation = _orientation(content)
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
    for axis, turned in ((1, (2, 3, 6, 7)), (0, (3, 4, 7, 8))):
        is_turned, there = tf.reduce_any(orientation == turned), pixels
        pixels = tf.cond(is_turned, lambda: tf.reverse(there, [axis]), lambda: there)
    return pixels


def _orientation(content):
    """Returns the EXIF orientation in a file's contents, int32; 1 if there is none."""
    start = tf.io.decode_raw(tf.strings.substr(content, 0, _EXIF_BYTES), tf.uint8)
    start, found = tf.pad(start, [[0, 16]]), tf.constant(1, tf.uint8)
    for pattern in _ORIENTATION:
        count = tf.size(start) - len(pattern)
        bytes_of = [start[place : place + count] == byte for place, byte in enumerate(pattern)]
        places = tf.where(tf.reduce_all(bytes_of, axis=0))[:1]
        values = tf.gather_nd(start, places + len(pattern))
        found = tf.concat([values, [found]], axis=0)[0]
    found = tf.cast(found, tf.int32)
    return tf.where(found > 8, 1, found)


def write_saved_model(module: tf.Module, path: str, *_: Any) -> Callable:
    """Writes a `serving_module` as a SavedModel directory with one signature per function.

    Args:
        module: The `serving_module`.
        path: The directory.
        _: What other formats need.

    Returns:
        A function from uint8 [1, H, W, 3] to the outputs of the saved model.
    """
    with quiet.dropped_stderr(), tempfile.TemporaryDirectory() as place:
        # TensorFlow finds the files by a pattern; a [ in the run's path would become part of it.
        link = f"{place}/export"
        os.symlink(os.path.dirname(os.path.abspath(path)), link)
        linked = f"{link}/{os.path.basename(path)}"
        signatures = {"serving_default": module.serve, "image_bytes": module.serve_bytes}
        tf.saved_model.save(module, linked, signatures=signatures)
        serve = tf.saved_model.load(linked).signatures["serving_default"]
    return lambda image: {
        name: tensor.numpy() for name, tensor in serve(images=tf.constant(image)).items()
    }


def write_litert(module: tf.Module, path: str, calibration: Callable, quantize: str) -> Callable:
    """Writes a LiteRT (TensorFlow Lite) file; returns the same as `write_saved_model`.

    Args:
        module: A `serving_module` with batch size 1.
        path: The file.
        calibration: A function that returns an iterator of images, uint8 [1, H, W, 3], for int8.
        quantize: `none`, `float16` or `int8`.

    Raises:
        UserError: If this TensorFlow has no converter.
        ExportError: If it cannot convert the model.
    """
    from ai_edge_litert.interpreter import Interpreter

    if not hasattr(tf, "lite"):
        raise UserError(
            f"--format=litert with TensorFlow {tf.__version__}, which has no tf.lite; expected its "
            "converter; install tensorflow 2.21 or leave litert out"
        )
    with _converting("litert"):
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.serve.get_concrete_function()], module
        )
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            converter.representative_dataset = lambda: ({"images": i} for i in calibration())
        content = converter.convert()
    pathlib.Path(path).write_bytes(content)
    shape = [length or 1 for length in module.serve.input_signature[0].shape]
    with _converting("litert"):
        # in another process first: with scales that it does not support, the interpreter aborts
        command = [sys.executable, "-P", "-c", _TRY_LITERT, path, *map(str, shape)]
        tried = subprocess.run(command, capture_output=True)
        if tried.returncode:
            raise RuntimeError(f"its interpreter ends with exit code {tried.returncode}")
        runner = Interpreter(path, num_threads=machine.cores()).get_signature_runner()
        runner(images=np.zeros(shape, np.uint8))  # prints which kernels it uses
    return lambda image: runner(images=image)


def write_onnx(module: tf.Module, path: str, *_: Any) -> Callable:
    """Writes an ONNX file.

    Args:
        module: The `serving_module`.
        path: The file.
        _: What other formats need.

    Returns:
        A function from uint8 [1, H, W, 3] to the outputs of the file.

    Raises:
        ExportError: If the model cannot be converted.
    """
    with _converting("onnx"):
        import onnxruntime
        from tf2onnx import convert

        served = module.serve.get_concrete_function()
        # otherwise captured tensors become inputs of the model
        frozen = convert_variables_to_constants_v2(served)
        named = tf.function(
            lambda images: dict(zip(sorted(served.output_dtypes), frozen(images))), autograph=False
        )
        signature = module.serve.input_signature
        convert.from_function(named, signature, opset=_OPSET, output_path=path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(None, {"images": image})))


@contextlib.contextmanager
def _converting(name):
    """Hides the output of a converter and reports its errors in one line."""
    try:
        with quiet.dropped_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the converter raises whatever its compiler does
        if storage_reason(error):
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{name} cannot hold this model ({what}); expected operations that it supports; use "
            "--format=saved_model"
        ) from error


class Reference:
    """The outputs of model.keras for some images, which exported models are compared with.

    Args:
        run: The finished run.
        model: Its Keras model.
        examples: The images, of which up to 256 are used, evenly spaced.
        is_labeled: Whether the labels of `examples` are real.
        batch_size: Batch size for the Keras model.
    """

    def __init__(
        self,
        run: TrainedRun,
        model: keras.Model,
        examples: Examples,
        is_labeled: bool,
        batch_size: int,
    ):
        self.run, self._model, self._examples = run, model, examples
        places = _spread(examples, _NUM_COMPARED)
        self._labels = examples.labels[places] if is_labeled else None
        logits = artefacts.in_batches(
            lambda batch: model(batch, training=False), examples.images(places), batch_size
        )
        self._outputs = run.answer.outputs(metrics.scaled(logits, run.temperature))

    def served(self, shape: Shape) -> tf.Module:
        """Returns the `serving_module` for images of shape (B, H, W)."""
        run = self.run
        return serving_module(self._model, run.answer, run.classes, run.temperature, shape)

    def images(self, image_size: int | None = None) -> Iterator[np.ndarray]:
        """Yields the images, uint8 [1, H, W, 3], at their own sizes or resized."""
        return images_of(self._examples, _NUM_COMPARED, image_size)

    def compared(self, serve: Callable, image_size: int | None) -> Json:
        """Compares the outputs of an exported model with those of model.keras.

        Args:
            serve: A function from uint8 [1, H, W, 3] to the outputs.
            image_size: Size of its images; None: their own sizes.

        Returns:
            A JSON value.
        """
        answer, expected = self.run.answer, self._outputs
        # one at a time: photographs may be large
        answers = list(map(serve, self.images(image_size)))
        key = next(name for name in answers[0] if name != "class")
        received = np.concatenate([served[key] for served in answers]).reshape(expected.shape)
        logits = [answer.comparable(outputs) for outputs in (expected, received)]
        facts: Json = {
            "images": len(answers),
            "relative_difference": artefacts.relative_difference(*logits),
            "largest_difference": float(np.abs(received - expected).max()),
        }
        if "class" in answers[0]:
            named = [os.fsdecode(served["class"][0]) for served in answers]
            pairs = zip(named, answer.decided(expected))
            facts["same_class"] = sum(name == self.run.classes[place] for name, place in pairs)
        if self._labels is not None:
            for name, values in zip(("keras", "measured"), logits):
                facts[name] = answer.measured(np.asarray(values, np.float64), self._labels)
        return facts


def _spread(examples, most):
    """Returns indices of at most `most` examples, evenly spaced: all classes are among them."""
    return np.linspace(0, len(examples) - 1, min(len(examples), most)).astype(np.int64)


def images_of(examples: Any, most: int, image_size: int | None = None) -> Iterator[np.ndarray]:
    """Yields evenly spaced images as uint8 [1, H, W, 3].

    Args:
        examples: The images, `Examples`.
        most: The largest number of them.
        image_size: Size to which they are resized; None: their own sizes.
    """
    for place in _spread(examples, most):
        image = examples.original(place)
        yield (image if image_size is None else image_check.resize_image(image, image_size))[None]


# By format and quantization: the file name in `export/`, and the relative tolerance of the logits.
# Resizing in LiteRT and ONNX rounds differently: up to one pixel in forty, halfway between two
# values, becomes the other one. For int8 only the accuracy is compared.
FORMATS = {
    ("saved_model", "none"): ("saved_model/1", 1e-3),  # TensorFlow Serving: one per version
    ("litert", "none"): ("model.tflite", 1e-2),
    ("litert", "float16"): ("model_float16.tflite", 2e-2),
    ("litert", "int8"): ("model_int8.tflite", math.inf),
    ("onnx", "none"): ("model.onnx", 1e-2),
}
_WRITERS = {"saved_model": write_saved_model, "litert": write_litert, "onnx": write_onnx}
_NEEDS = {"litert": ("ai_edge_litert",), "onnx": ("tf2onnx", "onnxruntime")}  # modules
_BATCH_SIZES = {"litert": 1}  # others take any


def check_installed(name: str) -> None:
    """Raises UserError if modules that a format needs are not installed."""
    if missing := [module for module in _NEEDS.get(name, ()) if not find_spec(module)]:
        raise UserError(
            f"--format={name} needs {' and '.join(missing)}, which is not installed; expected "
            f"it; pip install {' '.join(missing)}",
            "format",
        )


def save(
    form: tuple[str, str],
    reference: Reference,
    directory: Directory,
    fixed_size: bool = False,
    max_accuracy_drop: float = 1.0,
    calibration: Examples | None = None,
) -> tuple[str, Json]:
    """Writes a model for serving beside the Keras model, compares the two, and writes facts about
    it to a JSON file of the same name.

    Args:
        form: A key of `FORMATS`.
        reference: The model it is compared with.
        directory: Where to write.
        fixed_size: Whether it takes only images of the network's size, without resizing.
        max_accuracy_drop: By how much its accuracy may be below that of model.keras; a single image
            is allowed. For numbers, the relative increase of the mean absolute error.
        calibration: Images to calibrate int8 on.

    Returns:
        (path, contents of the JSON file)

    Raises:
        ExportError: If its outputs differ, in which case it is removed, or the model cannot be
            converted.
        StorageError: If it cannot be written.
    """
    (name, quantize), (file, tolerance), run = form, FORMATS[form], reference.run
    fixed = run.config.image_size if fixed_size else None
    shape = (_BATCH_SIZES.get(name), fixed, fixed)
    path = directory.file("export", file)
    temporary = temporary_name(directory.file("export", file.replace("/", "_")))
    calibrating = functools.partial(images_of, calibration, _NUM_CALIBRATED, fixed)
    try:
        with storage_errors(path):
            make_folders(directory.file("export"))
            serve = _WRITERS[name](reference.served(shape), temporary, calibrating, quantize)
        facts = reference.compared(serve, fixed)
        difference, count = facts["relative_difference"], facts["images"]
        artefacts.keep_if(
            artefacts.differing(file, difference, tolerance, count)
            or less_accurate(file, facts, max_accuracy_drop),
            temporary,
            path,
        )
    finally:
        remove(temporary)
    known = {
        "format": name,
        "quantize": quantize,
        "bytes": sum(map(os.path.getsize, filter(os.path.isfile, [path, *paths_below(path)]))),
        "images": {"type": "uint8", "shape": [*shape, 3], "values": "RGB, 0 to 255, upright"},
        "outputs": "probabilities" if run.answer.has_probabilities else "number",
        "classes": run.classes,
        "temperature": run.temperature,
        "versions": {"tl_research": __version__, "tensorflow": tf.__version__},
        "compared": facts,
        "latency": latency(serve, next(reference.images(fixed))),
    }
    directory.write_json(f"export/{file.partition('/')[0]}.json", known)
    names = [printable(escaped(name)) for name in run.classes]
    directory.write_text("export/labels.txt", "\n".join([*names, ""]))
    return path, known


def less_accurate(file: str, facts: Json, most: float) -> str | None:
    """Returns the error text if an exported file is too much less accurate than model.keras, or
    None.

    Args:
        file: Its name.
        facts: The number of `images`, and the accuracies of `keras` and, if known, `measured`.
        most: The share of the accuracy, or of the mean absolute error, that may be lost.
    """
    if "measured" not in facts:
        return None
    most = max(most, 1 / facts["images"]) + 1e-9
    key = "accuracy" if "accuracy" in facts["measured"] else "mean_absolute_error"
    expected, received = (facts[of][key] for of in ("keras", "measured"))
    is_worse = received < expected - most if key == "accuracy" else received > expected * (1 + most)
    if not is_worse:
        return None
    return (
        f"{key} of {file} is {received:.4f}, of model.keras {expected:.4f}, on {facts['images']} "
        f"validation images; expected a loss of at most --max_accuracy_drop, {most:.2g}; the file "
        "was removed"
    )


def latency(serve: Callable, image: np.ndarray) -> Json:
    """Returns the milliseconds to answer one image, uint8 [1, H, W, 3], as a JSON value."""
    times = []
    for _ in range(_WARM_UP + _TIMED):
        start, cpu_start = time.perf_counter(), time.process_time()
        serve(image)
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
    median, cpu_median = (1e3 * statistics.median(of) for of in zip(*times[_WARM_UP:]))
    return {
        "height": image.shape[1],
        "width": image.shape[2],
        "answers": _TIMED,
        "cores": machine.cores(),
        "median_ms": median,
        "median_cpu_ms": cpu_median,
    }
