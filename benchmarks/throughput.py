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

import functools
import statistics

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import program
import tensorflow as tf

from tl_research.data import pipeline
from tl_research.settings import setting

_RATIOS = {"ratio": ("fit", "ours"), "step_ratio": ("fit step", "our step")}
_COLUMNS = """
backbone, phase | {backbone}@{image_size}, {phase}
fit | {fit:.0f}
ours | {ours:.0f}
ours / fit | {ratio:.2f} ({ratio_range[0]:.2f}-{ratio_range[1]:.2f})
step of Keras | {fit step:.0f}
our step | {our step:.0f}
ours / Keras | {step_ratio:.2f} ({step_ratio_range[0]:.2f}-{step_ratio_range[1]:.2f})
our input | {our input:.0f}
fit's input | {fit input:.0f}
input, share of our epoch | {input_share:.0%}
"""
table = functools.partial(program.table, _COLUMNS)


class Settings(measuring.Settings, program.Photographs):
    """The flags of this benchmark."""

    precision: str = setting(
        "float32", "of our loop; fit is always float32", choices=measuring.PRECISIONS
    )
    images: int = setting(640, "training images of an epoch, at most", low=1)


def measure(settings):
    """Returns a row for each backbone and phase: as of `measuring.row`, with `input_share`, the
    share of our epoch that our step without input does not take, and
    `decode_once_images_per_second`.
    """

    def rows():
        for name, size in program.parse_backbones(settings.backbones):
            with measuring.photographs(settings, name, size) as photos:
                for phase in measuring.PHASES:
                    epochs = {**_our_epochs(photos, phase), **_fit_epochs(photos, phase)}
                    seconds = measuring.alternate(epochs, settings.rounds)
                    count = len(photos.examples)
                    row = measuring.row(photos.config, phase, seconds, count, _RATIOS)
                    row["decode_once_images_per_second"] = photos.decoded_per_second
                    row["input_share"] = 1 - row["ours"] / row["our step"]
                    yield row
                    keras.backend.clear_session()

    return program.gathered(settings, _COLUMNS, rows())


def _our_epochs(photos, phase):
    """Returns {kind: function that returns seconds}: an epoch of our live loop, of its step, and of
    its input alone.
    """
    config, examples = photos.config, photos.examples
    classifier = measuring.make_classifier(config, phase, photos.num_classes)
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


def _fit_epochs(photos, phase):
    """Returns {kind: function that returns seconds}: an epoch of `fit`, of its step, and of its
    input alone.
    """
    config, examples = photos.config, photos.examples
    images = measuring.read_folder(photos.folder, config)
    plain = measuring.fit_model(config, phase, photos.num_classes, augment=False)
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
        "fit input": measuring.timed(lambda: sum(1 for _ in images)),
    }


def report(settings):
    rows = measure(settings)
    decode = statistics.median(row["decode_once_images_per_second"] for row in rows)
    return (
        f"images/s of an epoch, {measuring.conditions(settings)}; ours in {settings.precision}, "
        f"decoded once, at {decode:.0f} images/s\n\n{table(rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
