"""The observer that tells a person how the training goes: a row for each epoch, and warnings."""

import collections
import math
import sys
import time
from collections.abc import Callable

import numpy as np

from tl_research.config import Config
from tl_research.reporting import plan_text
from tl_research.reporting.terminal import BOLD, GREEN, duration, say
from tl_research.training.events import (
    CallEnded,
    EpochEnded,
    Event,
    HeadStarted,
    PhaseBegan,
    PhaseEnded,
    PhaseLaidOut,
    StepsCompiled,
)
from tl_research.training.objective import PLAIN_LOSS

_WIDTH = 79  # of a row, so that a terminal of 80 columns does not wrap it


class Console:
    """Prints what each event means.

    Args:
        config: Settings of the run.
        num_validation: Validation images.
        clock: A function that returns seconds.
    """

    def __init__(
        self, config: Config, num_validation: int, clock: Callable[[], float] = time.monotonic
    ):
        self._config, self._num_validation, self._clock = config, num_validation, clock
        self._recent_losses: collections.deque = collections.deque(
            maxlen=101
        )  # of the last calls in this phase
        # seconds of epochs, all included: the slowest, and those of this phase; and of compiling
        self._slowest, self._last, self._compiling = 0.0, 0.0, 0.0
        self._walls: list[float] = []
        self._told = {
            HeadStarted: self._head_started,
            PhaseBegan: self._phase_began,
            StepsCompiled: self._steps_compiled,
            PhaseLaidOut: self._phase_laid_out,
            CallEnded: self._call_ended,
            EpochEnded: self._epoch_ended,
            PhaseEnded: self._phase_ended,
        }

    def __call__(self, event: Event) -> None:
        self._told[type(event)](event)

    def _head_started(self, event):
        found = event.result
        numbers = ", ".join(f"{name} {found[name]:.4f}" for name in event.measured)
        say(
            f"start: closed-form head (LDA, shrinkage {found['shrinkage']:g}, temperature "
            f"{found['temperature']:.3g}): {numbers}"
        )

    def _phase_began(self, event):
        self._recent_losses.clear()
        self._walls, self._last = [], self._clock()
        opened, count = len(event.open_layers), event.num_layers
        part = f"top {opened} of {count} layers of the backbone" if opened < count else "backbone"
        what = f"head and {part} train" if opened else "head trains, backbone frozen"
        most = plan_text.up_to(event.phase)
        say(f"{event.phase.name}: {what}; {most}", style=BOLD)
        say("preparing features and compiling the steps")
        if self._config.verbose:
            say(plan_text.describe_phase(event))

    def _steps_compiled(self, event):
        self._compiling = event.seconds
        self._last += event.seconds  # which are of no epoch
        if self._config.verbose:
            say(
                f"phase {event.phase.name}: steps traced and compiled in {event.seconds:.1f} s, "
                f"XLA {'on' if event.xla else 'off'}"
            )

    def _phase_laid_out(self, event):
        name, asked = event.phase.name, event.phase.epochs
        say(
            f"time limit {event.seconds:g} s: "
            + (
                f"{name} shortened to {event.epochs} of {asked} epochs"
                if event.epochs < asked
                else f"all {asked} epochs of {name} fit"
            )
        )

    def _call_ended(self, event):
        """Says so if the mean loss of a call is over 100 times the median of those before it."""
        totals, before = event.totals, self._recent_losses
        if not totals["examples"]:
            return
        loss = float(totals["loss_sum"] / totals["examples"])
        if len(before) >= 5 and loss > 100 * max(np.median(before), 0.01):
            _warn(
                f"the loss of phase {event.phase.name} rose to {loss:.4g} at step {event.step}, "
                f"from a median of {np.median(before):.4g}; the likely cause: the learning rate "
                f"{event.phase.learning_rate:g} is too high"
            )
            before.clear()
        before.append(loss)

    def _epoch_ended(self, event):
        row, now = event.row, self._clock()
        if event.is_first and event.selected:
            self._warn_of_a_fall(event)
        self._walls.append(now - self._last)
        self._slowest, self._last = max(self._slowest, now - self._last), now
        phases = self._config.phase_plan
        names = [phase.name for phase in phases]
        done = sum(past["phase"] == event.phase.name for past in event.history)
        to_come = phases[names.index(event.phase.name) + 1 :]
        here, later = event.phase.epochs - done, sum(phase.epochs for phase in to_come)
        # An epoch of a phase to come trains more, but seldom takes longer than one that computed
        # features.
        left = here * sum(self._walls) / len(self._walls) + later * self._slowest
        left += self._compiling * sum(phase.epochs > 0 for phase in to_come)
        place = {
            "epoch": f"{row['epoch']}/{row['epoch'] + here + later}".rjust(5),
            "phase": event.phase.name.ljust(max(map(len, (*names, "phase")))),
        }
        times = {
            "time": duration(self._walls[-1]).rjust(6),
            "left": (duration(left) if here + later else "").rjust(6),
        }
        numbers = self._numbers(event, _WIDTH - len("  ".join([*place.values(), *times.values()])))
        cells = place | numbers | times
        if len(self._walls) == 1:
            say(_row({name: _heading(name, of) for name, of in cells.items()}), style=BOLD)
        say(_row(cells), style=GREEN if event.is_best else None)
        if row.get("skipped_steps"):
            say(f"loss scale {row['loss_scale']:g}, {row['skipped_steps']} steps skipped")

    def _numbers(self, event, room):
        """Returns {heading: cell} of as many measured numbers as there is room for."""
        by, cells = self._config.select_by, {}
        shown = [name for name in event.measured if name != f"train_{PLAIN_LOSS}"]
        for name in sorted(shown, key=lambda name: name != by):  # this one has some
            heading, value = _short(name), event.row[name]
            cell = f"{value:.3g}" if abs(value) >= 1000 else f"{value:.4f}"
            mark = "*" if name == by and event.is_best else " "
            cells[heading] = cell.rjust(max(6, len(heading))) + mark
            room -= 2 + len(cells[heading])
            if room < 0:
                del cells[heading]
                break
        return {h: cells[h] for h in map(_short, shown) if h in cells}

    def _warn_of_a_fall(self, event):
        """Says so if validation falls at a phase switch by over two standard errors."""
        share, now = event.selected.get("val_accuracy"), event.row.get("val_accuracy")
        count = self._num_validation
        if share is None or not math.isfinite(event.row["val_loss"]):
            return
        noise = 2 * math.sqrt(max(share * (1 - share), 1 / count) / count)
        if now < share - noise:
            cause = (
                f"the learning rate {event.phase.learning_rate:g} is too high for the open layers"
            )
            if self._config.batchnorm == "training":
                cause = "BatchNorm runs in training mode"
            _warn(
                f"val_accuracy fell from {share:.4f} to {now:.4f} at the switch to "
                f"{event.phase.name}, more than noise; the likely cause: {cause}"
            )

    def _phase_ended(self, event):
        result, phase, by = event.result, event.phase, self._config.select_by
        found = ", ".join(f"{_short(name)} {result[name]:.4f}" for name in event.measured)
        counts, early = result["audit"], result["epochs"] < phase.epochs
        moved = counts["batchnorm_stats_changed"]
        say(
            f"{phase.name}: best epoch {result['best_epoch']} ({found})"
            + f"; stopped after {phase.patience} without a better {by}" * early
            + (f"; {moved} BatchNorm statistics moved" if moved else "; frozen part unchanged")
        )
        if self._config.verbose:
            say(
                f"audit {phase.name}: {counts['trainable_changed']}/{counts['trainable_total']} "
                f"trainable variables changed, {counts['frozen_changed']}/"
                f"{counts['frozen_total']} frozen changed, {moved} BatchNorm statistics changed; "
                f"traced {result['traces']} time"
            )
        if kept := event.kept:
            say(
                f"{phase.name} did not improve {by} ({event.value:.4f} vs {kept[by]:.4f}); keeping "
                f"phase {kept['phase']}, epoch {kept['epoch']}"
            )


def _short(name):
    return name.removeprefix("train_").replace("accuracy", "acc")


def _row(cells):
    return "  ".join(cells.values()).rstrip()


def _heading(name, cell):
    """Returns a heading over its cell; one over a number ends before the place of the mark."""
    if name in ("epoch", "phase"):
        return name.ljust(len(cell))
    return name.rjust(len(cell)) if name in ("time", "left") else f"{name} ".rjust(len(cell))


def _warn(text):
    print(f"warning: {text}", file=sys.stderr)
