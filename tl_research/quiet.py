"""The one place that imports TensorFlow: with the settings that this project is made for, and
without the notes on stderr that come before any log level is read and would bury ours.
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

# Read when TensorFlow and Keras are imported, before anything can be set.
_SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_NNX_ENABLED": "false",
    "TF_USE_LEGACY_KERAS": "0",
}
_LIMITS = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH")  # of Keras' own loops, `predict` too
_TOUCHED = (*_SETTINGS, *_LIMITS, "TF_CPP_MIN_LOG_LEVEL", "HDF5_USE_FILE_LOCKING", "KERAS_HOME")
# Prints what it read, unless it is ended before: a process that dies cannot do that itself.
_WATCHER = "import sys; text = sys.stdin.buffer.read(); sys.stderr.buffer.write(text)"


@contextlib.contextmanager
def dropped_stderr() -> Iterator[None]:
    """Drops what is printed on stderr meanwhile, also by C++ libraries, unless the process dies of
    it; Python errors pass.
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
    """Imports TensorFlow and Keras and finds the devices, without their notes.

    What `keras.json` and the environment say of Keras is not followed: a run's bits are a function
    of its flags.

    Raises:
        UserError: If they cannot be imported, Keras is imported already with another backend, or
            file names are not read as UTF-8.
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

            tf.keras.Sequential  # noqa: B018 (found when it is first asked for)
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
    """Drops what TensorFlow says of the second run in a process: each traces its own steps, once;
    `traces` of its results counts that.
    """
    import tensorflow as tf

    tf.get_logger().addFilter(_is_no_retracing)


@contextlib.contextmanager
def _our_environment():
    """Sets what is read at the import; afterwards the caller's environment is as it was."""
    before = {name: os.environ.get(name) for name in _TOUCHED}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # HDF5 would not read weights where there are no locks; nothing here writes into such a file
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    os.environ.update(_SETTINGS)
    for name in _LIMITS:
        os.environ.pop(name, None)
    if os.path.expanduser("~") == "~" and "KERAS_HOME" not in os.environ:
        # No home is known: a folder of that name would be made here.
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
    """Sets what `keras.json` may have set otherwise."""
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")
    config.set_epsilon(1e-7)
    config.set_max_epochs(None)
    config.set_max_steps_per_epoch(None)
