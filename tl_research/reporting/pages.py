"""The first batch and the final metrics in TensorBoard, and pictures of an evaluation."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tl_research.data.dataset import Dataset
from tl_research.files import Json
from tl_research.models.preprocessing import RANGES
from tl_research.reporting import pictures
from tl_research.reporting.evaluation import Evaluation
from tl_research.reporting.summaries import Summaries
from tl_research.training import batch
from tl_research.training.plan import Plan

SHOWN = 16


def first_batch(plan: Plan, data: Dataset, summaries: Summaries) -> None:
    """Shows the first augmented batch with its labels, and statistics of the backbone's inputs
    beside the range it expects.

    Args:
        plan: The plan of the run.
        data: Its images.
        summaries: Where it is written.
    """
    images, labels, preprocessed = batch.first_images(plan, SHOWN)
    pixels = np.round(images).astype(np.uint8)
    names = [plan.objective.answer.text(label, data.classes) for label in labels]
    shorts = pictures.short_names(names, 15)  # TensorBoard shows it small
    summaries.image("train", "first_batch", pictures.draw_grid(pixels, shorts, 96), 0)
    mode = plan.classifier.spec.preprocessing
    low, high = RANGES[mode]
    inputs = tf.cast(preprocessed, tf.float32).numpy()
    measured = [reduce(inputs, axis=(0, 1, 2)) for reduce in (np.min, np.mean, np.max, np.std)]
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


def titled_confusion(
    confusion: np.ndarray, classes: Sequence[str], side: str = "validation"
) -> np.ndarray:
    """Returns a picture of a confusion matrix with a title, uint8 [H, W, 3].

    Args:
        confusion: int [K, K].
        classes: K names.
        side: Name of the images.
    """
    count = confusion.sum()
    title = f"{side}: {count} images, accuracy {confusion.trace() / max(count, 1):.4f}"
    return pictures.titled(pictures.draw_confusion(confusion, classes), title)


def worst_mistakes(evaluation: Evaluation) -> np.ndarray:
    """Returns a picture of the wrongly answered images with the largest losses, uint8 [H, W, 3]."""
    examples, worst = evaluation.examples, evaluation.wrong[:SHOWN]
    shown = ("path", *evaluation.answer.columns[:3])
    captions = [pictures.caption(*(row[name] for name in shown)) for row in evaluation.rows(worst)]
    title = f"{evaluation.side}: {len(evaluation.wrong)} of {len(examples)} images wrong, "
    images = examples.images(worst).numpy() if len(worst) else ()
    thumbnails = pictures.draw_grid(images, captions, pictures.THUMBNAIL)
    return pictures.titled(thumbnails, f"{title}largest losses first")


def run_ends(
    summaries: Summaries,
    step: int,
    shown: Json,
    selected: Json | None,
    test: Json,
) -> None:
    """Writes the settings and final metrics of the run for HParams, which compares runs.

    Args:
        summaries: Where they are written.
        step: Global step.
        shown: {name: number or text}, the settings in effect.
        selected: {`val_<name>`: number} of the selected weights, or None.
        test: `test` of `results.json`.
    """
    final = {f"test {name}": of for name, of in test.items() if type(of) is float}
    for name, value in (selected or {}).items():
        if name.startswith("val_"):
            final[f"validation {name.removeprefix('val_')}"] = value
    # HParams reads metrics from scalars only; zz_ puts these in the last, collapsed group.
    tags = {f"zz_hparams/{name.replace(' ', '_')}": name for name in final}
    for tag, name in tags.items():
        summaries.scalar("validation", tag, final[name], step)
    summaries.hyperparameters(shown, tags)
