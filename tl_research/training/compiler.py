"""Compiles steps, and explains in one line a lack of memory or of operations that XLA supports."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import CompileError, OutOfMemoryError, StorageError, UserError, to_stderr
from tl_research.files import storage_reason
from tl_research.models import keras_private
from tl_research.models.classifier import Classifier
from tl_research.run.directory import RunDirectory


@dataclasses.dataclass
class Compiler:
    """Compiles steps with XLA, until a step fails to compile and XLA is not required."""

    xla: bool  # whether steps are compiled with XLA now
    required: bool  # whether it is an error if XLA cannot compile a step
    directory: RunDirectory  # which records that XLA failed, so that the run is resumed without

    def prepared(self, make: Callable, *arguments: Any) -> Any:
        """Returns a compiled step of training or evaluation.

        Args:
            make: Returns the step; its argument is whether to use XLA.
            arguments: For the step's `prepare`.

        Raises:
            CompileError: If XLA cannot compile it and is required.
        """
        try:
            step = make(self.xla)
            step.prepare(*arguments)
            return step
        except CompileError as error:
            if self.required:
                raise
            to_stderr(f"warning: {error}; continuing without XLA")
        self.xla = False
        if recorded := self.directory.read_json("run.json"):
            self.directory.write_json("run.json", {**recorded, "xla": False})
        return self.prepared(make, *arguments)


def needs_autograph(*parts: Any) -> bool:
    """Returns whether a part of a step is of a class of the user's, whose Python conditions on
    tensors AutoGraph compiles. Ours have none, and converting them takes 4 seconds of a run.
    """
    modules = (type(part).__module__ for part in parts)
    return not all(module.partition(".")[0] == "tl_research" for module in modules)


@contextlib.contextmanager
def memory_errors(config: Config, what: str) -> Iterator[None]:
    """Turns a lack of memory in `what`, or an operation that --deterministic forbids, into a
    one-line error.
    """
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        if reason := storage_reason(error):
            raise StorageError(
                f"could not write in {what}: {reason}; expected a disk with room; free some or "
                "choose another --workdir"
            ) from error
        smaller = "a smaller --image_size"
        if config.batch_size > 1:
            smaller = f"--batch_size={config.batch_size // 2}"
        raise OutOfMemoryError(
            f"out of memory in {what} at batch_size {config.batch_size}, image_size "
            f"{config.image_size}; expected a step that fits; try {smaller} in another --workdir"
        ) from error
    except tf.errors.UnimplementedError as error:
        if not config.deterministic:
            raise
        raise UserError(
            f"--deterministic in {what}: {error.message}; expected operations with a deterministic "
            "kernel; use another --backbone or --augment, or leave --deterministic out"
        ) from error


@contextlib.contextmanager
def compile_errors(classifier: Classifier, xla: bool) -> Iterator[None]:
    """Turns an error of XLA's compiler into one line with its operation and layer.

    A UserError from tracing, which TensorFlow wraps, is raised itself.
    """
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.UnimplementedError,
        tf.errors.InternalError,
    ) as error:
        if not xla:
            raise
        raise CompileError(
            f"XLA cannot compile {_what(error.message, classifier)}; expected operations that it "
            "supports on this device; use --xla=off"
        ) from error
    except Exception as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, UserError):
            cause = cause.__context__
        if cause:
            raise cause from None
        raise


def _what(message, classifier):
    """Returns the operation, the layer and the reason in an error of XLA's compiler."""
    node = next(iter(re.findall(r"\{\{node ([^}]+)\}\}", message)), "")
    # In a graph, Keras numbers the scope of a layer that is called again.
    scopes = [
        name for scope in node.split("/")[:-1] for name in (scope, re.sub(r"_\d+$", "", scope))
    ]
    layers = {layer.name for layer in keras_private.all_layers(classifier.backbone)}
    layer = next((f" of layer {name}" for name in scopes if name in layers), "")
    reason = re.sub(r"\{\{[^}]*\}\}|__inference\S*", "", message.split("\n")[0]).strip()
    return f"{f'operation {node}' if node else 'the step'}{layer}: {reason}"
