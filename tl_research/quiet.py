"""TensorFlow's start-up without its notes on stderr, which come before any log level is read and
would bury ours.
"""

import contextlib
import os


@contextlib.contextmanager
def dropped_stderr():
    """Drops what is printed on stderr meanwhile, also by C++ libraries; Python errors pass."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def import_tensorflow():
    """Imports TensorFlow and finds the devices, without their notes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # HDF5 would not read weights where there are no locks; nothing here writes into such a file
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    with dropped_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()
