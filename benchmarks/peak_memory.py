"""What a run's memory is at its peak in training, and after it: to export, check and draw.

    python benchmarks/peak_memory.py

Each backbone is a run of its own process, of random images, with the phases head and finetune, an
epoch each. Its training ends when the best weights of the last phase were evaluated. The peaks are
the kernel's (VmHWM of /proc/self/status), which is made to forget the first one.
"""

import functools
import re
import tempfile

import measuring
import program
import tiny_network
from fault_forks import in_parallel

from tl_research import experiment, machine
from tl_research.settings import setting
from tl_research.training.events import PhaseEnded

_COLUMNS = """
backbone | {backbone}@{image_size}
training, MiB | {training_mib:.0f}{failed}
after it, MiB | {after_mib:.0f}
ratio | {ratio:.2f}
"""
table = functools.partial(program.table, _COLUMNS)


class Settings(program.Networks):
    """The flags of this benchmark."""

    precision: str = setting("float32", "of the steps", choices=("float32", "mixed_bfloat16"))
    images: int = setting(
        160, "in all: 40 % to train on, 40 % for validation, and 20 % for the test", low=30
    )
    batch_size: int = setting(8, "images a step", low=1)
    feature_cache: str = setting("off", "as of train.py", choices=("auto", "off"))


def peak_mib():
    """Returns the largest memory of this process, in MiB, since it began or `forget_peak`."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", machine.read("/proc/self/status"))[1]) / 1024


def forget_peak():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def run_measured(settings, name, size):
    """Runs a backbone at an image size in this process; returns its row: both peaks in MiB, and
    their ratio.
    """
    row = {"backbone": name, "image_size": size}

    def observe(event):
        if isinstance(event, PhaseEnded) and event.phase.name == "finetune":
            row["training_mib"] = peak_mib()
            forget_peak()

    with tempfile.TemporaryDirectory() as place:
        images = f"{place}/images"
        tiny_network.write_photos(images, settings.images // 2, size=8, classes=("ant", "bee"))
        config = measuring.make_config(
            settings,
            name,
            size,
            dataset="directory",
            data_dir=images,
            workdir=f"{place}/run",
            split=(0.4, 0.4, 0.2),
            epochs=(1, 1),
        )
        experiment.run(config, observers=[observe])
    row["after_mib"] = peak_mib()
    return {**row, "ratio": row["after_mib"] / row["training_mib"]}


def measure(settings):
    """Returns a row for each backbone; see `run_measured`."""
    networks = program.parse_backbones(settings.backbones)
    cases = [functools.partial(run_measured, settings, *network) for network in networks]
    rows = (row for case in cases for row in in_parallel([case], 1))
    return program.gathered(settings, _COLUMNS, rows)


def report(settings):
    rows = measure(settings)
    return f"peak memory of runs at batch {settings.batch_size}\n\n{table(rows)}"


if __name__ == "__main__":
    program.main(Settings, report)
