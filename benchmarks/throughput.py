"""Images per second of a training epoch: our live loop and `model.fit` with the recipe as everybody copies it.

    python benchmarks/throughput.py --dataset=tf_flowers --data_dir=DIR

Epochs of the two alternate in one process; the figures are medians of `--rounds`, after an epoch each that compiles and
warms up. `fit` reads files with `image_dataset_from_directory`; ours has decoded them once, which is timed apart. "Step"
columns are without input: the same pixels again and again, nothing augmented; of Keras it is `model.train_step` in a
`tf.function`.

An epoch of `fit` is timed between its callbacks. The end of the call is left out: it removes a tf.data iterator, which now and
then waits for the thread that tunes it, and that thread sleeps 10 ms, then twice as long each time (an epoch of 1.6 s then
takes 2.55 s; with `tf.data.Options.autotune.enabled = False` it never does).
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import copied_recipe
import keras
import numpy as np
import tensorflow as tf

from tl_research import cli
from tl_research import experiment
from tl_research.config import Config
from tl_research.config import DATASETS
from tl_research.config import setting
from tl_research.data import dataset
from tl_research.data import pipeline
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.models.classifier import Classifier
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.training import features
from tl_research.training.run_directory import RunDirectory
from tl_research.training.steps import TrainStep

_PHASES = {"head": ("0%", 1e-3), "finetune": ("30%", 1e-5)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    dataset: str = setting("tf_flowers", "where images come from; directory needs --data_dir", choices=DATASETS)
    data_dir: str | None = setting(None, "one folder per class; with a named data set, a copy used instead of downloading")
    backbones: str = setting("MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224,ResNet50@224", "NAME@SIZE, a list")
    weights: str = setting("none", "imagenet or none, which is as fast")
    precision: str = setting("float32", "of our loop; fit is always float32", choices=("float32", "mixed_bfloat16"))
    images: int = setting(640, "training images of an epoch, at most")
    batch_size: int = setting(32, "images a step")
    rounds: int = setting(5, "epochs timed of each kind; at least 1")
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def measure(settings):
    """Returns a row for each backbone and phase; see `_measure_phase`."""
    rows = []
    for entry in settings.backbones.split(","):
        name, at, size = entry.partition("@")
        if not (at and size.isdigit()):
            raise UserError(f"--backbones has {entry!r}; expected NAME@SIZE; for example MobileNetV2@160")
        with tempfile.TemporaryDirectory() as place:
            config = Config(dataset=settings.dataset, data_dir=settings.data_dir, backbone=name, image_size=int(size),
                            weights="imagenet" if name == "EfficientNetLite0" else settings.weights, precision=settings.precision,
                            batch_size=settings.batch_size, workdir=os.path.join(place, "run"))
            start = time.perf_counter()
            with RunDirectory(config) as directory:
                data = dataset.load(config, directory)
            total = len(data.train) + len(data.validation) + len(data.test)
            decode = total / (time.perf_counter() - start)
            examples = _first(data.train, min(settings.images, len(data.train)))
            folder = _as_folders(examples, data.classes, os.path.join(place, "images"))
            for phase in _PHASES:
                row = {"backbone": name, "image_size": int(size), "phase": phase, "decode_once_images_per_second": decode,
                       **_measure_phase(config, phase, examples, data.classes, folder, settings.rounds)}
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
                keras.backend.clear_session()
    return rows


def _first(examples, count):
    """Returns the first images of a random order, so that every class is there."""
    rows = pipeline.epoch_order(0, 0, len(examples))[:count]
    return pipeline.Examples(tuple(examples.names[i] for i in rows), tuple(examples.paths[i] for i in rows),
                             examples.labels[rows], examples.image_size, examples.images(rows))


def _as_folders(examples, classes, place):
    """Makes a folder per class with links to the images, as `image_dataset_from_directory` wants them."""
    for index, (path, label) in enumerate(zip(examples.paths, examples.labels)):
        folder = os.path.join(place, classes[label])
        os.makedirs(folder, exist_ok=True)
        os.symlink(path, os.path.join(folder, f"{index}{os.path.splitext(path)[1]}"))
    return place


def _measure_phase(config, phase, examples, classes, folder, rounds):
    """Times epochs of each kind in turn.

    Returns:
        dict: {kind: images per second, median of the rounds}, `ratio` and `step_ratio` (medians of the ratios taken in
        each round), their ranges, and `input_share`, the share of our epoch that our step without input does not take.
    """
    unfreeze, learning_rate = _PHASES[phase]
    experiment.resolve_device(config, {})
    epochs = _our_epochs(config, phase, examples, len(classes))
    keras.config.set_dtype_policy("float32")
    epochs.update(_fit_epochs(config, examples, len(classes), folder, unfreeze != "0%", learning_rate))
    for epoch in epochs.values():
        epoch()  # compiles
    seconds = {kind: [] for kind in epochs}
    for _ in range(rounds):
        for kind, epoch in epochs.items():
            seconds[kind].append(epoch())
    result = {kind: len(examples) / statistics.median(times) for kind, times in seconds.items()}
    for name, (one, other) in {"ratio": ("fit", "ours"), "step_ratio": ("fit step", "our step")}.items():
        ratios = [a / b for a, b in zip(seconds[one], seconds[other])]
        result[name], result[f"{name}_range"] = statistics.median(ratios), [min(ratios), max(ratios)]
    return {**result, "input_share": 1 - result["ours"] / result["our step"]}


def _timed(work):
    """Returns a function that does `work` and returns the seconds it took."""
    def epoch():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    return epoch


def _our_epochs(config, phase, examples, num_classes):
    """Returns {kind: function that returns seconds}: an epoch of our live loop, of its step, and of its input alone."""
    unfreeze, learning_rate = _PHASES[phase]
    config = dataclasses.replace(config, phases=(phase,), epochs=(1,), unfreeze=(unfreeze,), patience=(0,),
                                 learning_rate=(learning_rate,))
    classifier = Classifier(config.backbone, config.weights, config.image_size, num_classes,
                            augmentation=config.augmentation, dropout=config.dropout, seed=config.seed)
    classifier.unfreeze(unfreeze)
    groups = make_param_groups(classifier.trainable_variables(), {}, list(classifier.variables))
    views = features.Views(config.seed, 0, True)
    draws = views.draws(0, len(examples))
    indices, weights = pipeline.make_batches(np.arange(len(examples)), config.batch_size)

    def steps(rows, draws):
        step = TrainStep(classifier, GroupedOptimizer(groups, config.optimizer),
                         features.LiveSource(classifier, examples, classifier.cut(), views), config.phase_plan[0], 1)
        arguments = [tf.constant(value) for value in (rows, weights, draws, 0, 0, len(rows))]
        position = tf.constant(0, tf.int64)
        return _timed(lambda: float(step(*arguments, position, position)["loss_sum"]))

    @tf.function
    def read(row):
        return tf.reduce_sum(classifier.augmentation.apply_draws(tf.gather(examples.pixels, row), tf.gather(draws, row)))

    again = np.repeat(indices[:1], len(indices), axis=0)  # without input: one batch again and again
    return {"ours": steps(indices, draws), "our step": steps(again, draws[:0]),
            "our input": _timed(lambda: [float(read(row)) for row in indices])}


class _EpochClock(keras.callbacks.Callback):
    """Measures the seconds of the last epoch, its reading of files included."""

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self._start


def _fit_epochs(config, examples, num_classes, folder, finetune, learning_rate):
    """Returns {kind: function that returns seconds}: an epoch of `fit`, of its step, and of its input alone."""
    images = keras.utils.image_dataset_from_directory(
        folder, image_size=(config.image_size, config.image_size), batch_size=config.batch_size, seed=config.seed,
        verbose=False).prefetch(tf.data.AUTOTUNE)

    def make(augment):
        model, base_model = copied_recipe.build_model(config, num_classes, augment=augment)
        if finetune:
            copied_recipe.open_top(base_model)
        copied_recipe.compile_model(model, learning_rate)
        return model

    model, clock = make(augment=True), _EpochClock()

    def fit():
        model.fit(images, epochs=1, verbose=0, callbacks=[clock])
        return clock.seconds

    plain = make(augment=False)
    batch = (tf.cast(examples.images(range(config.batch_size)), tf.float32), tf.constant(examples.labels[:config.batch_size]))
    plain.fit(*batch, verbose=0)  # makes the optimizer's and the metrics' variables
    step = tf.function(plain.train_step)
    steps = range(-(-len(examples) // config.batch_size))
    return {"fit": fit, "fit step": _timed(lambda: [float(step(batch)["loss"]) for _ in steps]),
            "fit input": _timed(lambda: sum(1 for _ in images))}


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = ["| backbone, phase | fit | ours | ours / fit | step of Keras | our step | ours / Keras | our input | fit's input | "
             "input, share of our epoch |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        ratios = [f"{row[name]:.2f} ({row[name + '_range'][0]:.2f}-{row[name + '_range'][1]:.2f})"
                  for name in ("ratio", "step_ratio")]
        lines.append(f"| {row['backbone']}@{row['image_size']}, {row['phase']} | {row['fit']:.0f} | {row['ours']:.0f} | "
                     f"{ratios[0]} | {row['fit step']:.0f} | {row['our step']:.0f} | {ratios[1]} | {row['our input']:.0f} | "
                     f"{row['fit input']:.0f} | {100 * row['input_share']:.0f} % |")
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    if settings.output_json:
        os.makedirs(os.path.dirname(settings.output_json) or ".", exist_ok=True)  # now, rather than fail after measuring
    rows = measure(settings)
    decode = statistics.median(row["decode_once_images_per_second"] for row in rows)
    print(f"\nimages/s of an epoch, {os.cpu_count()} CPU cores, batch {settings.batch_size}, median of {settings.rounds}; ours "
          f"in {settings.precision}, decoded once, at {decode:.0f} images/s\n\n{table(rows)}", flush=True)
    if settings.output_json:
        write_atomically(settings.output_json, json.dumps({"settings": vars(settings), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
