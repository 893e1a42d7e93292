"""The whole recipe both ways: seconds, and accuracy on the same validation and test images, for
some seeds.

    python benchmarks/recipe_vs_fit.py --runs=DIR --dataset=tf_flowers --data_dir=PHOTOS
    --output_json=DIR/recipe.json

`--epochs` of the head with Adam 1e-3, then of the top 30 % of the layers with Adam 1e-5; nothing
stops early; the weights with the lowest validation loss are restored after each phase, those of the
head if fine-tuning was no better. Columns:

    fit         as everybody writes it (`copied_recipe.py`), read by `image_dataset_from_directory`
    fit held    the same with BatchNorm statistics really held
    ours        `train.py` with `--augment_views` views, features cached

Each seed has a split of its own, that of our run: `fit` gets the same files. A run of ours is a
process of its own, and so are both columns of `fit` together: they share the head, which is the
same computation in both (a frozen BatchNorm layer runs in inference mode under `fit`), and each is
charged its seconds. All seconds count from the first line of a program, imports included, to its
last number. What --output_json has is not measured again, so the same command goes on where it
stopped; `fit` then trains its head anew if a column is missing.
"""

import json
import os
import shutil
import statistics
import subprocess

import program

from tl_research.settings import setting

HERE = os.path.dirname(os.path.abspath(__file__))
_FITS = ("fit", "fit held")
_TABLE = """
backbone | {backbone}
 | {column}
seconds | {seconds}
against ours | {against}
validation accuracy | {val_accuracy}
validation loss | {val_loss}
test accuracy | {test_accuracy}
"""


