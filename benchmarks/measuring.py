"""What benchmarks of training share: their images, epochs of our steps and of `model.fit` to time,
and the timing in turn.
"""

import contextlib
import os
import statistics
import tempfile
import time
from typing import NamedTuple

from tl_research import quiet

quiet.import_tensorflow()

import copied_recipe
import keras
import numpy as np
import program
import tensorflow as tf

# these are called here from outside
from program import parse_backbones, prepare_json, write_json  # noqa: F401

from tl_research.config import Config, Phase
from tl_research.data import dataset, pipeline
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.optim import schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.run import environment
from tl_research.run.directory import RunDirectory
from tl_research.settings import setting
from tl_research.training import features
from tl_research.training.batch import EpochInputs
from tl_research.training.objective import CrossEntropy
from tl_research.training.steps import TrainStep

PHASES = {"head": ("0%", 1e-3), "finetune": ("30%", 1e-5)}
PRECISIONS = ("mixed_bfloat16", "float32", "mixed_float16")


class Settings(program.Networks):
    """The flags of benchmarks that time epochs of several kinds in turn."""

    images: int = setting(320, "images of an epoch, which is what is timed", low=1)
    rounds: int = setting(5, "epochs timed of each kind; at least 1", low=1)


def conditions(settings):
    """Returns what figures are of, as text."""
    return f"{os.cpu_count()} CPU cores, batch {settings.batch_size}, median of {settings.rounds}"


def make_config(settings, name, size, **more):
    """Returns the `Config` of a backbone at an image size with what `settings` has.

    Sets Keras' dtype policy.
    """
    same = {
        key: value for key, value in vars(settings).items() if key in Config.__dataclass_fields__
    }
    # their weights come in packages
    same["weights"] = "imagenet" if name.startswith("EfficientNetLite") else settings.weights
    config = Config(
        **{"precision": "float32", **same, "backbone": name, "image_size": size, **more}
    )
    environment.resolve_device(config, {})
    return config


def load(config):
    """Returns (`Dataset`, images per second of reading, checking and decoding them once)."""
    start = time.perf_counter()
    with RunDirectory(config) as directory:
        data = dataset.load(config, directory)
    total = len(data.train) + len(data.validation) + len(data.test)
    return data, total / (time.perf_counter() - start)


def drawn_examples(config, count, num_classes=5):
    """Returns `Examples` of random pixels, for steps whose speed does not depend on the values."""
    pixels = np.random.RandomState(0).randint(
        0, 256, (count, *[config.image_size] * 2, 3), np.uint8
    )
    return examples_of(pixels, np.arange(count, dtype=np.int32) % num_classes)


def examples_of(pixels, labels):
    """Returns `Examples` of uint8 pixels [N, S, S, 3], numbered, and int32 labels [N]."""
    names = tuple(map(str, range(len(labels))))
    return pipeline.Examples(names, names, labels, pixels.shape[1], tf.constant(pixels))


class Photographs(NamedTuple):
    """Photographs to train on, in memory and, the same, as files."""

    config: Config
    examples: pipeline.Examples
    folder: str  # one folder per class
    num_classes: int
    decoded_per_second: float


@contextlib.contextmanager
def photographs(settings, name, size):
    """Yields the first training images of a random order, so that every class is there, for a
    backbone at an image size.
    """
    with tempfile.TemporaryDirectory() as place:
        config = make_config(settings, name, size, workdir=f"{place}/run")
        data, rate = load(config)
        train, rows = data.train, pipeline.epoch_order(0, 0, len(data.train))[: settings.images]
        examples = pipeline.Examples(
            tuple(train.names[i] for i in rows),
            tuple(train.paths[i] for i in rows),
            train.labels[rows],
            size,
            train.images(rows),
        )
        classes = [data.classes[label] for label in examples.labels]
        folder = program.as_folders(examples.paths, classes, f"{place}/images")
        yield Photographs(config, examples, folder, len(data.classes), rate)


def alternate(epochs, rounds):
    """Calls each function once, which compiles, and then all in turn.

    Returns {kind: [seconds of each round]}.
    """
    for epoch in epochs.values():
        epoch()
    seconds = {kind: [] for kind in epochs}
    for _ in range(rounds):
        for kind, epoch in epochs.items():
            seconds[kind].append(epoch())
    return seconds


def rates(seconds, images):
    """Returns {kind: images per second, median} of what `alternate` returned."""
    return {kind: images / statistics.median(times) for kind, times in seconds.items()}


def row(config, phase, seconds, images, ratios):
    """Returns the row of a backbone and phase.

    Args:
        config: `Config`.
        phase: A name in `PHASES`.
        seconds: As `alternate` returned them.
        images: Of an epoch.
        ratios: {name: (the slower kind, the faster one)}.

    Returns:
        dict: backbone, image_size, phase, {kind: images per second, median}, and of the ratios
        taken in each round {name: median} and {name_range: [least, most]}.
    """
    found = {
        "backbone": config.backbone,
        "image_size": config.image_size,
        "phase": phase,
        **rates(seconds, images),
    }
    for name, (slower, faster) in ratios.items():
        values = [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]
        found[name], found[f"{name}_range"] = statistics.median(values), [min(values), max(values)]
    return found


def timed(work):
    """Returns a function that does `work` and returns the seconds it took."""

    def epoch():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return epoch


