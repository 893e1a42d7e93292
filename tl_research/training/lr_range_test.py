"""Tries increasing learning rates on a phase that is ready to train, and undoes every step."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from tl_research.training.batch import epoch_inputs, stack, streamed_rows
from tl_research.training.phase import PhaseSetup
from tl_research.training.state import TrainState
from tl_research.training.steps import TrainStep

RATES = np.geomspace(1e-6, 1.0, 100)
COLUMNS = ("learning_rate", "loss", "start_loss", "smoothed_loss")
_SMOOTHING = 0.9
_DIVERGED = 4  # times the smallest smoothed loss
_WINDOW = 13  # rates, a factor of 5 from first to last
_MIN_DROP = 0.1  # as a share of the first smoothed loss


def range_test(setup: PhaseSetup, state: TrainState) -> list[dict[str, float]]:
    """Returns dicts of learning_rate, loss, start_loss and smoothed_loss until the loss diverges.

    Smith 2017, arXiv:1506.01186, section 3.3. Unlike there, the loss of each batch with the initial
    weights, under the same augmentation and dropout, is measured too: `start_loss`. The difference
    is the effect of the rates; in fine-tuning, batches differ by more than that. `smoothed_loss` is
    the moving average of the differences plus the mean start_loss. Every step is undone.
    """
    plan, rate = setup.plan, tf.Variable(0.0)
    maker = plan.step_maker(setup.optimizer, setup.source, lambda step: rate)
    step = maker(plan.compiler.xla)
    with step.undone():
        start_losses = list(_losses(setup, state, step, rate, np.zeros_like(RATES)))
    with step.undone():
        return list(smoothed_rows(start_losses, _losses(setup, state, step, rate, RATES)))


def _losses(
    setup: PhaseSetup, state: TrainState, step: TrainStep, rate: tf.Variable, rates: np.ndarray
) -> Iterator[float]:
    """Takes a step at each rate and yields its loss, until a loss is not finite."""
    scaling = state.scaling
    inputs = epoch_inputs(setup.plan, setup.source, state.position.epoch + 1)
    for number, value in enumerate(rates):
        rate.assign(value)
        row = number % len(inputs.indices)
        stream = streamed_rows(setup.source, inputs, slice(row, row + 1))
        streamed = stream and stack([next(stream)], 1)
        totals = step(inputs, row, 1, number, number, streamed, scaling)
        scaling = {name: totals.get(name, before) for name, before in scaling.items()}
        # float16 skips a step whose loss is not finite
        if not totals["finite"] or not totals["examples"]:
            return
        yield float(totals["loss_sum"] / totals["examples"])


def smoothed_rows(start_losses: list[float], losses: Iterable[float]) -> Iterator[dict[str, float]]:
    """Yields the rows of `range_test` for the losses at each rate, until they diverge."""
    average, smallest = 0.0, math.inf
    for number, (rate, start_loss, loss) in enumerate(zip(RATES, start_losses, losses)):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * (loss - start_loss)
        smoothed = float(np.mean(start_losses)) + average / (1 - _SMOOTHING ** (number + 1))
        yield dict(zip(COLUMNS, (float(rate), loss, start_loss, smoothed)))
        smallest = min(smallest, smoothed)
        if smoothed > _DIVERGED * smallest:
            return


def suggest(rows: list[dict[str, float]]) -> tuple[float | None, str]:
    """Returns (rate at which the loss falls fastest, "") or (None, why there is none).

    A line is fitted to loss - start_loss over the logarithm of the rate in each window of a factor
    of 5, up to the lowest smoothed loss, after which training diverges. The answer is the middle of
    the window with the steepest line.

    Args:
        rows: What `range_test` returns.
    """
    if not rows:
        return None, "the loss is not finite"
    smoothed = [row["smoothed_loss"] for row in rows]
    lowest = int(np.argmin(smoothed))
    if smoothed[0] - smoothed[lowest] < _MIN_DROP * abs(smoothed[0]):
        return None, f"the loss falls by less than {_MIN_DROP:.0%} before it rises"
    steepest = _steepest_window(rows, lowest)
    if steepest.start == 0 or steepest.stop == len(RATES):
        edge = "lowest" if steepest.start == 0 else "highest"
        return None, f"the loss falls fastest at the {edge} rates tried"
    return rows[steepest.start + _WINDOW // 2]["learning_rate"], ""


def _steepest_window(rows, lowest):
    """Returns the slice of the rows, up to the lowest loss, whose fitted line falls fastest."""
    rates = np.log([row["learning_rate"] for row in rows])
    changes = np.array([row["loss"] - row["start_loss"] for row in rows])
    ends = range(_WINDOW, max(lowest + 2, _WINDOW + 1))
    windows = [slice(end - _WINDOW, end) for end in ends]
    slopes = [np.polyfit(rates[window], changes[window], 1)[0] for window in windows]
    return windows[int(np.argmin(slopes))]