class Settings(program.Networks, program.Photographs):
    """The flags of this benchmark."""

    required = ("runs", "data_dir", "output_json")
    runs: str | None = setting(
        None, "directory for our run directories, which decide the split; must be given"
    )
    backbones: str = setting("EfficientNetLite0@224,MobileNetV2@160", "NAME@SIZE, a list")
    precision: str = setting(
        "auto",
        "of our runs, as of train.py; fit is always float32",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    augment_views: int = setting(4, "of our runs", low=0)
    epochs: str = setting("8,10", "of the head and of fine-tuning; at least 1")
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the run and of the split")


def measure(settings):
    """Returns a list of dicts: backbone (NAME@SIZE), seed, column, seconds, val_loss, val_accuracy,
    test_accuracy, ...

    Raises:
        UserError: If a run fails, its own message stands above; or if --output_json is of other
            settings.
    """
    apart = ("backbones", "seeds", "runs", "data_dir", "output_json")
    rows = program.rows_so_far(settings, settings.output_json, apart)
    for backbone in settings.backbones.split(","):
        add_rows(rows, settings, settings.output_json, backbone, {"ours": run_ours}, _FITS)
    return rows


def add_rows(rows, settings, path, backbone, ours, fits):
    """Adds the rows of a backbone that are not there yet, and writes all after each.

    Args:
        rows: A list, added to.
        settings: With runs, seeds, and what `run_fit` needs.
        path: Of the file.
        backbone: NAME@SIZE.
        ours: {column: function of (settings, backbone, seed, run directory) to a row}.
        fits: Columns of `fit`, on the split of the first of ours.
    """
    for seed in settings.seeds:
        place, key = f"{settings.runs}/{backbone}/seed{seed}", {"backbone": backbone, "seed": seed}
        done = {row["column"] for row in rows if key.items() <= row.items()}

        def found():
            for column, make in ours.items():
                if column not in done:
                    row = make(settings, backbone, seed, f"{place}/{column}")
                    yield {"column": column, **row}
            if missing := [column for column in fits if column not in done]:
                split = f"{place}/{next(iter(ours))}/split.json"
                yield from run_fit(settings, backbone, seed, place, split, missing)

        for row in found():
            rows.append({**key, **row})
            program.write_json(path, settings, rows)


def run_train(settings, backbone, seed, workdir, flagfiles=(), more=()):
    """Runs train.py anew; returns its `results.json`.

    Args:
        settings: With a dataset and a data_dir.
        backbone: NAME@SIZE.
        seed: Of the run and of the split.
        workdir: The run directory.
        flagfiles: That stand before all flags here, from the root of the project.
        more: Flags behind them.
    """
    name, _, size = backbone.partition("@")
    return program.train(
        workdir,
        *(f"--flagfile={program.ROOT}/{path}" for path in flagfiles),
        f"--dataset={settings.dataset}",
        f"--data_dir={settings.data_dir}",
        f"--backbone={name}",
        f"--image_size={size}",
        f"--seed={seed}",
        f"--split_seed={seed}",
        *more,
        "--resume=never",
    )


def run_ours(settings, backbone, seed, workdir):
    """Runs train.py; returns what `fit_recipe.py` writes of a column."""
    # their weights come in packages
    weights = "imagenet" if backbone.startswith("EfficientNetLite") else settings.weights
    more = (
        f"--weights={weights} --precision={settings.precision} --epochs={settings.epochs} "
        f"--augment_views={settings.augment_views} --learning_rate=1e-3,1e-5 "
        f"--lr_schedule=constant --warmup=0 --label_smoothing=0 --patience=0 "
        f"--batch_size={settings.batch_size}"
    )
    results = run_train(settings, backbone, seed, workdir, more=more.split())
    phases = {
        phase["name"]: {key: phase[key] for key in ("val_loss", "val_accuracy")}
        for phase in results["phases"]
    }
    return {
        # of one process
        "seconds": results["seconds"]["total"],
        **phases[results["selected_phase"]],
        "selected_phase": results["selected_phase"],
        "phases": phases,
        "test_loss": results["test"]["loss"],
        "test_accuracy": results["test"]["accuracy"],
        "precision": results["precision"],
        "seconds_of": results["seconds"],
    }


def run_fit(settings, backbone, seed, place, split_path, columns):
    """Runs `fit_recipe.py` on the files of each side of our split.

    Yields what it writes of each column, when it does.

    Args:
        settings: What the flags of that program have.
        backbone: NAME@SIZE.
        seed: Of weights, order, augmentation and dropout.
        place: A directory, for links to the images.
        split_path: `split.json` of a run of ours.
        columns: Of `fit_recipe.COLUMNS`.
    """
    folders = f"{place}/images"
    shutil.rmtree(folders, ignore_errors=True)
    for entry in program.read_json(split_path)["files"]:
        folder = f"{folders}/{entry['side']}/{entry['class']}"
        os.makedirs(folder, exist_ok=True)
        path = f"{os.path.abspath(settings.data_dir)}/{entry['path']}"
        os.symlink(path, f"{folder}/{entry['path'].replace('/', '_')}")
    process = program.start(
        f"{HERE}/fit_recipe.py",
        f"--folders={folders}",
        f"--backbone={backbone}",
        f"--seed={seed}",
        f"--weights={settings.weights}",
        f"--epochs={settings.epochs}",
        f"--batch_size={settings.batch_size}",
        f"--columns={','.join(columns)}",
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    program.finish(process)


def table(rows):
    """Returns a Markdown table: a line for each backbone and column, means over the seeds with each
    value in brackets.
    """
    digits = {"seconds": 0, "val_accuracy": 3, "val_loss": 3, "test_accuracy": 3}
    lines = []
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        for column in (*_FITS, "ours"):
            found = sorted(
                (row for row in rows if (row["backbone"], row["column"]) == (backbone, column)),
                key=lambda row: row["seed"],
            )
            if found:
                line = {
                    name: program.mean_and_each([row[name] for row in found], places)
                    for name, places in digits.items()
                }
                if ratios := seconds_ratios(rows, backbone, column):
                    low, high = min(ratios), max(ratios)
                    line["against"] = f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"
                lines.append({"backbone": backbone, "column": column, **line})
    return program.table(_TABLE, lines)


def seconds_ratios(rows, backbone, column):
    """Returns the seconds of a column over those of ours, for each seed that has both.

    None for ours itself.
    """
    seconds = {
        (row["column"], row["seed"]): row["seconds"] for row in rows if row["backbone"] == backbone
    }
    return [
        value / seconds["ours", seed]
        for (name, seed), value in sorted(seconds.items())
        if name == column != "ours" and ("ours", seed) in seconds
    ]


def report(settings):
    rows = measure(settings)
    return (
        f"whole recipe, epochs {settings.epochs}, {os.cpu_count()} CPU cores, batch "
        f"{settings.batch_size}; ours in precision {settings.precision} with "
        f"{settings.augment_views} views; against ours: median of the seeds\n\n{table(rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
