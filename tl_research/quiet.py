"""TensorFlow's start-up without its notes on stderr, which come before any log level is read and would bury ours."""

import os


def import_tensorflow():
    """Imports TensorFlow and finds the devices; what the C++ libraries print meanwhile is dropped, Python errors are not."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
