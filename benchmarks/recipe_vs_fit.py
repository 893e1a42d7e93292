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

import dataclasses
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys

from tl_research import cli
from tl_research.config import DATASETS
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.settings import setting

HERE = os.path.dirname(os.path.abspath(__file__))
_COLUMNS = ("fit", "fit held", "ours")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    runs: str | None = setting(
        None, "directory for our run directories, which decide the split; must be given"
    )
    dataset: str = setting(
        "tf_flowers", "where images come from; directory needs --data_dir", choices=DATASETS
    )
    data_dir: str | None = setting(
        None,
        "one folder per class; with a named data set, a copy used instead of downloading; "
        "must be given",
        path="absolute",
    )
    backbones: str = setting("EfficientNetLite0@224,MobileNetV2@160", "NAME@SIZE, a list")
    weights: str = setting("none", "imagenet or none; EfficientNetLite has its own")
    precision: str = setting(
        "auto",
        "of our runs, as of train.py; fit is always float32",
        choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    augment_views: int = setting(4, "of our runs", low=0)
    epochs: str = setting("8,10", "of the head and of fine-tuning; at least 1")
    seeds: str = setting("0,1,2", "of the run and of the split, a list")
    batch_size: int = setting(32, "images a step")
    output_json: str | None = setting(
        None, "file for all numbers, rewritten after each; must be given"
    )

    def __post_init__(self):
        missing = [
            f"--{name}" for name in ("runs", "data_dir", "output_json") if not getattr(self, name)
        ]
        if missing:
            raise UserError(
                f"{', '.join(missing)} missing; expected directories and a file; "
                "for example --runs=runs/recipe --data_dir=PHOTOS --output_json=runs/recipe.json"
            )


def measure(settings):
    """Returns a list of dicts: backbone (NAME@SIZE), seed, column, seconds, val_loss, val_accuracy,
    test_accuracy, ...

    Raises:
        UserError: If a run fails, its own message stands above; or if --output_json is of other
            settings.
    """
    rows = _read(settings)

    def add(row):
        rows.append(row)
        write_atomically(
            settings.output_json,
            json.dumps({"settings": vars(settings), "rows": rows}, indent=1) + "\n",
        )

    for backbone in settings.backbones.split(","):
        for seed in map(int, settings.seeds.split(",")):
            place = os.path.join(settings.runs, backbone, f"seed{seed}")
            key = {"backbone": backbone, "seed": seed}
            done = [
                row["column"] for row in rows if (row["backbone"], row["seed"]) == (backbone, seed)
            ]
            if "ours" not in done:
                add(
                    {
                        **key,
                        "column": "ours",
                        **run_ours(settings, backbone, seed, os.path.join(place, "ours")),
                    }
                )
            if missing := [column for column in _COLUMNS if column not in (*done, "ours")]:
                split = os.path.join(place, "ours", "split.json")
                for row in run_fit(settings, backbone, seed, place, split, missing):
                    add({**key, **row})
    return rows


def _read(settings):
    """Returns the rows that are there already."""
    if not os.path.exists(settings.output_json):
        return []
    with open(settings.output_json, encoding="utf-8") as file:
        content = json.load(file)
    different = [
        name
        for name, value in content["settings"].items()
        if name not in ("backbones", "seeds", "runs", "data_dir", "output_json")
        and value != getattr(settings, name)
    ]
    if different:
        raise UserError(
            f"--output_json={settings.output_json} has numbers with another --{different[0]}; "
            "expected the same; give another file"
        )
    return content["rows"]


def _weights(settings, backbone):
    # their weights come in packages
    return "imagenet" if backbone.startswith("EfficientNetLite") else settings.weights


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
    root = os.path.dirname(HERE)
    name, _, size = backbone.partition("@")
    command = [
        os.path.join(root, "train.py"),
        *(f"--flagfile={os.path.join(root, path)}" for path in flagfiles),
        f"--workdir={workdir}",
        f"--dataset={settings.dataset}",
        f"--data_dir={settings.data_dir}",
        f"--backbone={name}",
        f"--image_size={size}",
        f"--seed={seed}",
        f"--split_seed={seed}",
        *more,
        "--resume=never",
    ]
    _finish(_start(command, stdout=subprocess.DEVNULL))
    with open(os.path.join(workdir, "results.json"), encoding="utf-8") as file:
        return json.load(file)


def run_ours(settings, backbone, seed, workdir):
    """Runs train.py; returns what `fit_recipe.py` writes of a column."""
    more = [
        f"--weights={_weights(settings, backbone)}",
        f"--precision={settings.precision}",
        f"--augment_views={settings.augment_views}",
        f"--epochs={settings.epochs}",
        "--learning_rate=1e-3,1e-5",
        "--lr_schedule=constant",
        "--warmup=0",
        "--label_smoothing=0",
        # seconds are of one process
        f"--batch_size={settings.batch_size}",
        "--patience=0",
    ]
    results = run_train(settings, backbone, seed, workdir, more=more)
    phases = {
        phase["name"]: {key: phase[key] for key in ("val_loss", "val_accuracy")}
        for phase in results["phases"]
    }
    return {
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
    folders = os.path.join(place, "images")
    with open(split_path, encoding="utf-8") as file:
        split = json.load(file)
    shutil.rmtree(folders, ignore_errors=True)
    for entry in split["files"]:
        folder = os.path.join(folders, entry["side"], entry["class"])
        os.makedirs(folder, exist_ok=True)
        os.symlink(
            os.path.join(os.path.abspath(settings.data_dir), entry["path"]),
            os.path.join(folder, entry["path"].replace("/", "_")),
        )
    command = [
        os.path.join(HERE, "fit_recipe.py"),
        f"--folders={folders}",
        f"--backbone={backbone}",
        f"--seed={seed}",
        f"--weights={settings.weights}",
        f"--epochs={settings.epochs}",
        f"--batch_size={settings.batch_size}",
        f"--columns={','.join(columns)}",
    ]
    process = _start(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    _finish(process)


def _start(command, **options):
    command = [sys.executable, *command]
    print(shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.Popen(command, **options)


def _finish(process):
    if process.wait():
        raise UserError(
            f"{shlex.join(process.args)} ended with exit code {process.returncode}; expected 0; "
            "correct the flags"
        )


def table(rows):
    """Returns a Markdown table: a line for each backbone and column, means over the seeds with each
    value in brackets.
    """

    def cell(values, digits):
        mean = f"{statistics.mean(values):.{digits}f}"
        return (
            mean
            if len(values) == 1
            else f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"
        )

    lines = [
        (
            "| backbone | | seconds | against ours | validation accuracy | validation loss | test "
            "accuracy |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        for column in _COLUMNS:
            found = sorted(
                (row for row in rows if (row["backbone"], row["column"]) == (backbone, column)),
                key=lambda row: row["seed"],
            )
            if found:
                ratios = seconds_ratios(rows, backbone, column)
                against = (
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                    if ratios
                    else ""
                )
                cells = [
                    cell([row[name] for row in found], digits)
                    for name, digits in (
                        ("seconds", 0),
                        ("val_accuracy", 3),
                        ("val_loss", 3),
                        ("test_accuracy", 3),
                    )
                ]
                lines.append(
                    f"| {backbone} | {column} | {cells[0]} | {against} | {' | '.join(cells[1:])} |"
                )
    return "\n".join(lines)


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


def main():
    settings = cli.config_from_flags(Settings)
    # now, rather than fail after measuring
    os.makedirs(os.path.dirname(settings.output_json) or ".", exist_ok=True)
    rows = measure(settings)
    print(
        f"whole recipe, epochs {settings.epochs}, {os.cpu_count()} CPU cores, batch "
        f"{settings.batch_size}; ours in precision {settings.precision} with "
        f"{settings.augment_views} views; against ours: median of the seeds\n\n{table(rows)}",
        flush=True,
    )


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
