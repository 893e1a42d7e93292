"""What keeping the frozen part's features brings alone: epochs on them, live epochs, and
`model.fit`, and what filling costs.

    python benchmarks/feature_cache.py --dataset=tf_flowers --data_dir=DIR

Epochs of the three alternate in one process; the figures are medians of `--rounds`, after an epoch
each that compiles and warms up. The cache is filled as a run with the phases head and finetune
fills it: at the cheapest boundary before what finetune opens, from which the features of head are
computed. Filling is timed from the first batch on, which traces; in head it includes computing its
features from those of finetune, traced anew. "Pays after" is the number of epochs from which a
view, filled and then used every epoch, costs less than as many live epochs. `fit` reads files; ours
has decoded them once.
"""

import dataclasses
import math
import os
import statistics
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring

from tl_research import cli
from tl_research.config import DATASETS
from tl_research.errors import UserError
from tl_research.settings import setting


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    dataset: str = setting(
        "tf_flowers", "where images come from; directory needs --data_dir", choices=DATASETS
    )
    data_dir: str | None = setting(
        None,
        "one folder per class; with a named data set, a copy used instead of downloading",
        path="absolute",
    )
    backbones: str = setting(measuring.BACKBONES, "NAME@SIZE, a list")
    weights: str = setting("none", "imagenet or none, which is as fast")
    precision: str = setting(
        "float32", "of our loop; fit is always float32", choices=measuring.PRECISIONS
    )
    images: int = setting(640, "training images of an epoch, at most")
    batch_size: int = setting(32, "images a step")
    rounds: int = setting(5, "epochs timed of each kind, and views filled; at least 1")
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def measure(settings):
    """Returns a row for each backbone and phase; see `_measure_backbone`."""
    if settings.images <= settings.batch_size:
        raise UserError(
            f"--images={settings.images} with --batch_size={settings.batch_size}; expected two "
            "batches or more, to time filling; raise --images"
        )
    rows = []
    for name, size in measuring.parse_backbones(settings.backbones):
        with tempfile.TemporaryDirectory() as place:
            config = measuring.make_config(settings, name, size, workdir=os.path.join(place, "run"))
            data, _ = measuring.load(config)
            examples = measuring.first(data.train, min(settings.images, len(data.train)))
            folder = measuring.as_folders(
                examples.paths,
                [data.classes[label] for label in examples.labels],
                os.path.join(place, "images"),
            )
            rows += _measure_backbone(config, examples, len(data.classes), folder, settings.rounds)
        print("\n".join(table(rows[-2:]).splitlines()[2:]), flush=True)
    return rows


def _measure_backbone(config, examples, num_classes, folder, rounds):
    """Fills the cache, and times epochs of each phase in turn.

    Returns:
        A list of dicts, one a phase: {kind: images per second, median}, `live_ratio` and
        `fit_ratio` (medians of the ratios taken in each round) and their ranges,
        `fill_seconds_per_view` (of this phase: filling, and deriving its features),
        `bytes_per_image` and `pays_after_epochs` (None: never).
    """
    classifier = measuring.make_classifier(config, "finetune", num_classes)
    fills = []
    for _ in range(rounds):
        clock = []  # of each batch
        filled = measuring.fill_cache(
            config, classifier, examples, lambda done, total: clock.append(time.perf_counter())
        )
        fills.append((clock[-1] - clock[0]) * len(clock) / (len(clock) - 1))
    rows = []
    for phase, (unfreeze, _) in measuring.PHASES.items():
        classifier.unfreeze(unfreeze)
        start = time.perf_counter()
        cached = measuring.cached_source(config, classifier, filled)
        fill = statistics.median(fills) + time.perf_counter() - start
        epochs = {
            "cached": measuring.our_epoch(config, phase, classifier, cached),
            "live": measuring.our_epoch(
                config, phase, classifier, measuring.live_source(config, classifier, examples)
            ),
            "fit": measuring.fit_epoch(
                config, phase, num_classes, measuring.read_folder(folder, config)
            ),
        }
        seconds = measuring.alternate(epochs, rounds)
        row = {
            "backbone": config.backbone,
            "image_size": config.image_size,
            "phase": phase,
            **{kind: len(examples) / statistics.median(times) for kind, times in seconds.items()},
            "fill_seconds_per_view": fill,
            "images": len(examples),
            "bytes_per_image": classifier.graph.bytes_per_image(filled.stored),
            "pays_after_epochs": epochs_to_pay(
                fill, *(statistics.median(seconds[kind]) for kind in ("live", "cached"))
            ),
        }
        for other in ("live", "fit"):
            row[f"{other}_ratio"], row[f"{other}_ratio_range"] = measuring.ratios(
                seconds[other], seconds["cached"]
            )
        rows.append(row)
    keras.backend.clear_session()
    return rows


def epochs_to_pay(fill, live, cached):
    """Returns the least number of epochs for which filling and cached epochs take no longer than
    live ones, or None.
    """
    return math.ceil(fill / (live - cached)) if live > cached else None


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        (
            "| backbone, phase | seconds to fill a view | KiB an image | cached | live | fit | "
            "cached / live | cached / fit | pays after |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [
            f"{row[name]:.1f} ({row[name + '_range'][0]:.1f}-{row[name + '_range'][1]:.1f})"
            for name in ("live_ratio", "fit_ratio")
        ]
        pays = f"{row['pays_after_epochs']} epochs" if row["pays_after_epochs"] else "never"
        lines.append(
            f"| {row['backbone']}@{row['image_size']}, {row['phase']} | "
            f"{row['fill_seconds_per_view']:.1f} | {row['bytes_per_image'] / 1024:.0f} | "
            f"{row['cached']:.0f} | {row['live']:.0f} | {row['fit']:.0f} | {ratios[0]} | "
            f"{ratios[1]} | {pays} |"
        )
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    measuring.prepare_json(settings.output_json)
    rows = measure(settings)
    print(
        f"\nimages/s of an epoch, {os.cpu_count()} CPU cores, batch {settings.batch_size}, median "
        f"of {settings.rounds}; ours in {settings.precision}; a view is of {rows[0]['images']} "
        f"images\n\n{table(rows)}",
        flush=True,
    )
    measuring.write_json(settings.output_json, settings, rows)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
