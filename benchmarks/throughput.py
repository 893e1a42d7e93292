"""Images per second of a training epoch: our live loop, our loop on kept features, and `model.fit`
with the recipe as everybody copies it; what filling the cache costs; and how far our step is from
what the machine can multiply.

    python benchmarks/throughput.py --dataset=tf_flowers --data_dir=DIR

Epochs of all alternate in one process; the figures are medians of `--rounds`, after an epoch each
that compiles and warms up. `fit` reads files with `image_dataset_from_directory`; ours has decoded
them once, which is timed apart. "Step" columns are without input: the same pixels again and again,
nothing augmented; of Keras it is `model.train_step` in a `tf.function`.

The cache is filled as a run with the phases head and finetune fills it: at the cheapest boundary
before what finetune opens, from which the features of head are computed. Filling is timed from the
first batch on, which traces; in head it includes computing its features from those of finetune,
traced anew. "Pays after" is the number of epochs from which a view, filled and then used every
epoch, costs less than as many live epochs.

The peak is the product of two matrices of 2048 by 2048 in the type of the steps, measured in this
process before them. Arithmetic is that of the convolutions (`limits.gflop_per_image`); the rest
(activations, pooling, the dense head, Adam) counts as nothing, so that 100 % cannot be reached.

An epoch of `fit` is timed between its callbacks. The end of the call is left out: it removes a
tf.data iterator, which now and then waits for the thread that tunes it, and that thread sleeps 10
ms, then twice as long each time (an epoch of 1.6 s then takes 2.55 s; with
`tf.data.Options.autotune.enabled = False` it never does).
"""

import math
import statistics
import time

from tl_research import quiet

quiet.import_tensorflow()

import keras
import limits
import measuring
import program
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.settings import setting

_RATIOS = {
    "ratio": ("fit", "ours"),
    "step_ratio": ("fit step", "our step"),
    "live_ratio": ("ours", "cached"),
    "fit_ratio": ("fit", "cached"),
}
_COLUMNS = """
backbone, phase | {backbone}@{image_size}, {phase}
fit | {fit:.0f}
ours | {ours:.0f}
ours / fit | {ratio:.2f} ({ratio_range[0]:.2f}-{ratio_range[1]:.2f})
step of Keras | {fit step:.0f}
our step | {our step:.0f}
ours / Keras | {step_ratio:.2f} ({step_ratio_range[0]:.2f}-{step_ratio_range[1]:.2f})
input, share of our epoch | {input_share:.0%}
"""
_CACHE = """
backbone, phase | {backbone}@{image_size}, {phase}
seconds to fill a view | {fill_seconds_per_view:.1f}
KiB an image | {kib_per_image:.0f}
cached | {cached:.0f}
cached / ours | {live_ratio:.1f} ({live_ratio_range[0]:.1f}-{live_ratio_range[1]:.1f})
cached / fit | {fit_ratio:.1f} ({fit_ratio_range[0]:.1f}-{fit_ratio_range[1]:.1f})
pays after epochs (none: never) | {pays_after_epochs}
"""
_LIMITS = """
backbone, phase | {backbone}@{image_size}, {phase}
step: GFLOP an image | {step[gflop_per_image]:.3f}
GFLOP/s | {step[gflop_per_second]:.0f}
share of the peak | {step[share_of_peak]:.0%}
kept features: GFLOP an image | {kept[gflop_per_image]:.3f}
GFLOP/s | {kept[gflop_per_second]:.0f}
share of the peak | {kept[share_of_peak]:.0%}
"""
_MACHINE = (
    "peak: float32 {float32:.0f} GFLOP/s, bfloat16 {bfloat16:.0f} GFLOP/s; memory {copy:.0f} GB/s "
    "read and written"
)


class Settings(measuring.Settings, program.Photographs):
    """The flags of this benchmark."""

    precision: str = setting(
        "float32", "of our loop; fit is always float32", choices=measuring.PRECISIONS
    )
    images: int = setting(640, "training images of an epoch, at most", low=1)


