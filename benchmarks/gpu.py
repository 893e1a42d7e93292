"""The first minutes on a GPU: whether it computes what the CPU does, how fast each way of training
is, how far from the memory.

    python benchmarks/gpu.py --output_json=gpu.json

prints a table, and writes a JSON file anew after every row. What is not begun within `--minutes` is
listed as skipped. A check or a measurement that fails is a row with its error. Where there is no
GPU it says so and ends; the whole program runs on a CPU with `--device=cpu
--backbones=EfficientNetLite0@32 --images=16 --batch_size=8 --seconds=0.1 --minutes=3`.

Checks come first, see `gpu_checks.py`: several side by side, in a process each. Then one backbone
is measured in all variants, the others in the precision and with the XLA that a run here chooses by
itself, and at last in the rest. Cells are images/s of epochs of our steps with pixels or
features on the device: "live", the augmentation included, or "cached", from features that are kept;
and of `fit` with the recipe as everybody writes it, in the same precision, from pixels in memory.
XLA cannot compile its augmentation layers, so that `fit` with XLA goes without them and does less
than ours. Rates are medians of three windows of `--seconds` after an epoch that compiles; cells
follow one another, so ratios are not of paired rounds.

"Roofline" is the share of the rate that memory allows: bandwidth over the least bytes of a training
step for an image (`limits.bytes_per_image`), in the cell's precision. In 16 bit these are 14, 25
and 54 MB forward for MobileNetV2@160, EfficientNetV2B0@224 and ResNet50@224: 22 to 142 operations a
byte, where an H100 has time for 295, so memory binds them all. The bandwidth is the published one
of a GPU in `_PUBLISHED`, else that of a large copy made here. Public training stacks reach 0.16 to
0.43 of the published one. For a head on cached features it says nothing: its time goes to launches.
"""

import contextlib
import functools
import gc
import itertools
import math
import operator
import os
import statistics
import subprocess
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import gpu_checks
import keras
import limits
import measuring
import program
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.settings import setting

_ROUNDS = 3
_KINDS = ("live", "fit", "cached")
_PLACE = operator.itemgetter("backbone", "image_size", "phase", "precision")
# GB/s, by the device's name
_PUBLISHED = {"H200": 4800, "H100 80GB HBM3": 3350, "A100-SXM4-80GB": 2039, "A100-SXM4-40GB": 1555}
_COLUMNS = """
backbone, phase | {backbone}@{image_size}, {phase}
kind | {kind}
precision | {precision}
XLA | {xla}
images/s (range) | {images_per_second:.0f} ({range[0]:.0f}-{range[1]:.0f})
first epoch, s | {first_epoch_seconds:.1f}
roofline | {roofline:.2f}
over fit | {over_fit:.2f}
"""
_MACHINE = (
    "machine: {device}, TensorFlow {tensorflow}, Keras {keras}, float32 (TF32 on a GPU) "
    "{float32:.0f}, bfloat16 {bfloat16:.0f} GFLOP/s, memory {copy:.0f} GB/s read and written; "
    "published, GB/s: {published}"
)


class Settings(program.Networks):
    """The flags of this benchmark."""

    device: str = setting(
        "auto", "auto: a GPU, or nothing; cpu: run the whole program there", choices=("auto", "cpu")
    )
    minutes: float = setting(
        10.0, "nothing is begun after that; each row is written when it ends", above=0
    )
    checks: str = setting(",".join(gpu_checks.CHECKS), "a list, or none")
    backbones: str = setting(
        "EfficientNetLite0@224,EfficientNetV2B0@224,MobileNetV2@160,ResNet50@224",
        "NAME@SIZE, a list; the first is checked",
    )
    cells: int = setting(1000, "measurements at most, in order; 0: checks alone", low=0)
    images: int = setting(2048, "images of an epoch", low=1)
    batch_size: int = setting(256, "images a step", low=1)
    seconds: float = setting(1.0, "of a timed window", above=0)


def make_cells(settings):
    """Returns what is to be measured, a dict each: the first backbone in all variants, then the
    others as a run here would choose by itself, then their rest.
    """
    own, networks = gpu_checks.resolved(settings), program.parse_backbones(settings.backbones)

    def order(cell):
        network, phase, *variant, _ = cell
        others = sum(value != chosen for value, chosen in zip(variant, own))
        rank = 0 if network == networks[0] else 1 + (others > 0)
        return rank, phase == "head", others

    cells = itertools.product(
        networks, ("finetune", "head"), measuring.PRECISIONS, (True, False), _KINDS
    )
    names = ("backbone", "image_size", "phase", "precision", "xla", "kind")
    return [dict(zip(names, (*network, *cell))) for network, *cell in sorted(cells, key=order)][
        : settings.cells
    ]


def measure_cell(settings, backbone, image_size, phase, kind, precision, xla):
    """Returns images/s of a cell (median, range), the seconds of its first epoch, and the bytes
    that an image moves.
    """
    keras.backend.clear_session()
    gc.collect()  # what the cell before kept on the device
    config = measuring.make_config(settings, backbone, image_size, precision=precision)
    examples = measuring.drawn_examples(config, settings.images)
    classifier = measuring.make_classifier(config, phase, 5)
    source = measuring.live_source(config, classifier, examples)
    if kind == "cached":
        filled = measuring.fill_cache(config, classifier, examples)
        source = measuring.cached_source(config, classifier, filled)
    if kind == "fit":
        with tf.device("/CPU:0"):
            images = tf.data.Dataset.from_tensor_slices((examples.pixels, examples.labels))
        images = images.batch(config.batch_size).prefetch(tf.data.AUTOTUNE)
        options = {"augment": not xla, "precision": precision, "jit_compile": xla}
        epoch = measuring.fit_epoch(config, phase, 5, images, **options)
    else:
        epoch = measuring.our_epoch(config, phase, classifier, source, xla=xla)
    first = epoch()
    count = math.ceil(settings.seconds / epoch())
    rates = [count * settings.images / sum(epoch() for _ in range(count)) for _ in range(_ROUNDS)]
    return {
        "images_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "first_epoch_seconds": first,
        "bytes_per_image": limits.bytes_per_image(classifier, source),
    }


