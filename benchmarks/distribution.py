"""Two replicas against one, on the same global batches: how far the losses of SGD are apart, and
images/s.

    python benchmarks/distribution.py --dataset=tf_flowers --data_dir=DIR

One replica, two under `--distribute=mirrored` and two processes under `--distribute=multi_worker`,
on the loopback address, take the same steps from the same weights: live, augmented, with dropout,
the top 30 % of the backbone open. Training amplifies rounding; by how much shows `nudged`: one
replica whose weights begin one rounding off. Without GPUs the mirrored replicas are logical devices
of one CPU, whose cores all kinds share: images/s then show what distribution costs.
"""

import functools
import os
import statistics
import tempfile

from tl_research import quiet

quiet.import_tensorflow()

import measuring
import numpy as np
import program
import tensorflow as tf
from fault_forks import in_parallel

from tl_research import distribution
from tl_research.data import pipeline
from tl_research.errors import UserError
from tl_research.settings import setting

_KINDS = {"off": 1, "nudged": 1, "mirrored": 2, "multi_worker": 2}
_COLUMNS = """
backbone | {backbone}@{image_size}, {kind}
replicas | {replicas}{failed}
largest difference of a loss | {largest_difference:.1e}
images/s | {images_per_second:.0f}
"""


class Settings(program.Networks, program.Photographs):
    """The flags of this benchmark."""

    backbones: str = setting("EfficientNetLite0@224", "NAME@SIZE, a list")
    batch_size: int = setting(32, "images a step, on all replicas together", low=1)
    learning_rate: float = setting(1e-4, "of SGD with momentum 0.9", above=0)
    steps: int = setting(20, "to compare, and to time together", low=1)
    rounds: int = setting(5, "times that the steps are timed; at least 1", low=1)


def split_cpu(count):
    """Makes `count` logical devices of the CPU, before TensorFlow computes anything."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


def measure(settings):
    """Returns a row for each backbone and kind: its losses, images per second and largest relative
    difference from those of `off`.
    """

    def rows():
        for name, size in program.parse_backbones(settings.backbones):
            (images,), off = in_parallel([lambda: _images(settings, name, size)], 1), None
            if "failed" in images:
                raise UserError(f"no images of --data_dir={settings.data_dir}: {images['failed']}")
            for kind, replicas in _KINDS.items():
                configs = program.tf_configs(replicas) if kind == "multi_worker" else [None]
                steps = functools.partial(_steps, settings, name, size, images, kind)
                found, *_ = in_parallel([functools.partial(steps, of) for of in configs], replicas)
                if "losses" in found:
                    off = off or found["losses"]
                    ratios = np.divide(found["losses"], off)
                    found["largest_difference"] = float(np.abs(ratios - 1).max())
                yield {"backbone": name, "image_size": size, "kind": kind, **found}

    return program.gathered(settings, _COLUMNS, rows())


def _images(settings, name, size):
    """Returns {"pixels", "labels"} of as many training images as the steps take.

    In a fork of its own, as TensorFlow reads them.
    """
    with tempfile.TemporaryDirectory() as place:
        data, _ = measuring.load(measuring.make_config(settings, name, size, workdir=place))
    rows = pipeline.epoch_order(0, 0, settings.steps * settings.batch_size) % len(data.train)
    return {"pixels": data.train.images(rows).numpy(), "labels": data.train.labels[rows]}


def _steps(settings, name, size, images, kind, tf_config):
    """Returns the losses of the first steps and then images per second, of the replicas of this
    process.
    """
    if tf_config:
        os.environ["TF_CONFIG"] = tf_config
    if kind == "mirrored" and not tf.config.list_physical_devices("GPU"):
        split_cpu(_KINDS[kind])
    config = measuring.make_config(
        settings, name, size, distribute="off" if kind == "nudged" else kind, workdir="not used"
    )
    with distribution.replicas(config):
        labels = images["labels"]
        examples = measuring.examples_of(**images)
        classifier = measuring.make_classifier(config, "finetune", int(labels.max()) + 1)
        source = measuring.live_source(config, classifier, examples)
        if kind == "nudged":
            for variable in classifier.trainable_variables().values():
                variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))
        options = {"learning_rate": settings.learning_rate, "num_steps": settings.steps}
        step = measuring.make_step(classifier, source, "sgd", "finetune", **options)
        order = pipeline.epoch_order(config.seed, 1, len(labels))
        epoch = measuring.epoch_inputs(source, order, config.batch_size)

        def take(first, count):
            totals = step(epoch, first, count, first, first)
            return float(totals["loss_sum"] / totals["examples"])

        losses = [take(number, 1) for number in range(settings.steps)]
        times = [measuring.timed(lambda: take(0, settings.steps))() for _ in range(settings.rounds)]
        return {
            "losses": losses,
            "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
            "images_per_second": len(labels) / statistics.median(times),
            "seconds": times,
        }


def report(settings):
    table = program.table(_COLUMNS, measure(settings))
    return f"{settings.steps} steps, {measuring.conditions(settings)}\n\n{table}"


if __name__ == "__main__":
    program.main(Settings, report)
