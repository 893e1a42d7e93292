"""The only place that imports TensorFlow: with the settings of this project, and without the notes
that it prints on stderr before it reads any log level.
"""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, cast

from tl_research.errors import UserError

# Read when TensorFlow and Keras are imported.
_SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_NNX_ENABLED": "false",
    "TF_USE_LEGACY_KERAS": "0",
}
_LIMITS = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH")  # of Keras' own loops, `predict` too
_TOUCHED = (*_SETTINGS, *_LIMITS, "TF_CPP_MIN_LOG_LEVEL", "HDF5_USE_FILE_LOCKING", "KERAS_HOME")
# Prints its input at the end unless it is killed: a process that crashes cannot do that itself.
_WATCHER = "import sys; text = sys.stdin.buffer.read(); sys.stderr.buffer.write(text)"


@contextlib.contextmanager
def dropped_stderr() -> Iterator[None]:
    """Drops output on stderr, also of C++ libraries, unless the process crashes; Python errors are
    not affected.
    """
    stderr = os.dup(2)
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER], stdin=subprocess.PIPE, start_new_session=True
    )
    pipe = cast(IO[bytes], watcher.stdin)
    os.dup2(pipe.fileno(), 2)
    try:
        yield
    finally:
        watcher.kill()
        os.dup2(stderr, 2)
        os.close(stderr)
        pipe.close()
        watcher.wait()


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras and finds the devices, without printing notes.

    Settings of Keras in `keras.json` and the environment are ignored: the bits of a run depend on
    its flags only.

    Raises:
        UserError: If they cannot be imported, Keras was imported with another backend, or file
            names are not decoded as UTF-8.
    """
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise UserError(
            f"file names are read as {encoding}; expected utf-8, in which split.json names images; "
            "start Python with -X utf8"
        )
    try:
        with _our_environment(), dropped_stderr():
            import tensorflow as tf

            tf.config.list_physical_devices()
            import keras

            tf.keras.Sequential  # noqa: B018 (loaded at first use)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        home = os.environ.get("KERAS_HOME", "~/.keras")
        raise UserError(
            f"TensorFlow and Keras cannot be imported ({reason}); expected them as setup.cfg "
            f"says, and settings in {home}/keras.json that Keras can read; install them again or "
            "remove that file"
        ) from error
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras was imported with the backend {keras.backend.backend()}; expected tensorflow; "
            "set KERAS_BACKEND=tensorflow before it is"
        )
    _set_keras(keras.config)


def _is_no_retracing(record):
    return "tf.function retracing" not in record.getMessage()


def drop_retracing_notes() -> None:
    """Drops TensorFlow's notes on retracing in the second run of a process: each run traces its own
    steps, once, as counted by `traces` of its results.
    """
    import tensorflow as tf

    tf.get_logger().addFilter(_is_no_retracing)


@contextlib.contextmanager
def _our_environment():
    """Sets the environment for the import, and restores it."""
    before = {name: os.environ.get(name) for name in _TOUCHED}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # HDF5 would not read weights on file systems without locks; we never write to such a file
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    os.environ.update(_SETTINGS)
    for name in _LIMITS:
        os.environ.pop(name, None)
    if os.path.expanduser("~") == "~" and "KERAS_HOME" not in os.environ:
        # No home is known: Keras would make a folder named ~ here.
        os.environ["KERAS_HOME"] = home = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, home, ignore_errors=True)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _set_keras(config):
    """Sets the defaults that `keras.json` may have changed."""
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")
    config.set_epsilon(1e-7)
    config.set_max_epochs(None)
    config.set_max_steps_per_epoch(None)
