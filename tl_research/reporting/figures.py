"""Figures of a finished run, as PNG."""

import contextlib
from collections.abc import Iterator, Sequence

import cycler
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tl_research.files import Json
from tl_research.reporting import pages, pictures
from tl_research.reporting.evaluation import Evaluation
from tl_research.training.objective import PLAIN_LOSS

# Colors that color-blind people can tell apart (Okabe and Ito 2008).
_BLUE, _ORANGE = "#0072B2", "#D55E00"


@contextlib.contextmanager
def _figure(path: str, size: tuple[float, float]) -> Iterator[Figure]:
    """Yields a figure that is saved at the end, in matplotlib's default style, since the user's may
    need LaTeX, and without a display.
    """
    with matplotlib.style.context("default", after_reset=True):
        matplotlib.rcParams["axes.prop_cycle"] = cycler.cycler(color=[_ORANGE, _BLUE])
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path, dpi=120)


def save_curves(
    path: str,
    history: Sequence[Json],
    phases: Sequence[Json],
    selected: Json,
    counts: tuple[int, int],
) -> None:
    """Draws the metrics of training and validation over all epochs, with the starts of phases and
    their best epochs marked. The loss is shown without label smoothing if it was recorded.

    Args:
        path: PNG file to write.
        history: Rows of `metrics.csv`.
        phases: `phases` of `results.json`.
        selected: {"epoch", `val_<name>`: number} of the selected weights.
        counts: Number of training and validation images.
    """
    trained = [name.removeprefix("train_") for name in history[0] if name.startswith("train_")]
    names = [name for name in trained if f"val_{name}" in history[0]]
    labels = [
        f"{side}, {n} images" for side, n in zip(("training, augmented", "validation"), counts)
    ]
    best = [phase["best_epoch"] for phase in phases]
    with _figure(path, (5 * len(names), 4.0)) as figure:
        axes = figure.subplots(1, len(names), squeeze=False)
        for axis, name in zip(axes[0], names):
            plain = name == "loss" and PLAIN_LOSS in trained
            columns = (f"train_{PLAIN_LOSS if plain else name}", f"val_{name}")
            _plot(axis, history, dict(zip(columns, labels)), best)
            title = name.replace("_", " ") + " without label smoothing" * plain
            chosen = f"validation {selected[f'val_{name}']:.4f}, epoch {selected['epoch']} chosen"
            axis.set_xlabel("epoch")
            axis.set_title(f"{title}\n{chosen}", pad=18)  # above the names of phases
        _add_legend(figure, axes[0])


def _add_legend(figure, axes):
    """Adds one legend below axes that all have the same lines."""
    columns = 3 if len(axes) > 1 else 1  # that fit into the width
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns)


def _plot(axis, history, labels, best):
    """Draws columns of `metrics.csv`, with stars on the last one at the best epochs, and marks the
    starts of phases.
    """
    epochs = [row["epoch"] for row in history]
    for column, label in labels.items():
        values = [row[column] for row in history]
        axis.plot(epochs, values, "o-", markersize=3, label=label)
    stars = [value for epoch, value in zip(epochs, values) if epoch in best]
    axis.plot(best, stars, "k*", markersize=10, label="best epoch of a phase")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for before, after in zip(history, history[1:]):
        if before["phase"] != after["phase"]:
            middle = (before["epoch"] + after["epoch"]) / 2
            axis.axvline(middle, color="gray", linestyle="--", linewidth=1)
            axis.annotate(
                after["phase"],
                (middle, 1.01),
                xycoords=("data", "axes fraction"),
                color="gray",
            )


def save_mistakes(directory: str, evaluation: Evaluation) -> None:
    """Draws `worst_mistakes.png` and, for classes, `confusion.png` into a directory."""
    pictures.save(f"{directory}/worst_mistakes.png", pages.worst_mistakes(evaluation))
    if (confusion := evaluation.confusion) is not None:
        picture = pages.titled_confusion(confusion, evaluation.classes, evaluation.side)
        pictures.save(f"{directory}/confusion.png", picture)


def save_reliability(path: str, drawn: Json) -> None:
    """Draws the accuracy on the test images against the predicted probability, before and after
    calibration.

    Args:
        path: PNG file to write.
        drawn: The second value of `calibration.of_run`.
    """
    counts, _, accuracies = np.transpose(drawn["before"])
    right = (counts * accuracies).sum() / counts.sum()
    with _figure(path, (4.5, 4.5)) as figure:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        for when, color in (("before", _ORANGE), ("after", _BLUE)):
            counts, confidences, accuracies = np.transpose(drawn[when])
            label = f"{when} calibration"
            axis.plot(confidences, accuracies, linewidth=1, label=label, color=color)
            sizes = 10 + 200 * counts / counts.sum()
            axis.scatter(confidences, accuracies, sizes, color=color, alpha=0.6)
        axis.set(
            xlabel="mean predicted probability in a bin",
            ylabel="accuracy (marker size: number of images)",
            title=f"calibration on {drawn['n']} test images, accuracy {right:.4f}",
        )
        axis.legend()


def save_learning_rates(path: str, rows: list[dict[str, float]], suggested: float | None) -> None:
    """Draws the loss against the learning rate, up to where training has clearly diverged.

    Args:
        path: PNG file to write.
        rows: Dicts of learning_rate, loss and smoothed_loss.
        suggested: The learning rate to mark, or None.
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
