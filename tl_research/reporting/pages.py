"""What a run tells TensorBoard beside its curves: what it will train, what it sees, what it gets
wrong, what it proved.
"""

import numpy as np
import tensorflow as tf

from tl_research.models.preprocessing import RANGES
from tl_research.reporting import metrics, pictures, results

_SHOWN = 16


def first_batch(summaries, images, inputs, mode):
    """Shows the first augmented batch, and compares what enters the backbone with what that was
    trained on.

    Args:
        summaries: `Summaries`.
        images: float32 [B, H, W, 3] in 0..255, augmented.
        inputs: [B, H, W, 3], preprocessed.
        mode: Of `Preprocessing`.
    """
    summaries.image(
        "train", "first_batch", pictures.draw_grid(np.round(images[:_SHOWN]).astype(np.uint8)), 0
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
        "batch has\n\n"
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


def epoch_ends(summaries, step, logits, labels, classes):
    """Shows the confusion matrix of the validation images, as a picture and in numbers."""
    confusion = metrics.confusion_matrix(labels, np.argmax(logits, axis=1), len(classes))
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


def worst_mistakes(logits, examples, classes):
    """Returns a picture, uint8 [H, W, 3], of the images with the largest losses among those taken
    for another class.
    """
    losses, predicted = results.losses(logits, examples.labels), np.argmax(logits, axis=1)
    worst = [
        place
        for place in np.argsort(-losses, kind="stable")
        if predicted[place] != examples.labels[place]
    ][:_SHOWN]
    probabilities = metrics.softmax(logits)
    captions = [
        pictures.caption(
            examples.names[i],
            classes[examples.labels[i]],
            classes[predicted[i]],
            probabilities[i].max(),
        )
        for i in worst
    ]
    return pictures.draw_mistakes(examples.images(worst).numpy() if worst else (), captions)


def run_ends(summaries, step, config, selected, test):
    """Writes the settings and final numbers of the run, so that HParams compares it with others."""
    final = {"final/test_accuracy": test["accuracy"], "final/test_loss": test["loss"]}
    if selected:
        final |= {
            "final/validation_accuracy": selected["val_accuracy"],
            "final/validation_loss": selected["val_loss"],
        }
    for tag, value in final.items():
        summaries.scalar("validation", tag, value, step)
    summaries.hyperparameters("validation", config.compared_settings, final)
