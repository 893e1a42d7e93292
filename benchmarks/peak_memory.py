"""What a run's memory is at its peak in training, and after it: to export, check and draw.

    python benchmarks/peak_memory.py

Each backbone is a run of its own process, of random images, with the phases head and finetune, an
epoch each. Its training ends when the best weights of the last phase were evaluated. The peaks are
the kernel's (VmHWM of /proc/self/status), which is made to forget the first one.
"""

import dataclasses
import multiprocessing
import os
import tempfile

import numpy as np
import PIL.Image

from tl_research import cli
from tl_research.settings import setting

_BACKBONES = "MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224,ResNet50@224"
_CLASSES = ("ant", "bee")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    backbones: str = setting(_BACKBONES, "NAME@SIZE, a list")
    weights: str = setting("none", "imagenet or none, which takes as much")
    precision: str = setting("float32", "of the steps", choices=("float32", "mixed_bfloat16"))
    images: int = setting(
        160, "in all: 40 % to train on, 40 % for validation, and 20 % for the test", low=30
    )
    batch_size: int = setting(8, "images a step")
    feature_cache: str = setting("off", "as of train.py", choices=("auto", "off"))
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def write_images(directory, count, size=8):
    """Writes PNG files of random pixels, half of them into each of two class folders."""
    draw = np.random.RandomState(0)
    for name in _CLASSES:
        os.makedirs(os.path.join(directory, name))
    for index in range(count):
        path = os.path.join(directory, _CLASSES[index % 2], f"{index:04d}.png")
        PIL.Image.fromarray(draw.randint(0, 256, (size, size, 3)).astype(np.uint8)).save(path)


def peak_bytes():
    """Returns the largest memory of this process, in bytes, since it began or `forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def run_measured(settings, name, size):
    """Runs a backbone at an image size in this process; returns its row."""
    from tl_research import experiment
    from tl_research.config import Config
    from tl_research.training.events import PhaseEnded

    row = {"backbone": name, "image_size": size}

    def observe(event):
        if isinstance(event, PhaseEnded) and event.phase.name == "finetune":
            row["training"] = peak_bytes()
            forget_peak()

    with tempfile.TemporaryDirectory() as place:
        write_images(os.path.join(place, "images"), settings.images)
        config = Config(
            dataset="directory",
            data_dir=os.path.join(place, "images"),
            workdir=os.path.join(place, "run"),
            backbone=name,
            weights=settings.weights,
            image_size=size,
            batch_size=settings.batch_size,
            precision=settings.precision,
            feature_cache=settings.feature_cache,
            split=(0.4, 0.4, 0.2),
            epochs=(1, 1),
        )
        experiment.run(config, observers=[observe])
    row["after"] = peak_bytes()
    return {**row, "ratio": row["after"] / row["training"]}


def _child(settings, name, size, results):
    results.put(run_measured(settings, name, size))


def measure(settings):
    """Returns a row for each backbone: `training` and `after`, bytes, and their `ratio`."""
    import measuring  # imports TensorFlow, which each child does for itself

    context, rows = multiprocessing.get_context("spawn"), []
    for name, size in measuring.parse_backbones(settings.backbones):
        results = context.SimpleQueue()
        child = context.Process(target=_child, args=(settings, name, size, results))
        child.start()
        child.join()
        if child.exitcode:
            raise RuntimeError(f"{name}@{size} ended with {child.exitcode}")
        rows.append(results.get())
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = ["| backbone | training, MiB | after it, MiB | ratio |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['backbone']}@{row['image_size']} | {row['training'] / 2**20:.0f} | "
            f"{row['after'] / 2**20:.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def main():
    import measuring

    settings = cli.config_from_flags(Settings)
    measuring.prepare_json(settings.output_json)
    rows = measure(settings)
    print(f"\npeak memory of runs at batch {settings.batch_size}\n\n{table(rows)}", flush=True)
    measuring.write_json(settings.output_json, settings, rows)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
