"""Figures of a finished run, as PNG."""

import os

import matplotlib

matplotlib.use("Agg")  # no screen is needed, or looked for
import matplotlib.pyplot as plt
import numpy as np

from tl_research.reporting import metrics, pages, pictures


def save_curves(path, history):
    """Draws loss and accuracy over the epochs of all phases, with the switches marked.

    Args:
        path: PNG file to write.
        history: Rows of `metrics.csv`.
    """
    epochs = [row["epoch"] for row in history]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy")):
        axis.plot(
            epochs,
            [row[f"train_{name}"] for row in history],
            "o-",
            markersize=3,
            label="training (augmented)",
        )
        axis.plot(
            epochs, [row[f"val_{name}"] for row in history], "o-", markersize=3, label="validation"
        )
        for before, after in zip(history, history[1:]):
            if before["phase"] != after["phase"]:
                axis.axvline(
                    (before["epoch"] + after["epoch"]) / 2,
                    color="gray",
                    linestyle="--",
                    linewidth=1,
                )
                axis.annotate(
                    f" {after['phase']}",
                    (before["epoch"] + 0.5, 1),
                    xycoords=("data", "axes fraction"),
                    verticalalignment="top",
                    color="gray",
                )
        axis.set(xlabel="epoch", title=name)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_mistakes(directory, logits, examples, classes):
    """Draws `confusion.png` and `worst_mistakes.png`, thumbnails with what they are, were taken
    for, and their file names.

    Args:
        directory: Where the files go.
        logits: float [N, K].
        examples: The `Examples` they belong to.
        classes: K names.
    """
    confusion = metrics.confusion_matrix(examples.labels, np.argmax(logits, axis=1), len(classes))
    for name, picture in (
        ("confusion.png", pictures.draw_confusion(confusion, classes)),
        ("worst_mistakes.png", pages.worst_mistakes(logits, examples, classes)),
    ):
        with open(os.path.join(directory, name), "wb") as file:
            file.write(pictures.png(picture))


def save_learning_rates(path, rows, suggested):
    """Draws loss against learning rate, with the suggested rate marked.

    Args:
        path: PNG file to write.
        rows: dicts of learning_rate, loss and smoothed_loss.
        suggested: A rate.
    """
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, style in (("loss", "."), ("smoothed_loss", "-")):
        axis.plot(
            [row["learning_rate"] for row in rows],
            [row[name] for row in rows],
            style,
            label=name.replace("_", " "),
        )
    axis.axvline(suggested, color="gray", linestyle="--", label=f"suggested: {suggested:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
