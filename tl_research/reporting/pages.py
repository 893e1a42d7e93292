"""What a run tells TensorBoard beside its curves: what it will train, what it sees, what it gets
wrong, what it proved.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tl_research.answers import Answer
from tl_research.data.pipeline import Examples
from tl_research.models.preprocessing import RANGES
from tl_research.optim.param_groups import ParamGroup
from tl_research.reporting import pictures
from tl_research.reporting.summaries import Summaries

SHOWN = 16


def first_batch(
    summaries: Summaries, images: np.ndarray, labels: Sequence[str], inputs: Any, mode: str
) -> None:
    """Shows the first augmented batch with its labels, and compares what enters the backbone with
    what that was trained on.

    Args:
        summaries: `Summaries`.
        images: float32 [n, H, W, 3] in 0..255, the first of it, augmented.
        labels: n texts.
        inputs: [n, H, W, 3], preprocessed.
        mode: Of `Preprocessing`.
    """
    pixels = np.round(images).astype(np.uint8)
    shorts = pictures.short_names(labels, 15)  # small, since TensorBoard shows it so
    summaries.image("train", "first_batch", pictures.draw_grid(pixels, shorts, 96), 0)
    low, high = RANGES[mode]
    inputs = tf.cast(inputs, tf.float32)
    measured = [
        reduce(inputs, axis=(0, 1, 2)).numpy()
        for reduce in (tf.reduce_min, tf.reduce_mean, tf.reduce_max, tf.math.reduce_std)
    ]
    rows = [
        [channel, *(f"{value:.3f}" for value in values)]
        for channel, values in enumerate(zip(*measured))
    ]
    summaries.text(
        "train",
        "input_statistics",
        f"The backbone expects {low:g} to {high:g} (preprocessing `{mode}`); the first "
        f"{len(images)} images have\n\n"
        + pictures.markdown_table(["channel", "smallest", "mean", "largest", "std"], rows),
        0,
    )


def phase_begins(
    summaries: Summaries,
    step: int,
    description: str,
    groups: Sequence[ParamGroup],
    learning_rate: float,
) -> None:
    """Tells what a phase trains, group by group."""
    rows = [
        [
            group.name,
            len(group.paths),
            f"{sum(int(np.prod(v.shape)) for v in group.variables):,}",
            f"{group.lr_multiplier:g}",
            f"{learning_rate * group.lr_multiplier:.3g}",
        ]
        for group in groups
    ]
    columns = ["group", "variables", "parameters", "multiplier", "learning rate"]
    summaries.text(
        "train", "groups", description + "\n\n" + pictures.markdown_table(columns, rows), step
    )


def titled_confusion(confusion: np.ndarray, classes: Sequence[str], side: str) -> np.ndarray:
    """Returns a picture, uint8 [H, W, 3], of a side's confusion matrix [K, K]."""
    count = confusion.sum()
    title = f"{side}: {count} images, accuracy {confusion.trace() / max(count, 1):.4f}"
    return pictures.titled(pictures.draw_confusion(confusion, classes), title)


def epoch_ends(
    summaries: Summaries, step: int, confusion: np.ndarray, classes: Sequence[str]
) -> None:
    """Shows the confusion matrix of the validation images, as a picture and in numbers."""
    picture = titled_confusion(confusion, classes, "validation")
    summaries.image("validation", "confusion_matrix", picture, step)
    summaries.text(
        "validation", "confusion_matrix_numbers", pictures.confusion_table(confusion, classes), step
    )


def phase_ends(
    summaries: Summaries, step: int, audit: dict[str, int], mistakes: np.ndarray
) -> None:
    """Tells what the audit found; shows the worst mistakes.

    Args:
        summaries: `Summaries`.
        step: Global step.
        audit: {what: count}.
        mistakes: Picture of `worst_mistakes`.
    """
    summaries.text(
        "train", "audit", pictures.markdown_table(["variables", "count"], audit.items()), step
    )
    summaries.image("validation", "worst_mistakes", mistakes, step)


def worst_mistakes(
    answer: Answer,
    logits: np.ndarray,
    examples: Examples,
    classes: Sequence[str],
    side: str = "validation",
) -> np.ndarray:
    """Returns a picture, uint8 [H, W, 3], of the images with the largest losses among those whose
    `Answer` is not their label.
    """
    wrong = answer.mistakes(logits, examples.labels)
    worst = wrong[:SHOWN]
    named = pictures.numbered(classes)
    rows = answer.rows(logits[worst], examples.labels[worst], named)
    captions = [
        pictures.caption(examples.names[i], *(row[name] for name in answer.columns[:3]))
        for i, row in zip(worst, rows)
    ]
    title = f"{side}: {len(wrong)} of {len(examples)} images wrong, the largest losses first"
    images = examples.images(worst).numpy() if rows else ()
    return pictures.titled(pictures.draw_thumbnails(images, captions), title)


def doubtful(rows: Sequence[dict[str, Any]], images: np.ndarray) -> np.ndarray:
    """Returns a picture, uint8 [H, W, 3], of the images whose labels are most in doubt.

    Args:
        rows: Of `data_audit.DataAudit`, as many as images.
        images: uint8 [N, h, w, 3].
    """
    captions = [
        pictures.caption(row["path"], row["label"], row["suggested_label"], float(row["doubt"]))
        for row in rows
    ]
    return pictures.draw_thumbnails(images, captions)


def data_audited(
    summaries: Summaries, rows: Sequence[dict[str, Any]], picture: np.ndarray, lines: Sequence[str]
) -> None:
    """Shows what the audit of the images found.

    Args:
        summaries: `Summaries`.
        rows: The first of `data_audit.DataAudit`.
        picture: Of `doubtful`.
        lines: What was printed.
    """
    columns = list(rows[0])
    table = pictures.markdown_table(columns, [[row[name] for name in columns] for row in rows])
    summaries.text("train", "data_audit", "\n\n".join([*lines, table]), 0)
    summaries.image("train", "labels_in_doubt", picture, 0)


def run_ends(
    summaries: Summaries,
    step: int,
    shown: dict[str, Any],
    selected: dict[str, Any] | None,
    test: dict[str, Any],
) -> None:
    """Writes the settings and final numbers of the run, so that HParams compares it with others.

    Args:
        summaries: `Summaries`.
        step: Global step.
        shown: {name: number or text}, the settings as they were used.
        selected: {`val_<name>`: number} of the selected weights, or None.
        test: Of `results.json`.
    """
    final = {f"test {name}": of for name, of in test.items() if type(of) is float}
    for name, value in (selected or {}).items():
        if name.startswith("val_"):
            final[f"validation {name.removeprefix('val_')}"] = value
    # HParams finds numbers among the scalars only: there they come last, in a group that is closed.
    tags = {f"zz_hparams/{name.replace(' ', '_')}": name for name in final}
    for tag, name in tags.items():
        summaries.scalar("validation", tag, final[name], step)
    summaries.hyperparameters("validation", shown, tags)
