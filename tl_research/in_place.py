"""Large NumPy arrays that become tensors without the copy that `tf.constant` makes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_ALIGNMENT = 64  # bytes; TensorFlow operations abort the process on memory with another alignment


def zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Returns an array that `tensor_of` does not copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def tensor_of(array: np.ndarray) -> tf.Tensor:
    """Returns a tensor of an array, which must not be written to afterwards.

    It is copied if there is a GPU, or if it is not aligned as arrays of `zeros` are.
    """
    is_placed = array.size and array.flags.c_contiguous and not array.ctypes.data % _ALIGNMENT
    if not is_placed or tf.config.get_visible_devices("GPU"):
        return tf.constant(array)
    if (dtype := tf.as_dtype(array.dtype)) == tf.bfloat16:  # not supported by NumPy
        array = array.view(np.uint16)
    return tf.bitcast(tf.experimental.dlpack.from_dlpack(array.__dlpack__()), dtype)


def kept_rows(array: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Moves rows, in ascending order, to the front of an array and returns them."""
    for place, row in enumerate(rows):
        if place != row:
            array[place] = array[row]
    return array[: len(rows)]
