"""Seconds from the start of a program until a model is saved whose validation accuracy is at least
what `fit` ends with, that plus 2 points, or --target.

    python benchmarks/time_to_accuracy.py --runs=DIR --data_dir=PHOTOS --figure=DIR/figure.png

For each seed, which is its split's too, runs of `train.py` with each of --recipes and `fit` as
everybody writes it (`fit_recipe.py`), alone and in turn, each a process of its own. A recipe of
ours has its model when its run is over. `fit` is taken to save after every epoch, in no time at
all, the model that it would return: that of the lowest validation loss so far. A row that stands in
DIR/rows.json is not measured again.
"""

import dataclasses
import json
import os
import statistics

import matplotlib.figure
import recipe_vs_fit

from tl_research import cli
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.settings import check_fields, setting

FIT = "fit"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    runs: str | None = setting(None, "directory for all runs; must be given", path="absolute")
    data_dir: str | None = setting(
        None, "the flower photographs, a folder per class; must be given", path="absolute"
    )
    dataset: str = setting("tf_flowers", "as of train.py")
    backbone: str = setting("EfficientNetLite0@224", "NAME@SIZE")
    recipes: tuple[str, ...] = setting(
        ("instant", "flowers"), "names in recipes/, put after flowers.flags; flowers is that alone"
    )
    columns: str = setting("fit", "of fit: fit, or fit,fit held")
    epochs: str = setting("8,10", "of fit: of the head and of fine-tuning")
    batch_size: int = setting(32, "images a step")
    weights: str = setting("none", "imagenet or none; EfficientNetLite has its own")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "of the run and of the split")
    target: float = setting(0.97, "the third accuracy")
    figure: str | None = setting(None, "file for the picture; None draws none")

    def __post_init__(self):
        check_fields(self)
        if not self.runs or not self.data_dir:
            raise UserError("--runs or --data_dir is missing; expected directories; add both")


def measure(settings):
    """Returns a list of dicts: column, seed, and the `history` of what a user would have when:
    [{"seconds", "val_accuracy"}], and the test accuracy of the last.
    """
    path = os.path.join(settings.runs, "rows.json")
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    os.makedirs(settings.runs, exist_ok=True)
    for seed in settings.seeds:
        for column in (*settings.recipes, FIT):
            if not any((row["column"], row["seed"]) == (column, seed) for row in rows):
                measured = (
                    _fit(settings, seed) if column == FIT else [_ours(settings, column, seed)]
                )
                rows += [{"seed": seed, **row} for row in measured]
                write_atomically(path, json.dumps(rows, indent=1) + "\n")
    return rows


def _place(settings, recipe, seed):
    return os.path.join(settings.runs, f"seed{seed}", recipe)


def _ours(settings, recipe, seed):
    """Runs `train.py` with a recipe; returns its row."""
    flagfiles = ["flowers.flags"]
    if recipe != "flowers":
        flagfiles.append(f"recipes/{recipe}.flags")
    place = _place(settings, recipe, seed)
    results = recipe_vs_fit.run_train(settings, settings.backbone, seed, place, flagfiles)
    chosen = next(
        (of for of in results["phases"] if of["name"] == results["selected_phase"]),
        results["head_start"],
    )
    found = {"seconds": results["seconds"]["total"], "val_accuracy": chosen["val_accuracy"]}
    return {
        "column": recipe,
        "history": [found],
        "val_accuracy": found["val_accuracy"],
        "test_accuracy": results["test"]["accuracy"],
    }


def _fit(settings, seed):
    """Yields a row for each column of `fit`, on the split of our run."""
    place = os.path.join(settings.runs, f"seed{seed}")
    split = os.path.join(_place(settings, settings.recipes[0], seed), "split.json")
    columns = settings.columns.split(",")
    for row in recipe_vs_fit.run_fit(settings, settings.backbone, seed, place, split, columns):
        history, best = [], None
        for epoch in row["history"]:
            if best is None or epoch["val_loss"] < best["val_loss"]:
                best = epoch
            history.append({"seconds": epoch["seconds"], "val_accuracy": best["val_accuracy"]})
        yield {
            "column": row["column"],
            "history": history,
            "val_accuracy": row["val_accuracy"],
            "test_accuracy": row["test_accuracy"],
        }


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
    lines = [
        f"| | {' | '.join(goals)} | validation | test |",
        "|---" * (len(goals) + 3) + "|",
    ]
    for column in dict.fromkeys(row["column"] for row in rows):
        found = [row for row in rows if row["column"] == column and row["seed"] in fit]
        cells = [_cell(found, fit, accuracy_of) for accuracy_of in goals.values()]
        for name in ("val_accuracy", "test_accuracy"):
            cells.append(f"{statistics.mean(row[name] for row in found):.3f}")
        lines.append(f"| {column} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
    axis.set(xscale="log", xlabel="seconds since the start of the program")
    axis.set(ylabel="validation accuracy", title="What a user has, and when")
    axis.legend()
    figure.savefig(path, dpi=120)


def main():
    settings = cli.config_from_flags(Settings)
    rows = measure(settings)
    print(
        f"{settings.backbone}, {os.cpu_count()} CPU cores; seconds to a validation accuracy, "
        f"median of the seeds that reach it\n\n{table(rows, settings.target)}",
        flush=True,
    )
    if settings.figure:
        draw(settings.figure, rows)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
