"""Tries rising learning rates on a phase that is ready to train, and leaves no trace of it."""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tl_research.training.batch import epoch_inputs, stack
from tl_research.training.phase import PhaseSetup
from tl_research.training.state import TrainState

RATES = np.geomspace(1e-6, 1.0, 100)
_SMOOTHING = 0.9
_DIVERGED = 4  # times the smallest smoothed loss


def range_test(setup: PhaseSetup, state: TrainState) -> list[dict[str, float]]:
    """Returns dicts of learning_rate, loss and smoothed_loss, until the loss explodes.

    Smith 2017, arXiv:1506.01186, section 3.3. Every step is undone.
    """
    classifier = setup.plan.classifier
    values, slots = classifier.values(classifier.variables), setup.optimizer.state()
    rows = list(_losses(setup, state))
    classifier.assign(values)
    setup.optimizer.load_state(slots)
    return rows


def _losses(setup, state) -> Iterator[dict[str, float]]:
    rate, source = tf.Variable(0.0), setup.source
    make = setup.plan.step_maker(setup.optimizer, source, lambda step: rate)
    step = make(setup.plan.compiler.xla)
    average, smallest, scaling = 0.0, math.inf, state.scaling
    inputs = epoch_inputs(setup.plan, source, state.position.epoch + 1)
    for number, value in enumerate(RATES):
        rate.assign(value)
        row = number % len(inputs.indices)
        streamed = None
        if source.streamed:
            batch = source.stream(inputs.indices[row : row + 1].numpy(), int(inputs.view))
            streamed = stack(list(batch), 1)
        totals = step(inputs, row, 1, number, number, streamed, scaling)
        scaling = {name: totals.get(name, before) for name, before in scaling.items()}
        # In float16 a step whose loss is not finite is skipped.
        if not totals["finite"] or not totals["examples"]:
            return
        loss = float(totals["loss_sum"] / totals["examples"])
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING ** (number + 1))
        yield {"learning_rate": float(value), "loss": loss, "smoothed_loss": smoothed}
        smallest = min(smallest, smoothed)
        if smoothed > _DIVERGED * smallest:
            return


def suggest(rates: list[float], losses: list[float]) -> float:
    """Returns the rate at which the loss falls fastest per factor of the rate.

    Where it never falls, that is the first.

    Args:
        rates: Rising.
        losses: Smoothed, one for each rate.
    """
    if len(rates) < 2:
        return rates[0] if rates else math.nan
    slopes = np.gradient(losses, np.log(rates))
    return rates[int(np.argmin(slopes))]
