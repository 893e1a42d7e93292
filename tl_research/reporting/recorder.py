"""The observer that records a run: `metrics.csv`, TensorBoard, and the phases in `plan.txt`."""

from tl_research.answers import Answer
from tl_research.data.dataset import Dataset
from tl_research.files import csv_text, storage_errors
from tl_research.reporting import pages
from tl_research.reporting.plan_text import describe_phase
from tl_research.reporting.summaries import Summaries
from tl_research.run.directory import RunDirectory
from tl_research.training.events import (
    CallEnded,
    EpochEnded,
    Event,
    HeadStarted,
    PhaseBegan,
    PhaseEnded,
    StepsCompiled,
)
from tl_research.training.objective import PLAIN_LOSS


class Recorder:
    """Writes down each event.

    Args:
        answer: The kind of `answers.ANSWERS`.
        data: `Dataset`.
        directory: The open `RunDirectory`.
        summaries: `tl_research.reporting.summaries.Summaries`.
    """

    def __init__(
        self, answer: Answer, data: Dataset, directory: RunDirectory, summaries: Summaries
    ):
        self._answer, self._directory, self._summaries = answer, directory, summaries
        self._classes, self._validation = data.classes, data.validation
        self._told = {
            HeadStarted: self._head_started,
            PhaseBegan: self._phase_began,
            StepsCompiled: self._steps_compiled,
            CallEnded: self._call_ended,
            EpochEnded: self._epoch_ended,
            PhaseEnded: self._phase_ended,
        }

    def __call__(self, event: Event) -> None:
        if told := self._told.get(type(event)):
            told(event)

    def _head_started(self, event):
        for name in event.measured:
            self._summaries.scalar("validation", name.removeprefix("val_"), event.result[name], 0)

    def _phase_began(self, event):
        description, path = describe_phase(event), self._directory.file("plan.txt")
        with storage_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{description}\n")
        pages.phase_begins(
            self._summaries, event.step, description, event.groups, event.phase.learning_rate
        )

    def _steps_compiled(self, event):
        self._summaries.graph("train", f"step/{event.phase.name}", event.graph, event.step)

    def _call_ended(self, event):
        totals = event.totals
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

    def _epoch_ended(self, event):
        row, step = event.row, event.row["step"]
        hidden = f"train_{PLAIN_LOSS}"  # of figures, since readers of the file know its columns
        rows = [{name: row[name] for name in row if name != hidden} for row in event.history]
        columns = dict.fromkeys(name for row in rows for name in row)
        self._directory.write_text("metrics.csv", csv_text(columns, rows))
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

    def _phase_ended(self, event):
        mistakes = pages.worst_mistakes(self._answer, event.logits, self._validation, self._classes)
        pages.phase_ends(self._summaries, event.step, event.result["audit"], mistakes)
