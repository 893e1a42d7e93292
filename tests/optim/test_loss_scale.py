"""The loss scale after sequences of steps, written down by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tl_research.optim import loss_scale


@pytest.mark.parametrize(
    "before, applied, after",
    [
        # Scale, steps applied since it changed, steps skipped in a row; which steps are applied;
        # the same after them.
        ((2.0**15, 0, 0), [True] * 1999, (2.0**15, 1999, 0)),
        ((2.0**15, 1998, 0), [True] * 2, (2.0**16, 0, 0)),
        ((2.0**15, 1999, 0), [False], (2.0**14, 0, 1)),  # counting begins anew
        ((2.0**15, 5, 0), [False, False, True, False], (2.0**12, 0, 1)),
        ((2.0**15, 0, 0), [False] * 15, (1.0, 0, 15)),
        ((1.0, 0, 15), [False] * 5, (1.0, 0, 20)),
        ((1.0, 0, 19), [True], (1.0, 1, 0)),
        ((2.0**24, 1999, 0), [True], (2.0**24, 0, 0)),
    ],
)
def test_halves_when_skipped_and_doubles_after_2000_applied_steps(before, applied, after):
    names = loss_scale.initial().keys()
    state = {name: tf.constant(float(value)) for name, value in zip(names, before, strict=True)}
    update = tf.function(loss_scale.update)
    for step in applied:
        state = update(state, tf.constant(step))
    np.testing.assert_array_equal([float(state[name]) for name in names], after)


def test_a_run_that_overflows_at_every_scale_tries_the_smallest_before_it_ends():
    assert loss_scale.initial() == {
        "loss_scale": 32768.0,
        "good_steps": 0.0,
        "skipped_in_a_row": 0.0,
    }
    assert loss_scale.INITIAL / 2.0 ** (loss_scale.MAX_SKIPPED - 1) <= loss_scale.FLOOR