def make_classifier(config, phase, num_classes):
    """Returns a `Classifier` with the layers open that the phase trains."""
    classifier = Classifier(config, num_classes)
    classifier.unfreeze(PHASES[phase][0])
    return classifier


def make_step(classifier, source, optimizer, phase, *, learning_rate=None, num_steps=1, xla=False):
    """Returns a `TrainStep`.

    Args:
        classifier: A `Classifier`.
        source: Where the tensors at the boundary come from.
        optimizer: Its name.
        phase: A name in `PHASES`; `classifier` has its layers open.
        learning_rate: Instead of the phase's own.
        num_steps: Of the phase.
        xla: Whether the step is compiled with XLA.
    """
    unfreeze, own_rate = PHASES[phase]
    config = Config(optimizer=optimizer)
    groups = make_param_groups(
        classifier.trainable_variables(), {}, list(classifier.variables), config
    )
    schedule = schedules.make_schedule(
        Phase(phase, 1, unfreeze, learning_rate or own_rate, 0, 0), num_steps
    )
    optimizer = GroupedOptimizer(groups, config)
    return TrainStep(classifier, optimizer, source, CrossEntropy(), schedule, xla=xla)


def epoch_inputs(source, order, batch_size, same_batch=False):
    """Returns `EpochInputs` of a source's images in an order: all batches of it, or the first as
    often, not augmented.
    """
    indices, weights = pipeline.make_batches(order, batch_size)
    of_view = source.of_view(0)
    if same_batch:
        indices = np.repeat(indices[:1], len(indices), axis=0)
        of_view = of_view if source.cached else of_view[:0]
    return EpochInputs(*tf.nest.map_structure(tf.constant, (indices, weights, of_view, 0)))


def our_steps(config, phase, classifier, source, *, same_batch=False, **options):
    """Returns a function that takes an epoch of our steps, all in one call as the loop does when
    cached.

    Args:
        config: `Config`.
        phase, classifier, source: As of `make_step`.
        same_batch: Whether every step is given the first batch, not augmented: a step without
            input.
        options: Of `make_step`.

    Returns:
        A function that returns what `TrainStep` does, and takes what that takes besides.
    """
    step = make_step(classifier, source, config.optimizer, phase, **options)
    epoch = epoch_inputs(source, np.arange(len(source.examples)), config.batch_size, same_batch)
    return lambda **more: step(epoch, 0, len(epoch.indices), 0, 0, **more)


def our_epoch(*arguments, **options):
    """Returns a function that returns the seconds of an epoch of our steps.

    Takes what `our_steps` does.
    """
    steps = our_steps(*arguments, **options)
    return timed(lambda: float(steps()["loss_sum"]))


def live_source(config, classifier, examples, boundary=None):
    """Returns a `LiveSource` of augmented images at a boundary.

    At that of the phase, if none is given.
    """
    views = features.Views(config.seed, 0, bool(config.augmentation))
    return features.LiveSource(classifier, examples, boundary or classifier.boundary(), views)


def fill_cache(config, classifier, examples, progress=lambda done, total: None):
    """Returns the `CachedSource` that a run fills from pixels, with one view, at the cheapest place
    before what `classifier` has open.
    """
    boundary = classifier.graph.cheapest_boundary(classifier.boundary())
    live = live_source(config, classifier, examples, boundary)
    filled = features.compute_features(
        live, config.batch_size, lambda view: contextlib.nullcontext(progress)
    )
    filled.kept(0)
    return filled


def cached_source(config, classifier, filled):
    """Returns what a phase trains on: features at, or before, its own boundary, from those that are
    kept.
    """
    source = features.derive_features(classifier, filled, classifier.boundary(), config.batch_size)
    source.kept(0)
    return source


def fit_model(config, phase, num_classes, *, precision="float32", **options):
    """Returns (the copied recipe's model, its backbone), compiled for a phase.

    Args:
        config: `Config`.
        phase: A name in `PHASES`.
        num_classes: Outputs of the dense layer.
        precision: Of the model, whatever ours has.
        options: Of `copied_recipe.build_model`.
    """
    unfreeze, learning_rate = PHASES[phase]
    opened = float(unfreeze.removesuffix("%")) / 100
    with backbones.dtype_policy(precision):
        return copied_recipe.build_model(config, num_classes, learning_rate, opened, **options)


def read_folder(folder, config, **options):
    """Returns the batches of a folder as the copied recipe reads them."""
    return keras.utils.image_dataset_from_directory(
        folder,
        image_size=(config.image_size, config.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        verbose=False,
        **options,
    ).prefetch(tf.data.AUTOTUNE)


def fit_epoch(config, phase, num_classes, images, **options):
    """Returns a function that returns the seconds of an epoch of `fit` between its callbacks.

    Options are `fit_model`'s.
    """
    model, _ = fit_model(config, phase, num_classes, **options)

    def fit():
        times = []  # of an epoch's beginning and end, its reading of files included

        def note(*_):
            times.append(time.perf_counter())

        clock = keras.callbacks.LambdaCallback(on_epoch_begin=note, on_epoch_end=note)
        # a data set shuffles itself
        model.fit(images, epochs=1, verbose=0, callbacks=[clock], shuffle=False)
        start, end = times
        return end - start

    return fit
