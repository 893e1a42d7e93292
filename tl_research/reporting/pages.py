"""What a run tells TensorBoard beside its curves: what it will train, what it sees, what it gets
wrong, what it proved.
"""

import numpy as np
import tensorflow as tf

from tl_research.models.preprocessing import RANGES
from tl_research.reporting import pictures

SHOWN = 16


def first_batch(summaries, images, inputs, mode):
    """Shows the first augmented batch, and compares what enters the backbone with what that was
    trained on.

    Args:
        summaries: `Summaries`.
        images: float32 [n, H, W, 3] in 0..255, the first of it, augmented.
        inputs: [n, H, W, 3], preprocessed.
        mode: Of `Preprocessing`.
    """
    summaries.image(
        "train", "first_batch", pictures.draw_grid(np.round(images).astype(np.uint8)), 0
    )
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


def phase_begins(summaries, step, description, groups, learning_rate):
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


def epoch_ends(summaries, step, confusion, classes):
    """Shows the confusion matrix of the validation images, as a picture and in numbers."""
    summaries.image(
        "validation", "confusion_matrix", pictures.draw_confusion(confusion, classes), step
    )
    summaries.text(
        "validation", "confusion_matrix_numbers", pictures.confusion_table(confusion, classes), step
    )


def phase_ends(summaries, step, audit, groups, mistakes):
    """Tells what the audit found; shows the weights of each group and the worst mistakes.

    Args:
        summaries: `Summaries`.
        step: Global step.
        audit: {what: count}.
        groups: The phase's `ParamGroup`s, with the weights that are kept.
        mistakes: Picture of `worst_mistakes`.
    """
    summaries.text(
        "train", "audit", pictures.markdown_table(["variables", "count"], audit.items()), step
    )
    for group in groups:
        weights = np.concatenate([np.ravel(variable.numpy()) for variable in group.variables])
        summaries.histogram("train", f"weights/{group.name}", weights, step)
    summaries.image("validation", "worst_mistakes", mistakes, step)


def worst_mistakes(answer, logits, examples, classes):
    """Returns a picture, uint8 [H, W, 3], of the images with the largest losses among those whose
    `Answer` is not their label.
    """
    worst = answer.mistakes(logits, examples.labels)[:SHOWN]
    rows = answer.rows(logits[worst], examples.labels[worst], classes)
    captions = [
        pictures.caption(examples.names[i], *(row[name] for name in answer.columns[:3]))
        for i, row in zip(worst, rows)
    ]
    return pictures.draw_mistakes(examples.images(worst).numpy() if rows else (), captions)


def doubtful(rows, images):
    """Returns a picture, uint8 [H, W, 3], of the images whose labels are most in doubt.

    Args:
        rows: Of `data_audit.DataAudit`, as many as images.
        images: uint8 [N, h, w, 3].
    """
    captions = [
        pictures.caption(row["path"], row["label"], row["suggested_label"], float(row["doubt"]))
        for row in rows
    ]
    return pictures.draw_mistakes(images, captions)


def data_audited(summaries, rows, picture, lines):
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


def run_ends(summaries, step, config, selected, test):
    """Writes the settings and final numbers of the run, so that HParams compares it with others."""
    final = {f"final/test_{name}": of for name, of in test.items() if type(of) is float}
    for name, value in (selected or {}).items():
        if name.startswith("val_"):
            final[f"final/validation_{name.removeprefix('val_')}"] = value
    for tag, value in final.items():
        summaries.scalar("validation", tag, value, step)
    summaries.hyperparameters("validation", config.compared_settings, final)
