"""The observer that records a run: `metrics.csv`, TensorBoard, and the phases in `plan.txt`."""

import dataclasses

from tl_research.answers import Answer
from tl_research.data.dataset import Dataset
from tl_research.files import csv_text, storage_errors
from tl_research.models.classifier import num_parameters
from tl_research.reporting import pages, pictures
from tl_research.reporting.evaluation import Evaluation
from tl_research.reporting.observer import EventHandler
from tl_research.reporting.plan_text import describe_phase
from tl_research.reporting.summaries import Summaries
from tl_research.reporting.terminal import markdown_table
from tl_research.run.directory import RunDirectory
from tl_research.training.objective import PLAIN_LOSS


@dataclasses.dataclass
class Recorder(EventHandler):
    """Records each event."""

    answer: Answer  # the kind of answer
    data: Dataset
    directory: RunDirectory  # which is open
    summaries: Summaries  # where TensorBoard's records are written

    def _on_HeadStarted(self, event):
        for name in event.measured:
            self.summaries.scalar("validation", name.removeprefix("val_"), event.result[name], 0)

    def _on_PhaseBegan(self, event):
        description, path = describe_phase(event), self.directory.file("plan.txt")
        with storage_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{description}\n")
        rows = [
            [
                group.name,
                len(group.paths),
                f"{num_parameters(group.variables):,}",
                f"{group.lr_multiplier:g}",
                f"{event.phase.learning_rate * group.lr_multiplier:.3g}",
            ]
            for group in event.groups
        ]
        columns = ["group", "variables", "parameters", "multiplier", "learning rate"]
        table = markdown_table(columns, rows)
        self.summaries.text("train", "groups", f"{description}\n\n{table}", event.step)

    def _on_StepsCompiled(self, event):
        self.summaries.graph(f"step/{event.phase.name}", event.graph, event.step)

    def _on_CallEnded(self, event):
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
            self.summaries.scalar("train", tag, number, event.step)

    def _on_EpochEnded(self, event):
        row, step = event.row, event.row["step"]
        columns = dict.fromkeys(name for past in event.history for name in past)
        columns.pop(f"train_{PLAIN_LOSS}", None)  # only for figures: the file's columns are fixed
        self.directory.write_text("metrics.csv", csv_text(columns, event.history))
        for name in event.measured:
            prefix, _, tag = name.partition("_")
            side = "train" if prefix == "train" else "validation"
            tag = tag if prefix in ("train", "val") else name
            self.summaries.scalar(side, tag, row[name], step)
        self.summaries.scalar("train", "images_per_second", row["images_per_second"], step)
        self.summaries.scalar("train", "waiting_for_data", event.waited, step)
        confusion = self.answer.confusion(event.logits, self.data.validation.labels)
        if confusion is not None:
            picture = pages.titled_confusion(confusion, self.data.classes)
            table = pictures.confusion_table(confusion, self.data.classes)
            self.summaries.image("validation", "confusion_matrix", picture, step)
            self.summaries.text("validation", "confusion_matrix_numbers", table, step)

    def _on_PhaseEnded(self, event):
        table = markdown_table(["variables", "count"], event.result["audit"].items())
        self.summaries.text("train", "audit", table, event.step)
        evaluation = Evaluation(self.answer, event.logits, self.data.validation, self.data.classes)
        picture = pages.worst_mistakes(evaluation)
        self.summaries.image("validation", "worst_mistakes", picture, event.step)
