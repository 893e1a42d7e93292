"""The observer that prints the progress of training: a row per epoch, and warnings."""

import collections
import math
import time
from collections.abc import Callable

import numpy as np

from tl_research.config import Config
from tl_research.errors import counted, to_stderr
from tl_research.reporting import plan_text
from tl_research.reporting.observer import EventHandler
from tl_research.reporting.terminal import BOLD, GREEN, duration, say
from tl_research.training.objective import PLAIN_LOSS

_WIDTH = 79  # of a row, so that a terminal of 80 columns does not wrap it
_WAITED = 0.005  # share of the time of training that is worth a line


class Console(EventHandler):
    """Prints lines for the events of training.

    Args:
        config: Settings of the run.
        clock: A function that returns seconds.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic):
        self._config, self._clock = config, clock
        # mean losses of the last calls in this phase
        self._recent_losses: collections.deque = collections.deque(maxlen=101)
        self._last = 0.0  # when the last epoch ended
        self._walls: list[float] = []  # seconds of the epochs of this phase, everything included

    def _on_HeadStarted(self, event):
        found = event.result
        numbers = ", ".join(f"{name} {found[name]:.4f}" for name in event.measured)
        say(
            f"start: closed-form head (LDA, shrinkage {found['shrinkage']:g}, temperature "
            f"{found['temperature']:.3g}): {numbers}"
        )

    def _on_PhaseBegan(self, event):
        self._recent_losses.clear()
        self._walls, self._last = [], self._clock()
        opened, count = len(event.open_layers), event.num_layers
        part = f"the top {opened} of {count} backbone layers" if opened < count else "the backbone"
        what = f"the head and {part}" if opened else "the head, backbone frozen"
        most = plan_text.up_to(event.phase)
        say(f"{event.phase.name}: training {what}; {most}", style=BOLD)
        say("preparing features and compiling the training step")
        if self._config.verbose:
            say(plan_text.describe_phase(event))

    def _on_StepsCompiled(self, event):
        self._last += event.seconds  # not part of an epoch
        if self._config.verbose:
            say(
                f"phase {event.phase.name}: steps traced and compiled in {event.seconds:.1f} s, "
                f"XLA {'on' if event.xla else 'off'}"
            )

    def _on_PhaseLaidOut(self, event):
        name, asked = event.phase.name, event.phase.epochs
        fit = f"all {asked} epochs of {name} fit"
        if event.epochs < asked:
            fit = f"{name} shortened to {event.epochs} of {asked} epochs"
        say(f"time limit {event.seconds:g} s: {fit}")

    def _on_CallEnded(self, event):
        """Warns if the mean loss of a call is over 100 times the median of the previous calls."""
        totals, before = event.totals, self._recent_losses
        if not totals["examples"]:
            return
        loss = float(totals["loss_sum"] / totals["examples"])
        if len(before) >= 5 and loss > 100 * max(np.median(before), 0.01):
            _warn(
                f"the loss of phase {event.phase.name} rose to {loss:.4g} at step {event.step}, "
                f"from a median of {np.median(before):.4g}; likely cause: the learning rate "
                f"{event.phase.learning_rate:g} is too high"
            )
            before.clear()
        before.append(loss)

    def _on_EpochEnded(self, event):
        row, now, phase = event.row, self._clock(), event.phase
        if event.is_first and event.selected:
            self._warn_of_a_fall(event)
        self._walls.append(now - self._last)
        self._last = now
        names = [phase.name for phase in self._config.phase_plan]
        here = phase.epochs - sum(past["phase"] == phase.name for past in event.history)
        later = self._config.phase_plan[names.index(phase.name) + 1 :]
        later_epochs = sum(phase.epochs for phase in later)
        place = {
            "epoch": f"{row['epoch']}/{row['epoch'] + here + later_epochs}".rjust(5),
            "phase": phase.name.ljust(max(map(len, (*names, "phase")))),
        }
        left = self._left(here, later_epochs)
        times = {"time": duration(self._walls[-1]).rjust(6), "left": left.rjust(8)}
        numbers = self._numbers(event, _WIDTH - len("  ".join([*place.values(), *times.values()])))
        cells = place | numbers | times
        if len(self._walls) == 1:
            say(_row({name: _heading(name, of) for name, of in cells.items()}), style=BOLD)
        say(_row(cells), style=GREEN if event.is_best else None)
        if row.get("skipped_steps"):
            say(f"loss scale {row['loss_scale']:g}, {row['skipped_steps']} steps skipped")
        if event.is_first and event.waited >= _WAITED:
            say(f"{event.waited:.1%} of the training time was spent waiting for images or features")

    def _left(self, here, later):
        """Returns an estimate of the time left, as text.

        Args:
            here: Epochs left in this phase.
            later: Epochs of later phases. What they take is not known yet, so if there are any,
                the text is a lower bound.
        """
        if not here:
            return ""
        return "> " * bool(later) + duration(here * sum(self._walls) / len(self._walls))

    def _numbers(self, event, room):
        """Returns {heading: cell} of as many metrics as fit into `room` letters."""
        by, cells = self._config.select_by, {}
        shown = [name for name in event.measured if name != f"train_{PLAIN_LOSS}"]
        for name in sorted(shown, key=lambda name: name != by):  # the one that selects first
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
        """Warns if validation accuracy falls at a phase switch by over two standard errors."""
        share, now = event.selected.get("val_accuracy"), event.row.get("val_accuracy")
        count = len(event.logits)  # validation images
        if share is None or not math.isfinite(event.row["val_loss"]):
            return
        noise = 2 * math.sqrt(max(share * (1 - share), 1 / count) / count)
        if now < share - noise:
            rate = event.phase.learning_rate
            cause = f"the learning rate {rate:g} is too high for the trainable layers"
            if self._config.batchnorm == "training":
                cause = "BatchNorm runs in training mode"
            _warn(
                f"val_accuracy fell from {share:.4f} to {now:.4f} at the switch to "
                f"{event.phase.name}, more than chance explains; likely cause: {cause}"
            )

    def _on_PhaseEnded(self, event):
        result, phase, by = event.result, event.phase, self._config.select_by
        found = ", ".join(f"{_short(name)} {result[name]:.4f}" for name in event.measured)
        counts, early = result["audit"], result["epochs"] < phase.epochs
        moved = counts["batchnorm_stats_changed"]
        say(
            f"{phase.name}: best epoch {result['best_epoch']} ({found})"
            + f"; stopped early: no better {by} in {counted(phase.patience, 'epoch')}" * early
            + (f"; {moved} BatchNorm statistics changed" if moved else "; frozen part unchanged")
        )
        if self._config.verbose:
            say(
                f"audit {phase.name}: {counts['trainable_changed']}/{counts['trainable_total']} "
                f"trainable variables changed, {counts['frozen_changed']}/"
                f"{counts['frozen_total']} frozen changed, {moved} BatchNorm statistics changed; "
                f"traces: {result['traces']}"
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
    """Returns the heading of a cell, aligned with it; a number is followed by its mark."""
    if name in ("epoch", "phase"):
        return name.ljust(len(cell))
    return name.rjust(len(cell)) if name in ("time", "left") else f"{name} ".rjust(len(cell))


def _warn(text):
    to_stderr(f"warning: {text}")
