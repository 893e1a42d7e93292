"""Models for serving that take images as they are, and need nothing of this package.

Resizing and preprocessing are inside, augmentation is gone, BatchNorm is folded, probabilities are
calibrated.
"""

import contextlib
import dataclasses
import functools
import math
import os
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
    escaped,
    make_folders,
    remove,
    storage_errors,
    storage_reason,
    temporary_name,
)
from tl_research.models.classifier import folded_logits
from tl_research.run.directory import Directory
from tl_research.trained import TrainedRun

_NUM_COMPARED = 256
_NUM_CALIBRATED = 100
_WARM_UP, _TIMED = 5, 50  # answers
_OPSET = 18  # of ONNX
# How a number stands in the directory of an image file that says how it is to be turned: tag 0x112,
# a short, one of them; then come its two bytes. By the order of bytes.
_ORIENTATION = (b"\x12\x01\x03\x00\x01\x00\x00\x00", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00")
_TRY_LITERT = """
import sys, numpy
from ai_edge_litert.interpreter import Interpreter
images = numpy.zeros(list(map(int, sys.argv[2:])), numpy.uint8)
Interpreter(sys.argv[1]).get_signature_runner()(images=images)
"""
_EXIF_BYTES = 1 << 17  # from the start of a file, which it stands in


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


def serving_module(
    model: keras.Model,
    answer: Answer,
    classes: tuple[str, ...],
    temperature: float,
    shape: tuple[int | None, int | None, int | None] = (None, None, None),
) -> tf.Module:
    """Returns a module whose `serve` takes uint8 images [B, H, W, 3] and whose `serve_bytes` takes
    the bytes [B] of JPEG, PNG and GIF files; each returns what is served of a kind of answer.

    Args:
        model: The Keras model.
        answer: A kind of `answers.ANSWERS`.
        classes: Names.
        temperature: What logits are divided by before they are made probabilities.
        shape: (B, H, W), of which any may be any number.
    """
    logits, module, size = folded_logits(model), tf.Module(), model.input_shape[1]
    pixels_of_network = tf.TensorSpec([shape[0], size, size, 3], tf.float32)

    @tf.function(input_signature=[pixels_of_network])  # one, so that the constants are there once
    def network(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return _SERVED[answer.name](logits(pixels), classes, temperature)

    @tf.function(input_signature=[tf.TensorSpec([*shape, 3], tf.uint8, name="images")])
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # Cast first: LiteRT resizes no integers.
        return network(image_check.resized(tf.cast(images, tf.float32), size))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
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
    """Returns uint8 [H, W, 3] of the bytes of such a file, upright, as training reads it."""
    pixels = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
    orientation = _orientation(content)
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
    for axis, turned in ((1, (2, 3, 6, 7)), (0, (3, 4, 7, 8))):
        is_turned, there = tf.reduce_any(orientation == turned), pixels
        pixels = tf.cond(is_turned, lambda: tf.reverse(there, [axis]), lambda: there)
    return pixels


def _orientation(content):
    """Returns the number by which EXIF says how an image is to be turned, int32, of its file's
    bytes; 1 where there is none.
    """
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


def write_saved_model(module: tf.Module, path: str, calibration: Any = None) -> Callable:
    """Writes a SavedModel directory of a `serving_module`, with a signature for each of its
    functions.

    Returns a function from uint8 [1, H, W, 3] to what it answers, read from there.
    """
    with quiet.dropped_stderr(), tempfile.TemporaryDirectory() as place:
        # TensorFlow looks for the files by a pattern, which a [ in the run's path would be part of.
        link = os.path.join(place, "export")
        os.symlink(os.path.dirname(os.path.abspath(path)), link)
        linked = os.path.join(link, os.path.basename(path))
        signatures = {"serving_default": module.serve, "image_bytes": module.serve_bytes}
        tf.saved_model.save(module, linked, signatures=signatures)
        serve = tf.saved_model.load(linked).signatures["serving_default"]
    return lambda image: {
        name: tensor.numpy() for name, tensor in serve(images=tf.constant(image)).items()
    }


def write_litert(
    module: tf.Module, path: str, calibration: Any = None, quantize: str = "none"
) -> Callable:
    """Writes a LiteRT (TensorFlow Lite) file; returns what `write_saved_model` does.

    Args:
        module: A `serving_module` of one image at a time.
        path: Of the file.
        calibration: A function to an iterator of images, uint8 [1, H, W, 3], for int8.
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
    with open(path, "wb") as file:
        file.write(content)
    shape = [length or 1 for length in module.serve.input_signature[0].shape]
    with _converting("litert"):
        # in another process first: at scales that it does not know, the interpreter dies
        command = [sys.executable, "-P", "-c", _TRY_LITERT, path, *map(str, shape)]
        tried = subprocess.run(command, capture_output=True)
        if tried.returncode:
            raise RuntimeError(f"its interpreter ends with exit code {tried.returncode}")
        runner = Interpreter(path, num_threads=machine.cores()).get_signature_runner()
        runner(images=np.zeros(shape, np.uint8))  # says which kernels it takes
    return lambda image: runner(images=image)


def write_onnx(module: tf.Module, path: str, calibration: Any = None) -> Callable:
    """Writes an ONNX file; returns and raises what `write_litert` does."""
    with _converting("onnx"):
        import onnxruntime
        from tf2onnx import convert

        served = module.serve.get_concrete_function()
        # else the model asks for what the function captured
        frozen = convert_variables_to_constants_v2(served)
        named = tf.function(lambda images: dict(zip(sorted(served.output_dtypes), frozen(images))))
        signature = module.serve.input_signature
        convert.from_function(named, signature, opset=_OPSET, output_path=path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(None, {"images": image})))


@contextlib.contextmanager
def _converting(name):
    """Drops what a converter prints, and tells its errors in a line."""
    try:
        with quiet.dropped_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the converter raises whatever its compiler does
        if storage_reason(error):
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{name} cannot hold this model ({what}); expected operations that it knows; use "
            "--format=saved_model"
        ) from error


class Reference:
    """What model.keras says of images, for exported models to be compared with.

    Args:
        run: The `TrainedRun`.
        model: Its Keras model.
        examples: `Examples`, of which images from the first to the last are taken.
        is_labeled: Whether the labels say what is to be seen.
        batch_size: Images at a time of the Keras model.
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
        self._places = spread(len(examples), _NUM_COMPARED)
        self._labels = examples.labels[self._places] if is_labeled else None
        logits = artefacts.in_batches(
            lambda batch: model(batch, training=False), examples.images(self._places), batch_size
        )
        self._outputs = run.answer.outputs(metrics.scaled(logits, run.temperature))

    @property
    def known(self) -> dict[str, Any]:
        """What there is to know of what is served, whatever the format: a JSON value."""
        return {
            "outputs": "probabilities" if self.run.answer.has_probabilities else "number",
            "classes": self.run.classes,
            "temperature": self.run.temperature,
            "versions": {"tl_research": __version__, "tensorflow": tf.__version__},
        }

    def served(self, shape: tuple[int | None, int | None, int | None]) -> tf.Module:
        """Returns the `serving_module` of images [B, H, W, 3] of a shape (B, H, W)."""
        run = self.run
        return serving_module(self._model, run.answer, run.classes, run.temperature, shape)

    def images(self, image_size: int | None = None) -> Iterator[np.ndarray]:
        """Yields uint8 [1, H, W, 3], at their own sizes or at one."""
        return images_of(self._examples, self._places, image_size)

    def compared(self, serve: Callable, image_size: int | None) -> dict[str, Any]:
        """Returns what there is to know of a function from uint8 [1, H, W, 3] to its answers: a
        JSON value.
        """
        answer, expected = self.run.answer, self._outputs
        # one at a time: photographs may be large
        answers = [serve(image) for image in self.images(image_size)]
        key = next(name for name in answers[0] if name != "class")
        received = np.concatenate([served[key] for served in answers]).reshape(expected.shape)
        logits = [answer.comparable(outputs) for outputs in (expected, received)]
        facts: dict[str, Any] = {
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


def spread(count: int, most: int) -> np.ndarray:
    """Returns int64 [min(count, most)], places from the first to the last: of every class."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def images_of(
    examples: Examples, places: np.ndarray, image_size: int | None = None
) -> Iterator[np.ndarray]:
    """Yields uint8 [1, H, W, 3] of these places, at their own sizes or at one."""
    for place in places:
        image = examples.original(place)
        yield (image if image_size is None else image_check.resize_image(image, image_size))[None]


@dataclasses.dataclass(frozen=True)
class _Format:
    """How a model is written.

    Attributes:
        file: Its name in `export/`.
        write: Such as `write_saved_model`.
        tolerance: Relative, of its logits. LiteRT and ONNX resize with other rounding errors: up to
            one pixel in forty, halfway between two values, becomes the other one.
        needs: {module: package} that it takes besides.
        batch_size: Of what it takes; None is any.
    """

    file: str
    write: Callable
    tolerance: float
    needs: dict[str, str] = dataclasses.field(default_factory=dict)
    batch_size: int | None = None


def _litert(quantize, file, tolerance):
    write = functools.partial(write_litert, quantize=quantize)
    return _Format(file, write, tolerance, {"ai_edge_litert": "ai-edge-litert"}, batch_size=1)


# By the format and, of LiteRT, how it is quantized. Of int8 the accuracy alone counts.
FORMATS = {
    # TensorFlow Serving looks for a folder of versions
    ("saved_model", "none"): _Format("saved_model/1", write_saved_model, 1e-3),
    ("litert", "none"): _litert("none", "model.tflite", 1e-2),
    ("litert", "float16"): _litert("float16", "model_float16.tflite", 2e-2),
    ("litert", "int8"): _litert("int8", "model_int8.tflite", math.inf),
    ("onnx", "none"): _Format(
        "model.onnx", write_onnx, 1e-2, {"tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"}
    ),
}


def check_installed(form: tuple[str, str]) -> None:
    """Raises UserError if a key of `FORMATS` needs what is not there."""
    needs = FORMATS[form].needs
    missing = [package for module, package in needs.items() if not find_spec(module)]
    if missing:
        raise UserError(
            f"--format={form[0]} needs {' and '.join(missing)}, not there; expected "
            f"{' and '.join(needs.values())}; pip install {' '.join(missing)}",
            "format",
        )


def save(
    form: tuple[str, str],
    reference: Reference,
    directory: Directory,
    fixed_size: bool = False,
    max_accuracy_drop: float = 1.0,
    calibration: Examples | None = None,
) -> tuple[str, dict[str, Any]]:
    """Writes a model for serving beside the Keras model, compares it with that, and writes what
    there is to know of it to a JSON file of the same name.

    Args:
        form: A key of `FORMATS`.
        reference: What it is compared with.
        directory: Where to write.
        fixed_size: Whether it takes images of the network's size only, and does not resize.
        max_accuracy_drop: What its accuracy may lack of that of model.keras; one image is no lack.
            Of numbers the share by which their mean absolute error may be larger.
        calibration: `Examples`, of which int8 is calibrated on some.

    Returns:
        (path, what stands in the JSON file)

    Raises:
        ExportError: If it answers differently, and was removed, or cannot be written in that
            format.
        StorageError: If it cannot be written.
    """
    wanted, size = FORMATS[form], reference.run.config.image_size
    fixed = size if fixed_size else None
    shape = (wanted.batch_size, fixed, fixed)
    path = directory.file("export", wanted.file)
    temporary = temporary_name(directory.file("export", wanted.file.replace("/", "_")))

    def calibrating():
        return images_of(calibration, spread(len(calibration), _NUM_CALIBRATED), fixed)

    try:
        with storage_errors(path):
            make_folders(directory.file("export"))
            serve = wanted.write(reference.served(shape), temporary, calibrating)
        facts = reference.compared(serve, fixed)
        difference, count = facts["relative_difference"], facts["images"]
        wrong = artefacts.differing(wanted.file, difference, wanted.tolerance, count)
        wrong = wrong or _worse(wanted.file, facts, max_accuracy_drop)
        artefacts.keep_if(wrong, temporary, path)
    finally:
        remove(temporary)
    known = {
        **dict(zip(("format", "quantize"), form)),
        "bytes": _bytes_of(path),
        "images": {"type": "uint8", "shape": [*shape, 3], "values": "RGB, 0 to 255, upright"},
        **reference.known,
        "compared": facts,
        "latency": latency(serve, next(reference.images(fixed))),
    }
    directory.write_json(os.path.join("export", f"{wanted.file.partition('/')[0]}.json"), known)
    names = [printable(escaped(name)) for name in reference.run.classes]
    directory.write_text(os.path.join("export", "labels.txt"), "\n".join([*names, ""]))
    return path, known


def _worse(file, facts, most):
    """Returns what is to be said of a file whose answers are too much worse than those of
    model.keras, or None.
    """
    if "measured" not in facts:
        return None
    most = max(most, 1 / facts["images"]) + 1e-9
    key = "accuracy" if "accuracy" in facts["measured"] else "mean_absolute_error"
    expected, received = (facts[of][key] for of in ("keras", "measured"))
    is_worse = received < expected - most if key == "accuracy" else received > expected * (1 + most)
    return is_worse and (
        f"{key} of {file} is {received:.4f}, of model.keras {expected:.4f}, on {facts['images']} "
        f"validation images; expected a loss of at most --max_accuracy_drop, {most:.2g}; the file "
        "was removed"
    )


def _bytes_of(path):
    """Returns the bytes of a file or of all files in a directory."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def latency(serve: Callable, image: np.ndarray) -> dict[str, Any]:
    """Returns how long an answer to an image [1, H, W, 3] takes, in milliseconds: a JSON value."""
    clocks = {"median_ms": time.perf_counter, "median_cpu_ms": time.process_time}
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(_WARM_UP + _TIMED):
        starts = {name: clock() for name, clock in clocks.items()}
        serve(image)
        for name, clock in clocks.items():
            times[name].append(1e3 * (clock() - starts[name]))
    medians = {name: statistics.median(of[_WARM_UP:]) for name, of in times.items()}
    height, width = image.shape[1:3]
    return {"height": height, "width": width, "answers": _TIMED, "cores": machine.cores()} | medians