def probe(gpu):
    """Returns what `limits.probe` measures, with matrices and copies that fill a GPU if there is
    one, and what is published.
    """
    name = (
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") if gpu else "CPU"
    )
    return {
        "device": name,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "published": next((rate for key, rate in _PUBLISHED.items() if key in name), None),
        **limits.probe(_ROUNDS, **({"side": 8192, "copied": 1 << 28} if gpu else {})),
    }


def measure(settings, gpu=None, started=None):
    """Returns the rows: of each check, of the machine and of each cell.

    Args:
        settings: `Settings`.
        gpu: The GPU, as `tf.config.list_physical_devices` names it, or None for a CPU.
        started: `time.perf_counter()` when the program began; now, if it is not given.

    Raises:
        UserError: If there is no such check.
    """
    deadline = 60 * settings.minutes + (time.perf_counter() if started is None else started)
    rows = []
    for row, work in _work(settings, gpu, deadline):
        rows.append(row)
        start = time.perf_counter()
        if "phase" in row and start > deadline:
            row["skipped"] = True
            continue
        try:
            row.update(work())
        except Exception as error:  # whatever it is, the other rows are worth having
            row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        row.setdefault("seconds", time.perf_counter() - start)
        compare(rows)
        print(_line(row), flush=True)
        program.write_json(settings.output_json, settings, rows)
    program.write_json(settings.output_json, settings, rows)
    return rows


def _work(settings, gpu, deadline):
    """Yields (the beginning of a row, the function that measures the rest of it)."""
    names = [] if settings.checks == "none" else settings.checks.split(",")
    if unknown := set(names) - set(gpu_checks.CHECKS):
        raise UserError(
            f"--checks has {', '.join(unknown)}; expected any of {', '.join(gpu_checks.CHECKS)}, "
            "or none; correct it"
        )
    checks = {name: functools.partial(_check, settings, name) for name in names}
    with tempfile.TemporaryDirectory() as place:
        if len(names) > 1:
            checks = {name: _process(settings, name, place, deadline) for name in names}
        for name, work in checks.items():
            yield {"check": name}, work
    if cells := make_cells(settings):
        yield {"machine": True}, functools.partial(probe, gpu)
    for cell in cells:
        yield {**cell}, functools.partial(measure_cell, settings, **cell)


def _check(settings, name):
    return dict(zip(("passed", "detail"), gpu_checks.CHECKS[name](settings)))


def _process(settings, name, place, deadline):
    """Starts one check in a process of its own; returns a function to its row."""
    path = f"{place}/{name}.json"
    flags = {**vars(settings), "checks": name, "cells": 0, "output_json": path}
    process = program.start(
        __file__,
        *(f"--{flag}={value}" for flag, value in flags.items()),
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"},  # they share its memory
    )

    def work():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.perf_counter()))
        process.kill()
        if not (found := program.read_json(path)):
            raise RuntimeError(f"no result in time; its process ended with {process.wait()}")
        return found["rows"][0]

    return work


def compare(rows):
    """Adds to each measured cell its share of the roofline, and its rate over that of the faster
    `fit` beside it, if measured.
    """
    machine, fits = next((row for row in rows if "machine" in row), {}), {}
    bandwidth = machine.get("published") or machine.get("copy")  # None, if it was not probed
    cells = [row for row in rows if "images_per_second" in row]
    for row in cells:
        if row["kind"] == "fit":
            fits.setdefault(_PLACE(row), []).append(row["images_per_second"])
    for row in cells:
        rate, beside = row["images_per_second"], fits.get(_PLACE(row))
        row["roofline"] = bandwidth and rate * row["bytes_per_image"] / 1e9 / bandwidth
        row["over_fit"] = beside and rate / max(beside)


def _line(row):
    """Returns a row as a line: of the table, if it is a cell that was measured."""
    if "images_per_second" in row:
        return program.table(_COLUMNS, [row]).splitlines()[-1]
    name = "check {check}" if "check" in row else "machine"
    if "phase" in row:
        name = "{backbone}@{image_size}, {phase}, {kind}, {precision}, XLA {xla}"
    form = f"{name}: {{error}}" if "error" in row else f"{name}: skipped"
    if "passed" in row:
        form = f"{name}: {'passed' if row['passed'] else 'FAILED'}: {{detail}}"
    return program.text(_MACHINE if "device" in row else form, **row)


def table(rows):
    """Returns the machine and the checks, the cells that were measured as a Markdown table, and the
    others.
    """
    cells = [row for row in rows if "images_per_second" in row]
    return "\n".join(
        [
            *(_line(row) for row in rows if "phase" not in row),
            "",
            program.table(_COLUMNS, cells),
            "",
            *(_line(row) for row in rows if "phase" in row and row not in cells),
        ]
    )


def report(settings):
    started = time.perf_counter()
    tf.get_logger().setLevel("ERROR")  # it warns that each network traces its own functions
    gpus = tf.config.list_physical_devices("GPU")
    if settings.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not gpus:
        print(
            "no GPU here: nothing was checked or measured; --device=cpu runs the program on the CPU"
        )
        return None
    rows = measure(settings, gpus[0] if settings.device == "auto" else None, started)
    return (
        f"batch {settings.batch_size}, {settings.images} images an epoch, median of "
        f"{_ROUNDS}\n\n{table(rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
