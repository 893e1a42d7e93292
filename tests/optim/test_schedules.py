"""The learning-rate factor at every step that matters, worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tl_research.config import Phase
from tl_research.optim import schedules

# The factor of a step.


@pytest.mark.parametrize(
    "schedule, warmup_steps, expected",
    [
        # schedule, warmup_steps, factors at steps 0, 1, ... of a phase of 6 steps
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("constant", 6, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
        # (1 + cos(pi t / 6)) / 2: cos = 1, sqrt(3) / 2, 1 / 2, 0, -1 / 2, -sqrt(3) / 2, then -1 at
        # the end and beyond
        ("cosine", 0, [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0, 0]),
        # cosine counts from the end of warm-up: 4 steps are left, (1 + cos(pi t / 4)) / 2
        ("cosine", 2, [0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0]),
        ("cosine", 6, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
    ],
)
def test_factor_at_each_step(schedule, warmup_steps, expected):
    factors = [
        schedules.learning_rate_factor(tf.constant(step, tf.int64), 6, schedule, warmup_steps)
        for step in range(len(expected))
    ]
    np.testing.assert_allclose(factors, expected, rtol=0, atol=1e-6)
    assert factors[0].dtype == tf.float32
    assert factors[0].shape == []


def test_step_and_lengths_may_be_tensors_of_one_trace():
    traces = []

    @tf.function
    def factor(step, num_steps, warmup_steps):
        traces.append(1)
        return schedules.learning_rate_factor(step, num_steps, "cosine", warmup_steps)

    np.testing.assert_allclose(
        factor(tf.constant(1), tf.constant(6), tf.constant(2)), 1.0, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(
        factor(tf.constant(4), tf.constant(6), tf.constant(2)), 0.5, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(
        factor(tf.constant(3), tf.constant(4), tf.constant(0)), 0.1464466, rtol=1e-6, atol=1e-6
    )
    assert len(traces) == 1


# The rates of a phase.


@pytest.mark.parametrize(
    "warmup, num_steps, expected",
    [
        # share of warm-up, steps of the phase, rates at its steps; the base rate is 2
        (0.3, 1, [2]),
        (0.3, 2, [2, 1]),
        (0.3, 3, [2, 2, 1]),
        # round(0.4 x 6) = 2 steps of warm-up
        (0.4, 6, [1, 2, 2, 1.7071068, 1, 0.2928932]),
        # of 5 steps at most 3, however large the share
        (0.99, 5, [2 / 3, 4 / 3, 2, 2, 1]),
    ],
)
def test_rate_reaches_its_base_and_comes_down_in_the_shortest_phase(warmup, num_steps, expected):
    phase = Phase("p", 1, "0%", 2.0, 0, warmup, "cosine")
    rate_at = schedules.make_schedule(phase, num_steps)
    np.testing.assert_allclose(
        [rate_at(step) for step in range(num_steps)], expected, rtol=1e-6, atol=1e-6
    )


def test_recipe_of_the_flowers_warms_up_for_276_of_920_steps():
    rate_at = schedules.make_schedule(Phase("p", 10, "30%", 1.0, 0, 0.3, "cosine"), 920)
    np.testing.assert_allclose(
        [rate_at(step) for step in (0, 275, 276)], [1 / 276, 1, 1], rtol=1e-6, atol=1e-6
    )
    assert rate_at(277) < 1
