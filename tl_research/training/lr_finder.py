"""A trainer that tries learning rates before each phase and leaves no trace of it."""

import dataclasses
import math
import os

import numpy as np
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.files import csv_text, storage_errors
from tl_research.reporting import figures
from tl_research.training.loop import Trainer, stack

_RATES = np.geomspace(1e-6, 1.0, 100)
_SMOOTHING = 0.9
_DIVERGED = 4  # times the smallest smoothed loss


class Found(Exception):
    """Ends the run before its last phase, with the `suggestions` {phase name: base rate}."""

    def __init__(self, suggestions):
        super().__init__("all phases were looked at")
        self.suggestions = suggestions


class LearningRateFinder(Trainer):
    """A `Trainer` whose `run` raises `Found` before the first step of the last phase."""

    program = "-m tl_research.lr_find"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._suggestions = {}

    def run(self, summaries):
        """As `Trainer.run`; raises UserError if the last phase has begun."""
        phase = self._plan[self.state.phase_index]
        if self.state.phase_step and self._is_last(phase):
            raise UserError(
                f"{self._directory.path} is a run inside its last phase, {phase.name}, which would "
                "be trained; expected one before that; give another --workdir"
            )
        super().run(summaries)

    def _is_last(self, phase):
        return phase == [phase for phase in self._plan if phase.epochs][-1]

    def _run_epoch(self, phase, source, step, steps_per_epoch):
        if self.state.phase_step == 0:
            self._suggestions[phase.name] = self._find(phase, source)
            if self._is_last(phase):
                raise Found(self._suggestions)
        super()._run_epoch(phase, source, step, steps_per_epoch)

    def _find(self, phase, source):
        """Writes and prints what a phase makes of rising rates; returns the suggested one."""
        variables = {path: variable.numpy() for path, variable in self.classifier.variables.items()}
        optimizer = self._optimizer.state()
        rows = list(self._losses(phase, source))
        self._assign(variables, variables)
        self._optimizer.load_state(optimizer)
        rates, losses = ([row[name] for row in rows] for name in ("learning_rate", "smoothed_loss"))
        suggested = suggest(rates, losses)
        path = self._directory.file("lr_find", phase.name)
        with storage_errors(path):
            os.makedirs(self._directory.file("lr_find"), exist_ok=True)
            figures.save_learning_rates(f"{path}.png", rows, suggested)
        self._directory.write_text(
            f"lr_find/{phase.name}.csv", csv_text(("learning_rate", "loss", "smoothed_loss"), rows)
        )
        print(
            f"phase {phase.name}: suggested --learning_rate {suggested:.2g}, where the smoothed "
            f"loss falls fastest (range test of Smith 2017, {len(rows)} of {len(_RATES)} rates); "
            f"see {path}.csv",
            flush=True,
        )
        return suggested

    def _losses(self, phase, source):
        """Takes a step at each rate.

        Yields dicts of learning_rate, loss and smoothed_loss, until the loss explodes.
        """
        rate = tf.Variable(0.0)
        step = self._make_step(
            dataclasses.replace(phase, learning_rate=rate, warmup_steps=0, lr_schedule="constant"),
            self._optimizer,
            source,
            len(_RATES),
        )
        average, smallest, scaling = 0.0, math.inf, self.state.scaling
        inputs = self._epoch_inputs(source)
        for number, value in enumerate(_RATES):
            rate.assign(value)
            row = number % len(inputs.indices)
            streamed = (
                stack(
                    list(source.stream(inputs.indices[row : row + 1].numpy(), int(inputs.view))), 1
                )
                if source.streamed
                else None
            )
            totals = step(inputs, row, 1, number, number, streamed, scaling)
            scaling = {name: totals.get(name, value) for name, value in scaling.items()}
            # in float16 a step whose loss is not finite is skipped
            if not totals["finite"] or not totals["examples"]:
                return
            loss = float(totals["loss_sum"] / totals["examples"])
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            smoothed = average / (1 - _SMOOTHING ** (number + 1))
            yield {"learning_rate": float(value), "loss": loss, "smoothed_loss": smoothed}
            smallest = min(smallest, smoothed)
            if smoothed > _DIVERGED * smallest:
                return


def suggest(rates, losses):
    """Returns the rate at which the loss falls fastest per factor of the rate, or the first where
    it never falls.

    Args:
        rates: Rising.
        losses: Smoothed, one for each rate.
    """
    if len(rates) < 2:
        return rates[0] if rates else math.nan
    slopes = np.gradient(losses, np.log(rates))
    return rates[int(np.argmin(slopes))]
