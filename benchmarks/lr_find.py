"""How near the suggestions of `lr_find` are to the best rate of a small sweep.

    python benchmarks/lr_find.py --data_dir=PHOTOS --output_json=FILE

For each seed and number of training images, both phases of the default recipe: the range test and
its suggestion, then a few epochs of the phase at each rate of a grid of half decades, from the same
weights. The best rate has the lowest validation loss, on photographs that are not trained on.
"""

import dataclasses
import functools
import os
import random
import shutil
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import numpy as np
import program
import tensorflow as tf

from tl_research import experiment
from tl_research.config import Config
from tl_research.optim import schedules
from tl_research.settings import setting
from tl_research.training import loop, lr_range_test, phase
from tl_research.training.batch import epoch_inputs

_SWEEP = tuple(10.0 ** (exponent / 2) for exponent in range(-10, -1))  # 1e-5 to 1e-1
_HELD_OUT = 80  # photographs of each class; half are validation images
_COLUMNS = """
images | {images}
seed | {seed}
phase | {phase}
suggested | {suggested:.1e}{reason}
best of the sweep | {best:.1e}
factor | {factor:.2g}
"""
table = functools.partial(program.table, _COLUMNS)


class Settings(program.Network):
    """The flags of this benchmark."""

    required = ("data_dir",)
    data_dir: str | None = setting(None, "one folder per class; must be given", path="absolute")
    backbone: str = setting("EfficientNetLite0@96", "NAME@SIZE")
    images: tuple[int, ...] = setting((400, 10000), "training images, at most", low=10)
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the run and of the photographs", low=0)
    epochs: int = setting(3, "of each phase at each rate of the sweep", low=1)


def measure(settings):
    """Yields a dict for each phase of each run: its range test, the rate that this suggests or the
    reason for none, the validation loss of each rate of the sweep, the best of these, and the
    factor between the two.
    """
    for images in settings.images:
        for seed in settings.seeds:
            with tempfile.TemporaryDirectory() as place:
                _copy_photographs(settings.data_dir, place, images, seed)
                for row in _measure_run(settings, seed, place):
                    suggested, reason = lr_range_test.suggest(row["range_test"])
                    best = _SWEEP[int(np.nanargmin(row["validation_losses"]))]
                    yield {
                        "images": images,
                        "seed": seed,
                        **row,
                        "suggested": suggested,
                        "reason": None if suggested else reason,
                        "best": best,
                        "factor": suggested and suggested / best,
                    }


def _copy_photographs(data_dir, place, images, seed):
    """Makes `place`/validation and `place`/train, disjoint random choices of each class."""
    classes = sorted(entry.name for entry in os.scandir(data_dir) if entry.is_dir())
    for name in classes:
        files = sorted(os.listdir(f"{data_dir}/{name}"))
        random.Random(seed).shuffle(files)
        for number, file in enumerate(files[: _HELD_OUT + images // len(classes)]):
            side = "validation" if number < _HELD_OUT else "train"
            os.makedirs(f"{place}/{side}/{name}", exist_ok=True)
            shutil.copy(f"{data_dir}/{name}/{file}", f"{place}/{side}/{name}")


def _measure_run(settings, seed, place):
    """Yields a dict for each phase of one run."""
    name, size = settings.network
    config = Config(
        dataset="directory",
        data_dir=f"{place}/train",
        validation_dir=f"{place}/validation",
        backbone=name,
        image_size=size,
        seed=seed,
        workdir=f"{place}/run",
    )
    with experiment.opened(config) as opened:
        ready = experiment.prepare(opened, time.perf_counter())
        tell = loop.teller(ready.observers)
        for index in ready.plan.left(ready.state):
            setup = phase.prepare(ready.plan, index, ready.state, tell)
            rows = lr_range_test.range_test(setup, ready.state)
            losses = _sweep(setup, ready.state, settings.epochs)
            yield {"phase": setup.phase.name, "range_test": rows, "validation_losses": losses}
            if index == 0:
                loop.train_phase(setup, ready.state, ready.resume, tell)


def _sweep(setup, state, epochs):
    """Returns the validation loss after `epochs` of the phase at each rate; leaves no trace."""
    plan, source = setup.plan, setup.source
    steps = plan.steps_per_epoch
    factor = schedules.make_schedule(
        dataclasses.replace(setup.phase, learning_rate=1.0), epochs * steps
    )
    rate, losses = tf.Variable(0.0), []
    step = plan.step_maker(setup.optimizer, source, lambda taken: rate * factor(taken))(
        plan.compiler.xla
    )
    for each in _SWEEP:
        rate.assign(each)
        with step.undone():
            for epoch in range(epochs):
                inputs = epoch_inputs(plan, source, epoch + 1)
                step(inputs, 0, steps, epoch * steps, epoch * steps, None, state.scaling)
            found = plan.objective.evaluate(setup.evaluate(), plan.validation.labels)
        losses.append(found["loss"])
    return losses


def report(settings):
    return table(program.gathered(settings, _COLUMNS, measure(settings)))


if __name__ == "__main__":
    program.main(Settings, report)
