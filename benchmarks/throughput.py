"""Images per second of a training epoch: our live loop and `model.fit` with the recipe as everybody
copies it.

    python benchmarks/throughput.py --dataset=tf_flowers --data_dir=DIR

Epochs of the two alternate in one process; the figures are medians of `--rounds`, after an epoch
each that compiles and warms up. `fit` reads files with `image_dataset_from_directory`; ours has
decoded them once, which is timed apart. "Step" columns are without input: the same pixels again and
again, nothing augmented; of Keras it is `model.train_step` in a `tf.function`.

An epoch of `fit` is timed between its callbacks. The end of the call is left out: it removes a
tf.data iterator, which now and then waits for the thread that tunes it, and that thread sleeps 10
ms, then twice as long each time (an epoch of 1.6 s then takes 2.55 s; with
`tf.data.Options.autotune.enabled = False` it never does).
"""

import dataclasses
import os
import statistics
import tempfile

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import tensorflow as tf

from tl_research import cli
from tl_research.config import DATASETS
from tl_research.data import pipeline
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
    rounds: int = setting(5, "epochs timed of each kind; at least 1")
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def measure(settings):
    """Returns a row for each backbone and phase; see `_measure_phase`."""
    rows = []
    for name, size in measuring.parse_backbones(settings.backbones):
        with tempfile.TemporaryDirectory() as place:
            config = measuring.make_config(settings, name, size, workdir=os.path.join(place, "run"))
            data, decode = measuring.load(config)
            examples = measuring.first(data.train, min(settings.images, len(data.train)))
            folder = measuring.as_folders(
                examples.paths,
                [data.classes[label] for label in examples.labels],
                os.path.join(place, "images"),
            )
            for phase in measuring.PHASES:
                row = {
                    "backbone": name,
                    "image_size": size,
                    "phase": phase,
                    "decode_once_images_per_second": decode,
                    **_measure_phase(
                        config, phase, examples, len(data.classes), folder, settings.rounds
                    ),
                }
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
                keras.backend.clear_session()
    return rows


def _measure_phase(config, phase, examples, num_classes, folder, rounds):
    """Times epochs of each kind in turn.

    Returns:
        dict: {kind: images per second, median of the rounds}, `ratio` and `step_ratio` (medians of
        the ratios taken in each round), their ranges, and `input_share`, the share of our epoch
        that our step without input does not take.
    """
    epochs = {
        **_our_epochs(config, phase, examples, num_classes),
        **_fit_epochs(config, phase, examples, num_classes, folder),
    }
    seconds = measuring.alternate(epochs, rounds)
    result = {kind: len(examples) / statistics.median(times) for kind, times in seconds.items()}
    for name, (one, other) in {
        "ratio": ("fit", "ours"),
        "step_ratio": ("fit step", "our step"),
    }.items():
        result[name], result[f"{name}_range"] = measuring.ratios(seconds[one], seconds[other])
    return {**result, "input_share": 1 - result["ours"] / result["our step"]}


def _our_epochs(config, phase, examples, num_classes):
    """Returns {kind: function that returns seconds}: an epoch of our live loop, of its step, and of
    its input alone.
    """
    classifier = measuring.make_classifier(config, phase, num_classes)
    source = measuring.live_source(config, classifier, examples)
    draws = source.of_view(0)
    indices, _ = pipeline.make_batches(range(len(examples)), config.batch_size)

    @tf.function
    def read(row):
        return tf.reduce_sum(
            classifier.augmentation.apply_draws(examples.lookup(row), tf.gather(draws, row))
        )

    return {
        "ours": measuring.our_epoch(config, phase, classifier, source),
        "our step": measuring.our_epoch(config, phase, classifier, source, same_batch=True),
        "our input": measuring.timed(lambda: [float(read(row)) for row in indices]),
    }


def _fit_epochs(config, phase, examples, num_classes, folder):
    """Returns {kind: function that returns seconds}: an epoch of `fit`, of its step, and of its
    input alone.
    """
    images = measuring.read_folder(folder, config)
    plain = measuring.fit_model(config, phase, num_classes, augment=False)
    batch = (
        tf.cast(examples.images(range(config.batch_size)), tf.float32),
        tf.constant(examples.labels[: config.batch_size]),
    )
    plain.fit(*batch, verbose=0)  # makes the optimizer's and the metrics' variables
    step = tf.function(plain.train_step)
    steps = range(-(-len(examples) // config.batch_size))
    return {
        "fit": measuring.fit_epoch(config, phase, num_classes, images),
        "fit step": measuring.timed(lambda: [float(step(batch)["loss"]) for _ in steps]),
        "fit input": measuring.timed(lambda: sum(1 for _ in images)),
    }


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        (
            "| backbone, phase | fit | ours | ours / fit | step of Keras | our step | ours / Keras "
            "| our input | fit's input | input, share of our epoch |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [
            f"{row[name]:.2f} ({row[name + '_range'][0]:.2f}-{row[name + '_range'][1]:.2f})"
            for name in ("ratio", "step_ratio")
        ]
        lines.append(
            f"| {row['backbone']}@{row['image_size']}, {row['phase']} | {row['fit']:.0f} | "
            f"{row['ours']:.0f} | {ratios[0]} | {row['fit step']:.0f} | {row['our step']:.0f} | "
            f"{ratios[1]} | {row['our input']:.0f} | {row['fit input']:.0f} | "
            f"{100 * row['input_share']:.0f} % |"
        )
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    measuring.prepare_json(settings.output_json)
    rows = measure(settings)
    decode = statistics.median(row["decode_once_images_per_second"] for row in rows)
    print(
        f"\nimages/s of an epoch, {os.cpu_count()} CPU cores, batch {settings.batch_size}, median "
        f"of {settings.rounds}; ours in {settings.precision}, decoded once, at {decode:.0f} "
        f"images/s\n\n{table(rows)}",
        flush=True,
    )
    measuring.write_json(settings.output_json, settings, rows)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
