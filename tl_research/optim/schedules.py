"""The learning-rate factor as a function of the step within a phase."""

import math
from collections.abc import Callable

import tensorflow as tf

from tl_research.config import Phase


def learning_rate_factor(
    step: tf.Tensor, num_steps: int | tf.Tensor, schedule: str, warmup_steps: int | tf.Tensor
) -> tf.Tensor:
    """Returns the factor on the base learning rate for the next step.

    With t = `step`, T = `num_steps`, W = `warmup_steps`:

        t < W:             (t + 1) / W, linear; the last step of warm-up has factor 1
        t >= W, constant:  1
        t >= W, cosine:    (1 + cos(pi (t - W) / (T - W))) / 2, 1 at t = W and 0 at t = T

    Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5; here one cycle to 0, without restarts.
    Warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2.

    Args:
        step: int tensor [], steps done in this phase.
        num_steps: Steps of the phase, int or int tensor [].
        schedule: `constant` or `cosine`.
        warmup_steps: Steps of warm-up, at most `num_steps`, int or int tensor []; 0: none.

    Returns:
        float32 tensor [], no unit, in [0, 1].
    """
    step, num_steps, warmup_steps = (
        tf.cast(value, tf.float32) for value in (step, num_steps, warmup_steps)
    )
    if schedule == "constant":
        factor = tf.ones([])
    else:
        # The clip keeps the rate at 0 after the end; maximum(..., 1) is for a phase that is all
        # warm-up.
        progress = tf.clip_by_value(
            (step - warmup_steps) / tf.maximum(num_steps - warmup_steps, 1.0), 0.0, 1.0
        )
        factor = 0.5 * (1.0 + tf.cos(math.pi * progress))
    return tf.where(step < warmup_steps, (step + 1.0) / tf.maximum(warmup_steps, 1.0), factor)


def make_schedule(phase: Phase, num_steps: int | tf.Variable) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from the step in a phase, int tensor [], to its base learning rate.

    At least two steps follow warm-up, even in a short phase: one at the base rate, and one at which
    cosine is below it.

    Args:
        phase: `tl_research.config.Phase`.
        num_steps: Steps of the whole phase: a number, or a variable that may change between steps.
    """

    def rate_at(step: tf.Tensor) -> tf.Tensor:
        steps = tf.convert_to_tensor(num_steps, tf.int64)
        share = tf.cast(tf.round(phase.warmup * tf.cast(steps, tf.float64)), tf.int64)
        warmup_steps = tf.minimum(share, tf.maximum(steps - 2, 0))
        factor = learning_rate_factor(step, steps, phase.lr_schedule, warmup_steps)
        return phase.learning_rate * factor

    return rate_at
