"""Large arrays become tensors where they are, and TensorFlow reads from there."""

import numpy as np
import pytest
import tensorflow as tf

from tl_research import in_place

_ON_GPU = bool(tf.config.list_physical_devices("GPU"))


@pytest.mark.skipif(_ON_GPU, reason="there it is copied to the GPU")
@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
def test_tensor_of_an_array_is_the_same_memory(dtype):
    array = in_place.zeros((5, 3, 7), tf.as_dtype(dtype).as_numpy_dtype)
    tensor = in_place.tensor_of(array)
    assert (tensor.dtype, tensor.shape) == (dtype, (5, 3, 7))
    array[2] = 1.5
    np.testing.assert_array_equal(tf.gather(tensor, [2, 4]), array[[2, 4]])
    assert tf.function(lambda: tf.reduce_sum(tf.cast(tensor, tf.float32)))() > 0


def test_array_that_lies_elsewhere_is_copied_since_tensorflow_would_abort():
    array = in_place.zeros((5, 7), np.uint8)[1:]
    tensor = in_place.tensor_of(array)
    array[:] = 1
    assert not np.any(tensor[1:]) and in_place.tensor_of(array[:0]).shape == (0, 7)


def test_kept_rows_move_to_the_front_of_the_same_memory():
    array = np.arange(12).reshape(6, 2)
    kept = in_place.kept_rows(array, [0, 2, 3, 5])
    assert kept.base is not None and kept[:, 0].tolist() == [0, 4, 6, 10]
    assert np.shares_memory(kept, array)
