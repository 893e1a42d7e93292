"""Audits the images of a run before training: `data_audit.csv` and `.png`, TensorBoard, lines."""

import os

import numpy as np

from tl_research import data_audit
from tl_research.data.dataset import Dataset
from tl_research.files import Json, make_folders, storage_errors
from tl_research.reporting import pictures
from tl_research.reporting.summaries import Summaries
from tl_research.reporting.terminal import markdown_table, say
from tl_research.run.directory import RunDirectory
from tl_research.training.plan import Plan

_SHOWN = 32


def report(plan: Plan, data: Dataset, directory: RunDirectory, summaries: Summaries) -> Json:
    """Audits training and validation images.

    Args:
        plan: The plan of the run.
        data: Its images.
        directory: Its open directory.
        summaries: Where TensorBoard's records are written.

    Returns:
        `cross_validation` and `data_audit` of `results.json`.

    Raises:
        StorageError: If the report cannot be written.
    """
    nothing = {"cross_validation": None, "data_audit": None}
    if plan.config.data_audit == "off":
        return nothing
    if why := _why_not(plan, data):
        say(f"data audit: {why}")
        return nothing
    say("looking for doubtful labels")
    train, validation = data.train, data.validation
    audit = data_audit.examine(
        np.concatenate([plan.cache.pooled(side) for side in ("train", "validation")]),
        np.concatenate([train.labels, validation.labels]),
        np.repeat(["train", "validation"], [len(train), len(validation)]),
        train.names + validation.names,
        data.classes,
        np.concatenate([train.members.own, len(train) + validation.members.own]),
        train.shards.all_gather,
    )
    path, shown = directory.file(data_audit.FILE), audit.rows[:_SHOWN]
    captions = [
        pictures.caption(row["path"], row["label"], row["suggested_label"], float(row["doubt"]))
        for row in shown
    ]
    images = _images(train, validation, audit.order[:_SHOWN])
    picture = pictures.draw_grid(images, captions, pictures.THUMBNAIL)
    with storage_errors(path):
        make_folders(os.path.dirname(path))
        pictures.save(directory.file("report/data_audit.png"), picture)
    data_audit.write(path, audit.rows)
    lines = data_audit.describe(audit, data_audit.FILE)
    say(*lines[: None if plan.config.verbose else 2])
    table = markdown_table(data_audit.COLUMNS, [row.values() for row in shown])
    summaries.text("train", "data_audit", "\n\n".join([*lines, table]), 0)
    summaries.image("train", "labels_in_doubt", picture, 0)
    return audit.summary


def _why_not(plan, data):
    """Returns why the images cannot be audited, or None."""
    if plan.objective.answer.name != "class":
        return "skipped, since labels are not classes"
    count = data.train.members.most_held + data.validation.members.most_held
    width = sum(plan.classifier.graph.shape(name)[-1] for name in plan.classifier.head_boundary)
    classes = len(data.classes)
    per_image = data_audit.COPIES * width + data_audit.COPIES_OF_LOGITS * classes
    needed = 8 * (count * per_image + classes**2)
    if needed > plan.config.cache_bytes:
        return (
            f"skipped: {count:,} images x {width:,} features and {classes:,} classes need "
            f"{needed / 2**30:.1f} GiB and --cache_bytes allows "
            f"{plan.config.cache_bytes / 2**30:.1f}"
        )
    return None


def _images(train, validation, places):
    """Returns a list of uint8 [h, w, 3], the images at indices into both sides in a row."""
    count = len(train)
    sides = [(train, place) if place < count else (validation, place - count) for place in places]
    return [examples.images([place]).numpy()[0] for examples, place in sides]
