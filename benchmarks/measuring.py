"""What benchmarks of training share: their images, epochs of our steps and of `model.fit` to time,
and the timing in turn.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import time

import copied_recipe
import keras
import numpy as np
import tensorflow as tf

from tl_research.config import Config
from tl_research.data import dataset, pipeline
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.models.classifier import Classifier
from tl_research.optim import schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.run import environment
from tl_research.run.directory import RunDirectory
from tl_research.training import features
from tl_research.training.batch import EpochInputs
from tl_research.training.objective import CrossEntropy
from tl_research.training.steps import TrainStep

PHASES = {"head": ("0%", 1e-3), "finetune": ("30%", 1e-5)}
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BACKBONES = "MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224,ResNet50@224"


def parse_backbones(text):
    """Returns [(name, image size)] of a list NAME@SIZE,NAME@SIZE."""
    parsed = []
    for entry in text.split(","):
        name, at, size = entry.partition("@")
        if not (at and size.isdigit()):
            raise UserError(
                f"--backbones has {entry!r}; expected NAME@SIZE; for example MobileNetV2@160"
            )
        parsed.append((name, int(size)))
    return parsed


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
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (count, config.image_size, config.image_size, 3), np.uint8)
    names = tuple(str(index) for index in range(count))
    return pipeline.Examples(
        names,
        names,
        np.arange(count, dtype=np.int32) % num_classes,
        config.image_size,
        tf.constant(pixels),
    )


def first(examples, count):
    """Returns the first images of a random order, so that every class is there."""
    rows = pipeline.epoch_order(0, 0, len(examples))[:count]
    return pipeline.Examples(
        tuple(examples.names[i] for i in rows),
        tuple(examples.paths[i] for i in rows),
        examples.labels[rows],
        examples.image_size,
        examples.images(rows),
    )


def as_folders(paths, class_names, place):
    """Makes a folder per class with links to the images, as `image_dataset_from_directory` wants
    them.

    Args:
        paths: Of the images, absolute.
        class_names: The class of each.
        place: Directory for the folders.
    """
    for index, (path, name) in enumerate(zip(paths, class_names)):
        os.makedirs(os.path.join(place, name), exist_ok=True)
        os.symlink(path, os.path.join(place, name, f"{index}{os.path.splitext(path)[1]}"))
    return place


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


def ratios(slower, faster):
    """Returns (median, [least, most]) of the ratios taken in each round."""
    values = [a / b for a, b in zip(slower, faster, strict=True)]
    return statistics.median(values), [min(values), max(values)]


def timed(work):
    """Returns a function that does `work` and returns the seconds it took."""

    def epoch():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return epoch


def make_classifier(config, phase, num_classes, **options):
    """Returns a `Classifier` with the layers open that the phase trains."""
    classifier = Classifier(
        config.backbone,
        config.weights,
        config.image_size,
        num_classes,
        augmentation=config.augmentation,
        dropout=config.dropout,
        seed=config.seed,
        **options,
    )
    classifier.unfreeze(PHASES[phase][0])
    return classifier


def our_steps(
    config, phase, classifier, source, *, same_batch=False, learning_rate=None, xla=False
):
    """Returns a function that takes an epoch of our steps, all in one call as the loop does when
    cached.

    Args:
        config: `Config`.
        phase: A name in `PHASES`; `classifier` has its layers open.
        classifier: A `Classifier`.
        source: Where the tensors at the boundary come from.
        same_batch: Whether every step is given the first batch, not augmented: a step without
            input.
        learning_rate: Instead of the phase's own.
        xla: Whether the step is compiled with XLA.

    Returns:
        A function that returns what `TrainStep` does, and takes what that takes besides.
    """
    unfreeze, own_rate = PHASES[phase]
    config = dataclasses.replace(
        config,
        phases=(phase,),
        epochs=(1,),
        unfreeze=(unfreeze,),
        patience=(0,),
        learning_rate=(learning_rate or own_rate,),
        lr_schedule=("constant",),
        warmup=(0,),
    )
    groups = make_param_groups(classifier.trainable_variables(), {}, list(classifier.variables))
    step = TrainStep(
        classifier,
        GroupedOptimizer(groups, config.optimizer),
        source,
        CrossEntropy(),
        schedules.make_schedule(config.phase_plan[0], 1),
        xla=xla,
    )
    indices, weights = pipeline.make_batches(np.arange(len(source.examples)), config.batch_size)
    of_view = source.of_view(0)
    if same_batch:
        indices = np.repeat(indices[:1], len(indices), axis=0)
        of_view = of_view if source.cached else of_view[:0]
    epoch = EpochInputs(*tf.nest.map_structure(tf.constant, (indices, weights, of_view, 0)))
    return lambda **more: step(epoch, 0, len(indices), 0, 0, **more)


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
    views = features.Views(config.seed, 0, bool(config.augmentation))
    boundary = classifier.graph.cheapest_boundary(classifier.boundary())
    live = features.LiveSource(classifier, examples, boundary, views)
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


class _EpochClock(keras.callbacks.Callback):
    """Measures the seconds of the last epoch, its reading of files included."""

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self._start


def fit_model(config, phase, num_classes, augment=True, precision="float32", jit_compile="auto"):
    """Returns the copied recipe's model, compiled for a phase, in a precision of its own, whatever
    ours has.
    """
    unfreeze, learning_rate = PHASES[phase]
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    model, base_model = copied_recipe.build_model(config, num_classes, augment=augment)
    keras.config.set_dtype_policy(policy)
    if unfreeze != "0%":
        copied_recipe.open_top(base_model)
    copied_recipe.compile_model(model, learning_rate, jit_compile)
    return model


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
    model, clock = fit_model(config, phase, num_classes, **options), _EpochClock()

    def fit():
        # a data set shuffles itself
        model.fit(images, epochs=1, verbose=0, callbacks=[clock], shuffle=False)
        return clock.seconds

    return fit


def prepare_json(path):
    """Makes the directory of a file now, rather than fail after measuring."""
    if path:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)


def write_json(path, settings, rows, **more):
    """Writes the settings and all numbers, if a path is given."""
    if path:
        write_atomically(
            path, json.dumps({"settings": vars(settings), "rows": rows, **more}, indent=1) + "\n"
        )
