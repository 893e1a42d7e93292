"""The learning-rate factor at every step that matters, worked out by hand."""

import tensorflow as tf
from absl.testing import parameterized

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


class ClipWarmupTest(tf.test.TestCase):
    def test_warmup_that_fits_is_kept_without_a_warning(self):
        self.assertEqual(schedules.clip_warmup(6, 6), (6, None))

    def test_longer_warmup_is_clipped_with_a_warning(self):
        steps, warning = schedules.clip_warmup(7, 6)
        self.assertEqual(steps, 6)
        self.assertRegex(warning, "--warmup_steps=7 .* clipped to its 6 steps")


if __name__ == "__main__":
    tf.test.main()
