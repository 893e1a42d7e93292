"""Large arrays of NumPy that become tensors where they are: `tf.constant` would copy them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_ALIGNMENT = 64  # bytes; an operation of TensorFlow aborts the process at memory elsewhere


def zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Returns an array that `tensor_of` need not copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def tensor_of(array: np.ndarray) -> tf.Tensor:
    """Returns a tensor of an array, which must not be written to any more.

    It is copied to a GPU, where there is one, or if it lies elsewhere than arrays of `zeros` do.
    """
    is_placed = array.size and array.flags.c_contiguous and not array.ctypes.data % _ALIGNMENT
    if not is_placed or tf.config.get_visible_devices("GPU"):
        return tf.constant(array)
    if (dtype := tf.as_dtype(array.dtype)) == tf.bfloat16:  # which NumPy does not hand over
        array = array.view(np.uint16)
    return tf.bitcast(tf.experimental.dlpack.from_dlpack(array.__dlpack__()), dtype)


def kept_rows(array: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns these rows, in ascending order, of an array, which they are moved to the front of."""
    for place, row in enumerate(rows):
        if place != row:
            array[place] = array[row]
    return array[: len(rows)]
