"""Figures of a finished run, as PNG."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from tl_research.reporting import pages, pictures


@contextlib.contextmanager
def _figure(path: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Yields a figure that is saved at the end, in matplotlib's own style: the user's may need
    LaTeX, and no screen is looked for.
    """
    with matplotlib.style.context("default", after_reset=True):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, dpi=120)


def save_curves(path, history):
    """Draws the loss and what else both sides measure over the epochs of all phases, with the
    switches marked.

    Args:
        path: PNG file to write.
        history: Rows of `metrics.csv`.
    """
    epochs = [row["epoch"] for row in history]
    trained = [name.removeprefix("train_") for name in history[0] if name.startswith("train_")]
    names = [name for name in trained if f"val_{name}" in history[0]]
    with _figure(path, (5 * len(names), 3.6)) as figure:
        axes = figure.subplots(1, len(names), squeeze=False)
        for axis, name in zip(axes[0], names):
            for side, label in (("train", "training (augmented)"), ("val", "validation")):
                values = [row[f"{side}_{name}"] for row in history]
                axis.plot(epochs, values, "o-", markersize=3, label=label)
            _mark_switches(axis, history)
            axis.set(xlabel="epoch", title=name)
            axis.legend()


def _mark_switches(axis, history):
    for before, after in zip(history, history[1:]):
        if before["phase"] != after["phase"]:
            middle = (before["epoch"] + after["epoch"]) / 2
            axis.axvline(middle, color="gray", linestyle="--", linewidth=1)
            axis.annotate(
                f" {after['phase']}",
                (before["epoch"] + 0.5, 1),
                xycoords=("data", "axes fraction"),
                verticalalignment="top",
                color="gray",
            )


def save_mistakes(directory, answer, logits, examples, classes):
    """Draws `confusion.png`, of answers that have one, and `worst_mistakes.png`, thumbnails with
    what they are, were taken for, and their file names.

    Args:
        directory: Where the files go.
        answer: The kind of `answers.ANSWERS`.
        logits: float [N, K].
        examples: The `Examples` they belong to.
        classes: K names.
    """
    drawn = {"worst_mistakes.png": pages.worst_mistakes(answer, logits, examples, classes)}
    if (confusion := answer.confusion(logits, examples.labels)) is not None:
        drawn["confusion.png"] = pictures.draw_confusion(confusion, classes)
    for name, picture in drawn.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(pictures.png(picture))


def save_reliability(path: str, drawn: dict[str, Any]) -> None:
    """Draws how often what the network said of the test images is right, by how probable it called
    that: with its own probabilities and with those of the fitted temperature.

    Args:
        path: PNG file to write.
        drawn: Of `calibration.of_run`.
    """
    with _figure(path, (4.5, 4.5)) as figure:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        for when in ("before", "after"):
            counts, confidences, accuracies = np.transpose(drawn[when])
            (line,) = axis.plot(confidences, accuracies, linewidth=1, label=f"{when} calibration")
            sizes = 10 + 200 * counts / counts.sum()
            axis.scatter(confidences, accuracies, sizes, color=line.get_color(), alpha=0.6)
        axis.set(
            xlabel="mean probability of what is said, in bins",
            ylabel="share that is right (size: images)",
            title=f"reliability on {drawn['n']} test images",
        )
        axis.legend()


def save_learning_rates(path, rows, suggested):
    """Draws loss against learning rate, with the suggested rate marked.

    The axis of the loss ends where training has clearly diverged.

    Args:
        path: PNG file to write.
        rows: dicts of learning_rate, loss and smoothed_loss.
        suggested: A rate, or None.
    """
    rates = [row["learning_rate"] for row in rows]
    with _figure(path, (6, 3.6)) as figure:
        axis = figure.subplots()
        for name, style in (("loss", "."), ("smoothed_loss", "-")):
            axis.plot(rates, [row[name] for row in rows], style, label=name.replace("_", " "))
        if suggested:
            label = f"suggested: {suggested:.2g}"
            axis.axvline(suggested, color="gray", linestyle="--", label=label)
        if rows and rows[0]["smoothed_loss"] > 0:
            axis.set_ylim(0, 2 * rows[0]["smoothed_loss"])
        axis.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        axis.legend()
