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

import functools
import math
import statistics
import time

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import program

from tl_research.errors import UserError
from tl_research.settings import setting

_RATIOS = {"live_ratio": ("live", "cached"), "fit_ratio": ("fit", "cached")}
_COLUMNS = """
backbone, phase | {backbone}@{image_size}, {phase}
seconds to fill a view | {fill_seconds_per_view:.1f}
KiB an image | {kib_per_image:.0f}
cached | {cached:.0f}
live | {live:.0f}
fit | {fit:.0f}
cached / live | {live_ratio:.1f} ({live_ratio_range[0]:.1f}-{live_ratio_range[1]:.1f})
cached / fit | {fit_ratio:.1f} ({fit_ratio_range[0]:.1f}-{fit_ratio_range[1]:.1f})
pays after epochs (none: never) | {pays_after_epochs}
"""
table = functools.partial(program.table, _COLUMNS)


class Settings(measuring.Settings, program.Photographs):
    """The flags of this benchmark."""

    precision: str = setting(
        "float32", "of our loop; fit is always float32", choices=measuring.PRECISIONS
    )
    images: int = setting(640, "training images of an epoch, at most", low=1)


def measure(settings):
    """Returns a row for each backbone and phase; see `_rows`."""
    if settings.images <= settings.batch_size:
        raise UserError(
            f"--images={settings.images} with --batch_size={settings.batch_size}; expected two "
            "batches or more, to time filling; raise --images"
        )

    def rows():
        for name, size in program.parse_backbones(settings.backbones):
            with measuring.photographs(settings, name, size) as photos:
                yield from _rows(photos, settings.rounds)
            keras.backend.clear_session()

    return program.gathered(settings, _COLUMNS, rows())


def _rows(photos, rounds):
    """Fills the cache, and times epochs of each phase in turn.

    Yields:
        A dict for each phase, as of `measuring.row`, with `fill_seconds_per_view` (of this phase:
        filling, and deriving its features), `images`, `bytes_per_image` and `pays_after_epochs`
        (None: never).
    """
    config, examples = photos.config, photos.examples
    classifier = measuring.make_classifier(config, "finetune", photos.num_classes)
    fills = []
    for _ in range(rounds):
        clock = []  # of each batch
        filled = measuring.fill_cache(
            config, classifier, examples, lambda done, total: clock.append(time.perf_counter())
        )
        fills.append((clock[-1] - clock[0]) * len(clock) / (len(clock) - 1))
    stored = classifier.graph.bytes_per_image(filled.stored)
    for phase, (unfreeze, _) in measuring.PHASES.items():
        classifier.unfreeze(unfreeze)
        start = time.perf_counter()
        cached = measuring.cached_source(config, classifier, filled)
        fill = statistics.median(fills) + time.perf_counter() - start
        live = measuring.live_source(config, classifier, examples)
        images = measuring.read_folder(photos.folder, config)
        epochs = {
            "cached": measuring.our_epoch(config, phase, classifier, cached),
            "live": measuring.our_epoch(config, phase, classifier, live),
            "fit": measuring.fit_epoch(config, phase, photos.num_classes, images),
        }
        seconds = measuring.alternate(epochs, rounds)
        medians = [statistics.median(seconds[kind]) for kind in ("live", "cached")]
        yield {
            **measuring.row(config, phase, seconds, len(examples), _RATIOS),
            "fill_seconds_per_view": fill,
            "images": len(examples),
            "bytes_per_image": stored,
            "kib_per_image": stored / 1024,
            "pays_after_epochs": epochs_to_pay(fill, *medians),
        }


def epochs_to_pay(fill, live, cached):
    """Returns the least number of epochs for which filling and cached epochs take no longer than
    live ones, or None.
    """
    return math.ceil(fill / (live - cached)) if live > cached else None


def report(settings):
    rows = measure(settings)
    return (
        f"images/s of an epoch, {measuring.conditions(settings)}; ours in {settings.precision}; a "
        f"view is of {rows[0]['images']} images\n\n{table(rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
