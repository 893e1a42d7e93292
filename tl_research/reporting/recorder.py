"""The observer that records a run: printed lines, warnings, `metrics.csv` and TensorBoard."""

import collections
import math
import sys

import numpy as np

from tl_research.files import csv_text
from tl_research.reporting import pages
from tl_research.reporting.plan_text import describe_phase
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


class Recorder:
    """Writes down each event.

    Args:
        config: `tl_research.config.Config`.
        answer: The kind of `answers.ANSWERS`.
        data: `Dataset`.
        directory: The open `RunDirectory`.
        summaries: `tl_research.reporting.summaries.Summaries`.
    """

    def __init__(self, config, answer, data, directory, summaries):
        self._answer = answer
        self._config, self._directory, self._summaries = config, directory, summaries
        self._classes, self._validation = data.classes, data.validation
        self._recent_losses = collections.deque(maxlen=101)  # of the last calls in this phase
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
        print(
            f"start: closed-form head (LDA, shrinkage {found['shrinkage']:g}, temperature "
            f"{found['temperature']:.3g}): {numbers}",
            flush=True,
        )
        for name in event.measured:
            self._summaries.scalar("validation", name.removeprefix("val_"), found[name], 0)

    def _phase_began(self, event):
        self._recent_losses.clear()
        description = describe_phase(event)
        print(description, flush=True)
        pages.phase_begins(
            self._summaries, event.step, description, event.groups, event.phase.learning_rate
        )

    def _steps_compiled(self, event):
        print(
            f"phase {event.phase.name}: steps traced and compiled in {event.seconds:.1f} s, XLA "
            f"{'on' if event.xla else 'off'}",
            flush=True,
        )
        self._summaries.graph("train", f"step/{event.phase.name}", event.graph, event.step)

    def _phase_laid_out(self, event):
        name, asked = event.phase.name, event.phase.epochs
        print(
            f"time limit {event.seconds:g} s: "
            + (
                f"{name} shortened to {event.epochs} of {asked} epochs"
                if event.epochs < asked
                else f"all {asked} epochs of {name} fit"
            ),
            flush=True,
        )

    def _call_ended(self, event):
        totals = event.totals
        if totals["examples"]:
            self._warn_of_an_explosion(event, float(totals["loss_sum"] / totals["examples"]))
        base = float(totals["learning_rate"])
        applied = int(totals["steps"]) - int(totals.get("skipped_steps", 0))
        numbers = {}
        for group, norm, ratio in zip(
            event.groups, totals["gradient_norm_sum"].tolist(), totals["update_ratio"].tolist()
        ):
            numbers[f"learning_rate/{group.name}"] = base * group.lr_multiplier
            if applied:
                numbers[f"gradient_norm/{group.name}"] = norm / applied
                numbers[f"update_ratio/{group.name}"] = ratio
        if "loss_scale" in totals:
            numbers["loss_scale"] = float(totals["loss_scale"])
            numbers["skipped_steps"] = event.skipped_steps
        for tag, number in numbers.items():
            self._summaries.scalar("train", tag, number, event.step)

    def _warn_of_an_explosion(self, event, loss):
        """Says so if the mean loss of a call is over 100 times the median of those before it."""
        before = self._recent_losses
        if len(before) >= 5 and loss > 100 * max(np.median(before), 0.01):
            _warn(
                f"the loss of phase {event.phase.name} rose to {loss:.4g} at step {event.step}, "
                f"from a median of {np.median(before):.4g}; the likely cause: the learning rate "
                f"{event.phase.learning_rate:g} is too high"
            )
            before.clear()
        before.append(loss)

    def _epoch_ended(self, event):
        row, step = event.row, event.row["step"]
        if event.is_first and event.selected:
            self._warn_of_a_fall(event)
        columns = dict.fromkeys(name for row in event.history for name in row)
        self._directory.write_text("metrics.csv", csv_text(columns, event.history))
        for name in event.measured:
            prefix, _, tag = name.partition("_")
            side = "train" if prefix == "train" else "validation"
            tag = tag if prefix in ("train", "val") else name
            self._summaries.scalar(side, tag, row[name], step)
        self._summaries.scalar("train", "images_per_second", row["images_per_second"], step)
        self._summaries.scalar("train", "waiting_for_data", event.waited, step)
        confusion = self._answer.confusion(event.logits, self._validation.labels)
        if confusion is not None:
            pages.epoch_ends(self._summaries, step, confusion, self._classes)
        print(self._line(event), flush=True)

    def _line(self, event):
        row, phase = event.row, event.phase.name
        numbers = ", ".join(
            f"{name.removeprefix('train_')} {row[name]:.4f}" for name in event.measured
        )
        scaling = ""
        if "loss_scale" in row:
            scaling = f", loss scale {row['loss_scale']:g}, {row['skipped_steps']} steps skipped"
        return (
            f"{phase} epoch {row['epoch']}: {numbers}{' (best)' * event.is_best}, "
            f"{row['images_per_second']:.0f} images/s, {row['seconds']:.1f} s{scaling}"
        )

    def _warn_of_a_fall(self, event):
        """Says so if validation falls at a phase switch by over two standard errors."""
        share, now = event.selected.get("val_accuracy"), event.row.get("val_accuracy")
        count = len(self._validation)
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
        result, phase, by = event.result, event.phase.name, self._config.select_by
        counts = result["audit"]
        mistakes = pages.worst_mistakes(self._answer, event.logits, self._validation, self._classes)
        pages.phase_ends(self._summaries, event.step, counts, event.groups, mistakes)
        found = ", ".join(f"{name} {result[name]:.4f}" for name in event.measured)
        print(
            f"audit {phase}: {counts['trainable_changed']}/{counts['trainable_total']} trainable "
            f"variables changed, {counts['frozen_changed']}/{counts['frozen_total']} frozen "
            f"changed, {counts['batchnorm_stats_changed']} BatchNorm statistics changed; traced "
            f"{result['traces']} time; best weights of epoch {result['best_epoch']}: {found}",
            flush=True,
        )
        if kept := event.kept:
            print(
                f"{phase} did not improve {by} ({event.value:.4f} vs {kept[by]:.4f}); keeping "
                f"phase {kept['phase']}, epoch {kept['epoch']}",
                flush=True,
            )


def _warn(text):
    print(f"warning: {text}", file=sys.stderr)