def measure(settings):
    """Returns (what `limits.probe` does, a row for each backbone and phase; see `_row`)."""
    if settings.images <= settings.batch_size:
        raise UserError(
            f"--images={settings.images} with --batch_size={settings.batch_size}; expected two "
            "batches or more, to time filling; raise --images"
        )
    machine = limits.probe(settings.rounds)
    peak = machine["float32" if settings.precision == "float32" else "bfloat16"]

    def rows():
        for name, size in program.parse_backbones(settings.backbones):
            with measuring.photographs(settings, name, size) as photos:
                classifier = measuring.make_classifier(
                    photos.config, "finetune", photos.num_classes
                )
                filled, seconds = _filled(photos, classifier, settings.rounds)
                for phase in measuring.PHASES:
                    row = _row(photos, phase, classifier, filled, seconds, settings.rounds)
                    for kind, rate in {"step": row["our step"], "kept": row["cached"]}.items():
                        done = rate * row[kind]["gflop_per_image"]
                        row[kind] |= {"gflop_per_second": done, "share_of_peak": done / peak}
                    yield row
            keras.backend.clear_session()

    return machine, program.gathered(settings, _COLUMNS, rows(), machine=machine)


def _filled(photos, classifier, rounds):
    """Returns (a `CachedSource` with one view, seconds that it took, median)."""
    fills = []
    for _ in range(rounds):
        clock = []  # of each batch
        filled = measuring.fill_cache(
            photos.config,
            classifier,
            photos.examples,
            lambda done, total: clock.append(time.perf_counter()),
        )
        fills.append((clock[-1] - clock[0]) * len(clock) / (len(clock) - 1))
    return filled, statistics.median(fills)


def _row(photos, phase, classifier, filled, fill, rounds):
    """Times epochs of a phase in turn.

    Returns:
        A dict, as of `measuring.row`, with `input_share`, the share of our epoch that our step
        without input does not take, `decode_once_images_per_second`, `images`,
        `fill_seconds_per_view` (of this phase: filling, and deriving its features),
        `bytes_per_image` of what is kept and `pays_after_epochs` (None: never).
    """
    config, examples = photos.config, photos.examples
    classifier.unfreeze(measuring.PHASES[phase][0])
    start = time.perf_counter()
    cached = measuring.cached_source(config, classifier, filled)
    fill += time.perf_counter() - start
    live = measuring.live_source(config, classifier, examples)
    epochs = {
        "ours": measuring.our_epoch(config, phase, classifier, live),
        "our step": measuring.our_epoch(config, phase, classifier, live, same_batch=True),
        "cached": measuring.our_epoch(config, phase, classifier, cached),
        **_fit_epochs(photos, phase),
    }
    seconds, count = measuring.alternate(epochs, rounds), len(examples)
    row = measuring.row(config, phase, seconds, count, _RATIOS)
    stored = classifier.graph.bytes_per_image(filled.stored)
    return {
        **row,
        "decode_once_images_per_second": photos.decoded_per_second,
        "input_share": 1 - row["ours"] / row["our step"],
        "images": count,
        "fill_seconds_per_view": fill,
        "bytes_per_image": stored,
        "kib_per_image": stored / 1024,
        "pays_after_epochs": epochs_to_pay(fill, count / row["ours"], count / row["cached"]),
        "step": {"gflop_per_image": limits.gflop_per_image(classifier, live)},
        "kept": {"gflop_per_image": limits.gflop_per_image(classifier, cached)},
    }


def epochs_to_pay(fill, live, cached):
    """Returns the least number of epochs for which filling and cached epochs take no longer than
    live ones, or None.
    """
    return math.ceil(fill / (live - cached)) if live > cached else None


def _fit_epochs(photos, phase):
    """Returns {kind: function that returns seconds}: an epoch of `fit`, and of its step."""
    config, examples = photos.config, photos.examples
    images = measuring.read_folder(photos.folder, config)
    plain, _ = measuring.fit_model(config, phase, photos.num_classes, augment=False)
    batch = (
        tf.cast(examples.images(range(config.batch_size)), tf.float32),
        tf.constant(examples.labels[: config.batch_size]),
    )
    plain.fit(*batch, verbose=0)  # makes the optimizer's and the metrics' variables
    step = tf.function(plain.train_step)
    steps = range(-(-len(examples) // config.batch_size))
    return {
        "fit": measuring.fit_epoch(config, phase, photos.num_classes, images),
        "fit step": measuring.timed(lambda: [float(step(batch)["loss"]) for _ in steps]),
    }


def report(settings):
    machine, rows = measure(settings)
    decode = statistics.median(row["decode_once_images_per_second"] for row in rows)
    return (
        f"images/s of an epoch, {measuring.conditions(settings)}; ours in {settings.precision}, "
        f"decoded once, at {decode:.0f} images/s\n\n{program.table(_COLUMNS, rows)}\n\n"
        f"kept features; a view is of {rows[0]['images']} images\n\n{program.table(_CACHE, rows)}"
        f"\n\n{_MACHINE.format_map(machine)}\n\n{program.table(_LIMITS, rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
