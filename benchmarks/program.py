"""What a benchmark's program is made of: its flags, rows that are printed and written as they come,
a table, and runs of `train.py`.

Imports no TensorFlow, so that what a child takes is not what this process takes.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import statistics
import string
import subprocess
import sys

from tl_research import cli
from tl_research.config import DATASETS
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.reporting.pictures import markdown_table
from tl_research.reporting.results import without_nan
from tl_research.run.recorded import read_json
from tl_research.settings import check_fields, setting

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN = f"{ROOT}/train.py"
BACKBONES = "MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224,ResNet50@224"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags that every benchmark has; `required` names those that must be given.

    What is derived from it is a frozen dataclass too.
    """

    output_json: str | None = setting(
        None, "file for all numbers, rewritten after each row; None writes none"
    )
    required = ()

    def __init_subclass__(cls):
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self):
        check_fields(self)
        if not all(getattr(self, name) for name in self.required):
            flags = " or ".join(f"--{name}" for name in self.required)
            raise UserError(f"{flags} is missing; expected a value; --helpshort says which")


class Training(Settings):
    """The flags of a benchmark that trains."""

    weights: str = setting(
        "none", "imagenet or none, which is as fast; EfficientNetLite has its own"
    )
    batch_size: int = setting(32, "images a step", low=1)


class Networks(Training):
    """The flags of a benchmark of some networks."""

    backbones: str = setting(BACKBONES, "NAME@SIZE, a list")


class Network(Settings):
    """The flags of a benchmark of one network."""

    backbone: str = setting("EfficientNetLite0@224", "NAME@SIZE")

    @property
    def network(self):
        """(Name, image size)."""
        (network,) = parse_backbones(self.backbone)
        return network


class Photographs(Settings):
    """The flags of a benchmark on photographs."""

    dataset: str = setting(
        "tf_flowers", "where images come from; directory needs --data_dir", choices=DATASETS
    )
    data_dir: str | None = setting(
        None,
        "one folder per class; with a named data set, a copy used instead of downloading",
        path="absolute",
    )


def parse_backbones(text):
    """Returns [(name, image size)] of a list NAME@SIZE,NAME@SIZE."""
    parsed = [entry.partition("@")[::2] for entry in text.split(",")]
    for name, size in parsed:
        if not size.isdigit():
            raise UserError(
                f"--backbones has {name!r} of size {size!r}; expected NAME@SIZE; "
                "for example MobileNetV2@160"
            )
    return [(name, int(size)) for name, size in parsed]


class _Texts(string.Formatter):
    """Writes None, and what is not there, as nothing, and what is true or false as on or off."""

    def get_value(self, key, args, kwargs):
        return kwargs.get(key)

    def format_field(self, value, spec):
        if isinstance(value, bool):
            return "on" if value else "off"
        return "" if value is None else super().format_field(value, spec)


text = _Texts().format


def table(columns, rows):
    """Returns rows, dicts, as a Markdown table.

    Args:
        columns: Lines of `title | format of a row's values`.
        rows: What it is about.
    """
    titles, cells = zip(*(line.split("|") for line in columns.strip().splitlines()))
    found = [[text(cell.strip(), **row) for cell in cells] for row in rows]
    return markdown_table(list(map(str.strip, titles)), found)


def mean_and_each(values, digits=3):
    """Returns the mean and, of several values, each of them in brackets."""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return each if len(values) == 1 else f"{statistics.mean(values):.{digits}f} ({each})"


def gathered(settings, columns, rows, **more):
    """Returns a list of rows, each printed as a line of the table, and written, when it comes.

    Args:
        settings: `Settings`.
        columns: As of `table`.
        rows: Yields them.
        more: What the file has besides.
    """
    found = []
    for row in rows:
        found.append(row)
        print(table(columns, [row]).splitlines()[-1], flush=True)
        write_json(settings.output_json, settings, found, **more)
    return found


def prepare_json(path):
    """Makes the directory of a file now, rather than fail after measuring."""
    if path:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)


def write_json(path, settings, rows=None, **more):
    """Writes the settings and all numbers, if a path is given."""
    if path:
        content = without_nan({"settings": vars(settings), "rows": rows, **more})
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def rows_so_far(settings, path, same):
    """Returns the rows that a file has of earlier calls; the settings `same` must have been equal.

    Raises:
        UserError: If one was different.
    """
    content = read_json(path)
    if content is None:
        return []
    for name in same:
        if content["settings"][name] != getattr(settings, name):
            raise UserError(
                f"{path} has numbers with another --{name}; expected the same; give another file"
            )
    return content["rows"]


def main(settings_class, report):
    """Runs a benchmark.

    Args:
        settings_class: Its flags, a `Settings`.
        report: Measures; a function of the settings to the text that is printed in the end, if any.
    """

    def program():
        settings = cli.config_from_flags(settings_class)
        prepare_json(settings.output_json)
        if text := report(settings):
            print(f"\n{text}", flush=True)

    cli.define_flags(settings_class)
    cli.run(program, about=sys.modules[settings_class.__module__].__doc__)


def as_folders(paths, class_names, place):
    """Makes a folder per class with links to the images, as `image_dataset_from_directory` wants
    them.

    Args:
        paths: Of the images, absolute.
        class_names: The class of each.
        place: Directory for the folders.
    """
    for index, (path, name) in enumerate(zip(paths, class_names)):
        os.makedirs(f"{place}/{name}", exist_ok=True)
        os.symlink(path, f"{place}/{name}/{index:06d}{os.path.splitext(path)[1]}")
    return place


def tf_configs(count):
    """Returns the `TF_CONFIG` of each of `count` workers on the loopback address, at ports that
    nobody listens on.
    """
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [stack.enter_context(server).getsockname()[1] for server in servers]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def start(*command, python=sys.executable, **options):
    """Returns the process of a Python program, which is named on stderr."""
    command = [python, *command]
    print(shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.Popen(command, **options)


def answers(*command, **options):
    """Yields what a Python program prints in lines of JSON, when it does; raises as `finish`."""
    process = start(*command, stdout=subprocess.PIPE, text=True, **options)
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    finish(process)


def finish(process):
    """Waits for a process; returns its peak memory in MiB, as the kernel reports it.

    Raises:
        UserError: If it fails; its own message stands above.
    """
    # of this child alone; getrusage has the largest of all
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(
            f"{shlex.join(process.args)} ended with exit code {process.returncode}; expected 0; "
            "correct the flags"
        )
    return usage.ru_maxrss / 1024


def train(workdir, *flags, processes=1):
    """Runs `train.py`, in several processes of one run if that is asked for.

    Returns:
        Its `results.json`, and `peak_mib`: of the process that has most.
    """
    flags, environments = [TRAIN, *flags, f"--workdir={workdir}"], [{}]
    if processes > 1:
        flags.append("--distribute=multi_worker")
        environments = [{"TF_CONFIG": config} for config in tf_configs(processes)]
    workers = [
        start(*flags, stdout=subprocess.DEVNULL, env={**os.environ, **more})
        for more in environments
    ]
    peaks = [finish(worker) for worker in workers]
    return {**read_json(f"{workdir}/results.json"), "peak_mib": max(peaks)}
