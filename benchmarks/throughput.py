"""Images per second of a training epoch: our live loop and `model.fit` with the recipe as everybody copies it.

    python benchmarks/throughput.py --dataset=tf_flowers --data_dir=DIR

Epochs of the two alternate in one process; the figures are medians of `--rounds`, after an epoch each that compiles and
warms up. `fit` reads files with `image_dataset_from_directory`; ours has decoded them once, which is timed apart. "Step"
columns are without input: the same pixels again and again, nothing augmented.
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
                            weights="imagenet" if name == "EfficientNetLite0" else settings.weights,
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
        each round), their ranges, and `fit_input`, images per second of fit's input pipeline alone.
    """
    unfreeze, learning_rate = _PHASES[phase]
    ours, our_step = _our_epochs(config, phase, examples, len(classes))
    fit, fit_step, read = _fit_epochs(config, examples, len(classes), folder, unfreeze != "0%", learning_rate)
    epochs = {"ours": ours, "fit": fit, "our step": our_step, "fit step": fit_step}
    for epoch in epochs.values():
        epoch()  # compiles
    seconds = {kind: [] for kind in epochs}
    for _ in range(rounds):
        for kind, epoch in epochs.items():
            seconds[kind].append(_seconds(epoch))
    count = len(examples)
    result = {kind: count / statistics.median(times) for kind, times in seconds.items()}
    for name, (one, other) in {"ratio": ("fit", "ours"), "step_ratio": ("fit step", "our step")}.items():
        ratios = [a / b for a, b in zip(seconds[one], seconds[other])]
        result[name], result[f"{name}_range"] = statistics.median(ratios), [min(ratios), max(ratios)]
    return {**result, "fit_input": count / statistics.median(_seconds(read) for _ in range(rounds))}


def _seconds(epoch):
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start


def _our_epochs(config, phase, examples, num_classes):
    """Returns two functions: one epoch of our live loop, and one of the step without input."""
    unfreeze, learning_rate = _PHASES[phase]
    config = dataclasses.replace(config, phases=(phase,), epochs=(1,), unfreeze=(unfreeze,), patience=(0,),
                                 learning_rate=(learning_rate,))
    classifier = Classifier(config.backbone, config.weights, config.image_size, num_classes,
                            augmentation=config.augmentation, dropout=config.dropout, seed=config.seed)
    classifier.unfreeze(unfreeze)
    groups = make_param_groups(classifier.trainable_variables(), {}, list(classifier.variables))
    views = features.Views(config.seed, 0, True)
    indices, weights = pipeline.make_batches(np.arange(len(examples)), config.batch_size)
    epochs = []
    for draws in (views.draws(0, len(examples)), views.draws(0, 0)):
        step = TrainStep(classifier, GroupedOptimizer(groups, config.optimizer),
                         features.LiveSource(classifier, examples, classifier.cut(), views), config.phase_plan[0], 1)
        rows = indices if len(draws) else np.repeat(indices[:1], len(indices), axis=0)  # without input: one batch again
        arguments = [tf.constant(value) for value in (rows, weights, draws, 0, 0, len(rows))]

        def epoch(step=step, arguments=arguments):
            totals = step(*arguments, tf.constant(0, tf.int64), tf.constant(0, tf.int64))
            return float(totals["loss_sum"])

        epochs.append(epoch)
    return epochs


def _fit_epochs(config, examples, num_classes, folder, finetune, learning_rate):
    """Returns three functions: an epoch of `fit`, one of its step without input, and one of its input alone."""
    images = keras.utils.image_dataset_from_directory(
        folder, image_size=(config.image_size, config.image_size), batch_size=config.batch_size, seed=config.seed,
        verbose=False).prefetch(tf.data.AUTOTUNE)
    steps = -(-len(examples) // config.batch_size)
    batch = (tf.cast(examples.images(range(min(config.batch_size, len(examples)))), tf.float32),
             tf.constant(examples.labels[:config.batch_size]))
    again = tf.data.Dataset.from_tensors(batch).repeat(steps)
    epochs = []
    for source, augment in ((images, True), (again, False)):
        model, base_model = copied_recipe.build_model(config, num_classes, augment=augment)
        if finetune:
            copied_recipe.open_top(base_model)
        copied_recipe.compile_model(model, learning_rate)
        epochs.append(lambda model=model, source=source: model.fit(source, epochs=1, shuffle=False, verbose=0))
    return *epochs, lambda: sum(1 for _ in images)


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = ["| backbone, phase | fit | ours | ours / fit | step of fit | our step | ours / fit | input of fit |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        ratios = [f"{row[name]:.2f} ({row[name + '_range'][0]:.2f}-{row[name + '_range'][1]:.2f})"
                  for name in ("ratio", "step_ratio")]
        lines.append(f"| {row['backbone']}@{row['image_size']}, {row['phase']} | {row['fit']:.0f} | {row['ours']:.0f} | "
                     f"{ratios[0]} | {row['fit step']:.0f} | {row['our step']:.0f} | {ratios[1]} | {row['fit_input']:.0f} |")
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    if settings.output_json:
        os.makedirs(os.path.dirname(settings.output_json) or ".", exist_ok=True)  # now, rather than fail after measuring
    experiment.resolve_device(Config(precision="float32"), {})
    rows = measure(settings)
    decode = statistics.median(row["decode_once_images_per_second"] for row in rows)
    print(f"\nimages/s of an epoch, {os.cpu_count()} CPU cores, batch {settings.batch_size}, median of {settings.rounds}; ours "
          f"decodes once, at {decode:.0f} images/s\n\n{table(rows)}", flush=True)
    if settings.output_json:
        write_atomically(settings.output_json, json.dumps({"settings": vars(settings), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
