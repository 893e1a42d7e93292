"""The dynamic loss scale for float16, one for all parameter groups, as functions of a state that is
passed along with a step's tensors.

In float16, gradients below 6e-8 are zero and those above 65504 infinite. The loss is multiplied by
a scale, and the gradients are divided by it before clipping (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). A step whose gradients are not finite is skipped: it changes no
variable, slot or step count of any group, and halves the scale. `global_step`, which decides data,
dropout and learning rate, still counts it.
"""

from collections.abc import Mapping

import tensorflow as tf

INITIAL = 2.0**15
FLOOR, CEILING = 1.0, 2.0**24
GROWTH_STEPS = 2000  # steps applied in a row after which the scale doubles
MAX_SKIPPED = 20  # steps skipped in a row that end the run: 15 halvings take INITIAL to FLOOR


def initial() -> dict[str, float]:
    """Returns the state of a new run: the scale, the steps applied since it changed, and the steps
    skipped since one was applied.
    """
    return {"loss_scale": INITIAL, "good_steps": 0.0, "skipped_in_a_row": 0.0}


def update(state: Mapping[str, tf.Tensor], applied: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the state after a step.

    Args:
        state: Of the form of `initial`, with float32 tensors [].
        applied: bool tensor [], whether the step's gradients were finite.
    """
    scale, good_steps = state["loss_scale"], tf.where(applied, state["good_steps"] + 1.0, 0.0)
    grows = good_steps >= GROWTH_STEPS
    return {
        "loss_scale": tf.where(
            applied,
            tf.where(grows, tf.minimum(2.0 * scale, CEILING), scale),
            tf.maximum(scale / 2.0, FLOOR),
        ),
        "good_steps": tf.where(grows, 0.0, good_steps),
        "skipped_in_a_row": tf.where(applied, 0.0, state["skipped_in_a_row"] + 1.0),
    }
