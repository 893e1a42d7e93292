"""The learning-rate factor at every step that matters, worked out by hand."""

import tensorflow as tf
from absl.testing import parameterized

from tl_research.config import Phase
from tl_research.optim import schedules


class LearningRateFactorTest(tf.test.TestCase, parameterized.TestCase):
    @parameterized.parameters(
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
    )
    def test_factor_at_each_step(self, schedule, warmup_steps, expected):
        factors = [
            schedules.learning_rate_factor(tf.constant(step, tf.int64), 6, schedule, warmup_steps)
            for step in range(len(expected))
        ]
        self.assertAllClose(factors, expected, rtol=0, atol=1e-6)
        self.assertEqual(factors[0].dtype, tf.float32)
        self.assertEqual(factors[0].shape, [])

    def test_step_and_lengths_may_be_tensors_of_one_trace(self):
        traces = []

        @tf.function
        def factor(step, num_steps, warmup_steps):
            traces.append(1)
            return schedules.learning_rate_factor(step, num_steps, "cosine", warmup_steps)

        self.assertAllClose(factor(tf.constant(1), tf.constant(6), tf.constant(2)), 1.0)
        self.assertAllClose(factor(tf.constant(4), tf.constant(6), tf.constant(2)), 0.5)
        self.assertAllClose(factor(tf.constant(3), tf.constant(4), tf.constant(0)), 0.1464466)
        self.assertLen(traces, 1)

    def test_unknown_schedule_is_refused(self):
        with self.assertRaisesRegex(ValueError, "'linear'.*'constant' or 'cosine'"):
            schedules.learning_rate_factor(tf.constant(0), 6, "linear", 0)


class MakeScheduleTest(tf.test.TestCase, parameterized.TestCase):
    @parameterized.parameters(
        # share of warm-up, steps of the phase, rates at its steps; the base rate is 2
        (0.3, 1, [2]),
        (0.3, 2, [2, 1]),
        (0.3, 3, [2, 2, 1]),
        # round(0.4 x 6) = 2 steps of warm-up
        (0.4, 6, [1, 2, 2, 1.7071068, 1, 0.2928932]),
        # of 5 steps at most 3, however large the share
        (0.99, 5, [2 / 3, 4 / 3, 2, 2, 1]),
    )
    def test_rate_reaches_its_base_and_comes_down_in_the_shortest_phase(
        self, warmup, num_steps, expected
    ):
        phase = Phase("p", 1, "0%", 2.0, 0, warmup, "cosine")
        rate_at = schedules.make_schedule(phase, num_steps)
        self.assertAllClose([rate_at(step) for step in range(num_steps)], expected, atol=1e-6)

    def test_recipe_of_the_flowers_warms_up_for_276_of_920_steps(self):
        rate_at = schedules.make_schedule(Phase("p", 10, "30%", 1.0, 0, 0.3, "cosine"), 920)
        self.assertAllClose([rate_at(step) for step in (0, 275, 276)], [1 / 276, 1, 1], rtol=1e-6)
        self.assertLess(rate_at(277), 1)


if __name__ == "__main__":
    tf.test.main()
