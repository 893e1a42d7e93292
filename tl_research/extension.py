"""The parts of a run that a Python file of the user may replace, and loading such a file.

Since it is code, it is only run if the user names it: on the command line (`--extension=FILE.py`)
or from Python (`experiment.run(config, extension=...)`). docs/extending.md describes each part.
"""

import ast
import dataclasses
import functools
import glob
import hashlib
import importlib.abc
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tl_research.errors import UserError, suggestion


@dataclasses.dataclass(frozen=True)
class Extension:
    """Parts that replace the package's own; None keeps those.

    Raises:
        UserError: If a part has the wrong type, or its source, which identifies the run, cannot be
            read.
    """

    Step: type | None = None  # a subclass of `training.steps.TrainStep`
    make_objective: Callable | None = None  # (config, train) -> `training.objective.Objective`
    make_backbone: Callable | None = None  # (config) -> a functional `keras.Model`
    make_head: Callable | None = None  # (features, num_classes) -> logits, Keras tensors
    # {name: (columns, function), see `models.augmentation.Operation`, or a function from the factor
    # to a `data.mixing.Mixing`}
    augmentations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    make_optimizer: Callable | None = None  # (group) -> a Keras optimizer, or None
    load_catalog: Callable | None = None  # (config) -> `data.catalog.Table`
    epoch_ends: Callable | None = None  # (run, row, logits) -> {name: number}
    file: str | None = None  # the file it was read from
    sha256: str | None = None  # of that file, or of the sources of the parts

    def __post_init__(self):
        for name, part in self.parts().items():
            if name == "Step" and not hasattr(part, "summed_gradients"):
                raise UserError(f"Step is {part!r}; expected a subclass of TrainStep; correct it")
            if name != "augmentations" and not callable(part):
                raise UserError(f"{name} is {part!r}; expected a function; correct it")
        if self.parts() and self.sha256 is None:
            object.__setattr__(self, "sha256", _sha256_of_sources(self.parts()))

    def parts(self) -> dict[str, Any]:
        """Returns {name: part} of the replaced parts."""
        return {name: part for name in PARTS if (part := getattr(self, name))}

    @property
    def record(self) -> dict[str, Any] | None:
        """The entry `extension` of `run.json` and `results.json`, or None."""
        parts = list(self.parts())
        return {"file": self.file, "sha256": self.sha256, "parts": parts} if parts else None


PARTS = tuple(
    field.name for field in dataclasses.fields(Extension) if field.name not in ("file", "sha256")
)


def load(path: str | None) -> Extension:
    """Runs a file and returns the parts that it defines; no parts if `path` is None.

    Names of other functions and classes in it must begin with _, constants must be in capitals.

    Raises:
        UserError: If it cannot be read or run, or defines other names.
    """
    if path is None:
        return Extension()
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"--extension={path} cannot be read ({error.strerror}); expected a Python file; "
            "correct it",
            flag="extension",
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"tl_research_extension_{sha256[:16]}"
    loader = _Loader(os.path.abspath(path), content)
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # None without loader
    sys.modules[name] = module  # inspect finds the sources of its functions by it
    try:
        loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"--extension={path} cannot be run ({_place(error, path)}); expected Python code; "
            "correct it, or see --debug",
            flag="extension",
        ) from error
    _check_names(path, content)
    parts = {key: vars(module)[key] for key in PARTS if key in vars(module)}
    if not parts:
        raise UserError(
            f"--extension={path} defines no part of a run; expected any of {', '.join(PARTS)}; "
            "rename one",
            flag="extension",
        )
    return Extension(**parts, file=os.path.abspath(path), sha256=sha256)


def _check_names(path, content):
    """Raises UserError if a file defines a name that is neither a part nor marked as a helper."""
    for key in _defined(ast.parse(content)):
        if key not in PARTS and not key.startswith("_") and not key.isupper():
            raise UserError(
                f"--extension={path} defines {key}, which is no part of a run; expected any of "
                f"{', '.join(PARTS)}{suggestion(key, PARTS)}; begin names of helpers with _",
                flag="extension",
            )


class _Loader(importlib.abc.SourceLoader):
    """Runs contents that were read before, since the file may have changed, without a cache."""

    def __init__(self, path: str, content: bytes):
        self._path, self._content = path, content

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:
        if path != self._path:
            raise OSError(f"{path} is not read")
        return self._content


def _defined(tree):
    """Yields the names that a file defines, without imports."""
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id


def _place(error, path):
    """Returns the line of the file in which an error occurred, and the error."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == os.path.abspath(path)]
    return f"line {lines[-1] if lines else '?'}: {type(error).__name__}: {error}"


def _sha256_of_sources(parts):
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        pieces = part.items() if isinstance(part, Mapping) else [(name, part)]
        for key, piece in pieces:
            function = piece[-1] if isinstance(piece, tuple) else piece
            digest.update(f"{name} {key}\n{_source(name, function)}\n".encode())
    return digest.hexdigest()


def _source(name, function):
    """Returns the source of a function or class, and of the values in a function's closure."""
    try:
        text = inspect.getsource(function if callable(function) else type(function))
    except (OSError, TypeError) as error:
        raise UserError(
            f"extension: the source of {name} cannot be read ({error}); expected code that a "
            "resumed run can compare; write it into a file"
        ) from error
    for cell in getattr(function, "__closure__", None) or ():
        content = cell.cell_contents
        text += _source(name, content) if callable(content) else repr(content)
    return text


@functools.cache
def package_sha256() -> str:
    """Returns the SHA-256 of all source files of the package, in hexadecimal."""
    root, digest = os.path.dirname(os.path.abspath(__file__)), hashlib.sha256()
    for name in sorted(glob.glob("**/*.py", root_dir=root, recursive=True)):
        content = pathlib.Path(root, name).read_bytes()
        digest.update(f"{name}\n".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()
