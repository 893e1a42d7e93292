"""Two replicas against one, on the same global batches: how far the losses of SGD are apart, and
images/s.

    python benchmarks/distribution.py --dataset=tf_flowers --data_dir=DIR

One replica, two under `--distribute=mirrored` and two processes under `--distribute=multi_worker`,
on the loopback address, take the same steps from the same weights: live, augmented, with dropout,
the top 30 % of the backbone open. Training amplifies rounding; by how much shows `nudged`: one
replica whose weights begin one rounding off. Without GPUs the mirrored replicas are logical devices
of one CPU, whose cores all kinds share: images/s then show what distribution costs.
"""

import dataclasses
import json
import os
import socket
import statistics
import tempfile

from tl_research import quiet

quiet.import_tensorflow()

import measuring
import numpy as np
import tensorflow as tf
from fault_forks import in_parallel

from tl_research import cli, distribution
from tl_research.config import DATASETS, Phase
from tl_research.data import pipeline
from tl_research.optim import schedules
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.optim.param_groups import make_param_groups
from tl_research.settings import setting
from tl_research.training.batch import EpochInputs
from tl_research.training.objective import CrossEntropy
from tl_research.training.steps import TrainStep

_KINDS = {"off": 1, "nudged": 1, "mirrored": 2, "multi_worker": 2}


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
    backbones: str = setting("EfficientNetLite0@224", "NAME@SIZE, a list")
    weights: str = setting("none", "imagenet or none")
    learning_rate: float = setting(1e-4, "of SGD with momentum 0.9", above=0)
    steps: int = setting(20, "to compare, and to time together", low=1)
    batch_size: int = setting(32, "images a step, on all replicas together")
    rounds: int = setting(5, "times that the steps are timed; at least 1", low=1)
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def free_ports(count):
    """Returns numbers of ports of the loopback address that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tf_configs(count):
    """Returns the `TF_CONFIG` of each of `count` workers on the loopback address."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    return [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def split_cpu(count):
    """Makes `count` logical devices of the CPU, before TensorFlow computes anything."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


def measure(settings, place):
    """Returns a row for each backbone: of each kind its losses, images per second and largest
    relative difference from `off`.
    """
    rows = []
    for name, size in measuring.parse_backbones(settings.backbones):
        row, images = {"backbone": name, "image_size": size}, os.path.join(place, f"{name}.npz")
        in_parallel([lambda: _save_images(settings, name, size, images)], 1)
        for kind, replicas in _KINDS.items():
            configs = tf_configs(replicas) if kind == "multi_worker" else [None]
            cases = [
                lambda config=config, kind=kind: _steps(settings, name, size, images, kind, config)
                for config in configs
            ]
            answers = in_parallel(cases, len(cases))
            row[kind] = answers[0]
            if "failed" not in answers[0]:
                difference = np.abs(np.divide(answers[0]["losses"], row["off"]["losses"]) - 1).max()
                row[kind]["largest_difference"] = float(difference)
        rows.append(row)
        print("\n".join(table([row]).splitlines()[2:]), flush=True)
    return rows


def _save_images(settings, name, size, path):
    """Writes as many training images as the steps take, and their labels.

    In a fork of its own, as TensorFlow reads them.
    """
    data, _ = measuring.load(measuring.make_config(settings, name, size, workdir=f"{path}-run"))
    rows = pipeline.epoch_order(0, 0, settings.steps * settings.batch_size) % len(data.train)
    np.savez(path, pixels=data.train.images(rows).numpy(), labels=data.train.labels[rows])


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
    with distribution.replicas(config), np.load(images) as data:
        labels = data["labels"]
        names = tuple(map(str, range(len(labels))))
        classifier = measuring.make_classifier(config, "finetune", int(labels.max()) + 1)
        source = measuring.live_source(
            config,
            classifier,
            pipeline.Examples(names, names, labels, size, tf.constant(data["pixels"])),
        )
        if kind == "nudged":
            for variable in classifier.trainable_variables().values():
                variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))
        groups = make_param_groups(classifier.trainable_variables(), {}, list(classifier.variables))
        phase = Phase("finetune", 1, "30%", settings.learning_rate, 0, 0)
        step = TrainStep(
            classifier,
            GroupedOptimizer(groups, "sgd"),
            source,
            CrossEntropy(),
            schedules.make_schedule(phase, settings.steps),
        )
        order = pipeline.epoch_order(config.seed, 1, len(source.examples))
        parts = (*pipeline.make_batches(order, config.batch_size), source.of_view(0), 0)
        epoch = EpochInputs(*tf.nest.map_structure(tf.constant, parts))

        def take(first, count):
            totals = step(epoch, first, count, first, first)
            return float(totals["loss_sum"] / totals["examples"])

        losses = [take(number, 1) for number in range(settings.steps)]
        times = [measuring.timed(lambda: take(0, settings.steps))() for _ in range(settings.rounds)]
        return {
            "losses": losses,
            "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
            "images_per_second": len(source.examples) / statistics.median(times),
            "seconds": times,
        }


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        "| backbone | replicas | largest difference of a loss | images/s |",
        "|---|---|---|---|",
    ]
    for row in rows:
        for kind in _KINDS:
            found = row[kind]
            cells = (
                f"| {found['failed']} |"
                if "failed" in found
                else (
                    f"{found['replicas']} | {found['largest_difference']:.1e} | "
                    f"{found['images_per_second']:.0f}"
                )
            )
            lines.append(f"| {row['backbone']}@{row['image_size']}, {kind} | {cells} |")
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    measuring.prepare_json(settings.output_json)
    with tempfile.TemporaryDirectory() as place:
        rows = measure(settings, place)
    print(
        f"\n{settings.steps} steps of batch {settings.batch_size}, {os.cpu_count()} CPU "
        f"cores\n\n{table(rows)}",
        flush=True,
    )
    measuring.write_json(settings.output_json, settings, rows)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
