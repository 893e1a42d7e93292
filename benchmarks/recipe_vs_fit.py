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

import itertools
import os
import shutil
import statistics

import program

from tl_research.reporting.results import selected
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


def add_rows(rows, settings, path, backbone, ours, fits, peers=None):
    """Adds the rows of a backbone that are not there yet, and writes all after each.

    Args:
        rows: A list, added to.
        settings: With runs, seeds, and what `run_fit` needs.
        path: Of the file.
        backbone: NAME@SIZE.
        ours: {column: function of (settings, backbone, seed, run directory) to a row}.
        fits: Columns of `fit`, on the split of the first of ours.
        peers: {column: function of (settings, backbone, seed, folders) to a row}, likewise.
    """
    for seed in settings.seeds:
        place, key = f"{settings.runs}/{backbone}/seed{seed}", {"backbone": backbone, "seed": seed}
        done = {row["column"] for row in rows if key.items() <= row.items()}

        def found():
            for column, make in ours.items():
                if column not in done:
                    row = make(settings, backbone, seed, f"{place}/{column}")
                    yield {"column": column, **row}
            split = f"{place}/{next(iter(ours))}/split.json"
            if missing := [column for column in fits if column not in done]:
                yield from run_fit(settings, backbone, seed, place, split, missing)
            for column, make in (peers or {}).items():
                if column not in done:
                    folders = link_images(settings, place, split)
                    yield {"column": column, **make(settings, backbone, seed, folders)}

        for row in found():
            rows.append({**key, **row})
            program.write_json(path, settings, rows)


def run_train(settings, backbone, seed, workdir, flagfiles=(), more=()):
    """Runs train.py anew; returns its `results.json`.

    Args:
        settings: With a dataset and a data_dir.
        backbone: NAME@SIZE, or NAME for the size in the flag files.
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
        *([f"--image_size={size}"] if size else []),
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
    chosen = selected(results)
    return {
        # of one process
        "seconds": results["seconds"]["total"],
        **{name: chosen[name] for name in ("val_loss", "val_accuracy")},
        "selected_phase": chosen["name"],
        "test_accuracy": results["test"]["accuracy"],
    }


def link_images(settings, place, split_path):
    """Returns a folder with train, validation and test, each a folder for each class, of links.

    Args:
        settings: With a data_dir.
        place: A directory, for that folder.
        split_path: `split.json` of a run of ours.
    """
    folders = f"{place}/images"
    shutil.rmtree(folders, ignore_errors=True)
    entries = program.read_json(split_path)["files"]
    for side in ("train", "validation", "test"):
        here = [entry for entry in entries if entry["side"] == side]
        paths = [os.path.abspath(f"{settings.data_dir}/{entry['path']}") for entry in here]
        program.as_folders(paths, [entry["class"] for entry in here], f"{folders}/{side}")
    return folders


def run_fit(settings, backbone, seed, place, split_path, columns):
    """Runs `fit_recipe.py` on the files of each side of our split.

    Returns an iterator of what it writes of each column, when it does.

    Args:
        settings: What the flags of that program have.
        backbone: NAME@SIZE.
        seed: Of weights, order, augmentation and dropout.
        place, split_path: As of `link_images`.
        columns: Of `fit_recipe.COLUMNS`.
    """
    folders = link_images(settings, place, split_path)
    return program.answers(
        f"{HERE}/fit_recipe.py",
        f"--folders={folders}",
        f"--backbone={backbone}",
        f"--seed={seed}",
        f"--weights={settings.weights}",
        f"--epochs={settings.epochs}",
        f"--batch_size={settings.batch_size}",
        f"--columns={','.join(columns)}",
    )


def table(rows):
    """Returns a Markdown table: a line for each backbone and column, means over the seeds with each
    value in brackets; against ours, the median and range of the ratios of equal seeds.
    """
    digits = {"seconds": 0, "val_accuracy": 3, "val_loss": 3, "test_accuracy": 3}
    found, lines = {}, []
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault((row["backbone"], row["column"]), {})[row["seed"]] = row
    backbones = dict.fromkeys(row["backbone"] for row in rows)
    for key in itertools.product(backbones, (*_FITS, "ours")):
        if of := found.get(key):
            line = dict(zip(("backbone", "column"), key), against=_against(*key, found))
            for name, places in digits.items():
                line[name] = program.mean_and_each([row[name] for row in of.values()], places)
            lines.append(line)
    return program.table(_TABLE, lines)


def _against(backbone, column, found):
    """Returns what is said of the seconds of a column against those of ours."""
    of, ours = found[backbone, column], found.get((backbone, "ours"), {})
    both = of.keys() & ours.keys() if column != "ours" else ()
    ratios = [of[seed]["seconds"] / ours[seed]["seconds"] for seed in both]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def report(settings):
    rows = measure(settings)
    return (
        f"whole recipe, epochs {settings.epochs}, {os.cpu_count()} CPU cores, batch "
        f"{settings.batch_size}; ours in precision {settings.precision} with "
        f"{settings.augment_views} views; against ours: median of the seeds\n\n{table(rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
