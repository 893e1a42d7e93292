"""The first minutes on a GPU: whether it computes what the CPU does, how fast each way of training
is, how far from the memory.

    python benchmarks/gpu.py --output_json=gpu.json

prints a table, and writes a JSON file anew after every row, within `--minutes`; what no longer fits
is listed as skipped. A check or a measurement that fails is a row with its error. Where there is no
GPU it says so and ends; the whole program runs on a CPU with `--device=cpu
--backbones=EfficientNetLite0@32 --images=16 --batch_size=8 --seconds=0.1 --minutes=3`.

Checks come first, see `gpu_checks.py`. Cells are images/s of epochs of our steps with pixels or
features on the device: "live", the augmentation included, or "cached", from features that are kept;
and of `fit` with the recipe as everybody writes it, in the same precision, from pixels in memory.
XLA cannot compile its augmentation layers, so that `fit` with XLA goes without them and does less
than ours. Rates are medians of three windows of `--seconds` after an epoch that compiles; cells
follow one another, so ratios are not of paired rounds. What a run would choose by itself comes
first, all backbones of it.

"Roofline" is the share of the rate that memory allows: bandwidth over the least bytes of a training
step for an image (`limits.bytes_per_image`), in the cell's precision. In 16 bit these are 14, 25
and 54 MB forward for MobileNetV2@160, EfficientNetV2B0@224 and ResNet50@224: 22 to 142 operations a
byte, where an H100 has time for 295, so memory binds them all. The bandwidth is the published one
of a GPU in `_PUBLISHED`, else that of a large copy made here. Public training stacks reach 0.16 to
0.43 of the published one. For a head on cached features it says nothing: its time goes to launches.
"""

import dataclasses
import gc
import itertools
import math
import statistics
import time

from tl_research import quiet

quiet.import_tensorflow()

import gpu_checks
import keras
import limits
import measuring
import tensorflow as tf

from tl_research import cli
from tl_research.errors import UserError
from tl_research.settings import setting

_ROUNDS = 3
# GB/s, by the device's name
_PUBLISHED = {"H200": 4800, "H100 80GB HBM3": 3350, "A100-SXM4-80GB": 2039, "A100-SXM4-40GB": 1555}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    device: str = setting(
        "auto", "auto: a GPU, or nothing; cpu: run the whole program there", choices=("auto", "cpu")
    )
    minutes: float = setting(10.0, "nothing is begun that may not end by then", above=0)
    checks: str = setting(",".join(gpu_checks.CHECKS), "a list, or none")
    backbones: str = setting(
        "EfficientNetLite0@224,EfficientNetV2B0@224,MobileNetV2@160,ResNet50@224",
        "NAME@SIZE, a list; the first is checked",
    )
    cells: int = setting(
        0, "measurements at most, in order; 0: as many as there is time for", low=0
    )
    weights: str = setting("none", "imagenet or none, which is as fast")
    images: int = setting(2048, "images of an epoch", low=1)
    batch_size: int = setting(256, "images a step", low=1)
    seconds: float = setting(1.0, "of a timed window", above=0)
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def make_cells(settings):
    """Returns what is to be measured, a dict each: first in the precision and with the XLA that a
    run here chooses by itself.
    """
    own = gpu_checks.resolved(settings)
    variants = sorted(
        itertools.product(gpu_checks.PRECISIONS, (True, False)),
        key=lambda variant: (
            sum(mine != its for mine, its in zip(own, variant)),
            variant[0] != own[0],
        ),
    )
    cells = [
        {
            "backbone": name,
            "image_size": size,
            "phase": phase,
            "kind": kind,
            "precision": precision,
            "xla": xla,
        }
        for precision, xla in variants
        for phase in ("finetune", "head")
        for kind in ("live", "fit", "cached")
        for name, size in measuring.parse_backbones(settings.backbones)
    ]
    return cells[: settings.cells or None]


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
    if kind == "fit":
        with tf.device("/CPU:0"):
            images = tf.data.Dataset.from_tensor_slices((examples.pixels, examples.labels))
        epoch = measuring.fit_epoch(
            config,
            phase,
            5,
            images.batch(config.batch_size).prefetch(tf.data.AUTOTUNE),
            augment=not xla,
            precision=precision,
            jit_compile=xla,
        )
    else:
        if kind == "cached":
            source = measuring.cached_source(
                config, classifier, measuring.fill_cache(config, classifier, examples)
            )
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
    """Returns the rows: of the machine, of each check and of each cell.

    Args:
        settings: `Settings`.
        gpu: The GPU, as `tf.config.list_physical_devices` names it, or None for a CPU.
        started: `time.perf_counter()` when the program began; now, if it is not given.

    Raises:
        UserError: If there is no such check.
    """
    deadline = 60 * settings.minutes + (time.perf_counter() if started is None else started)
    names = [] if settings.checks == "none" else settings.checks.split(",")
    if unknown := set(names) - set(gpu_checks.CHECKS):
        raise UserError(
            f"--checks has {', '.join(unknown)}; expected any of {', '.join(gpu_checks.CHECKS)}, "
            "or none; correct it"
        )
    work = [
        ({"machine": True}, lambda: probe(gpu)),
        *(
            (
                {"check": name},
                lambda check=gpu_checks.CHECKS[name]: dict(
                    zip(("passed", "detail"), check(settings))
                ),
            )
            for name in names
        ),
        *(
            (dict(cell), lambda cell=cell: measure_cell(settings, **cell))
            for cell in make_cells(settings)
        ),
    ]
    rows, longest = [], 0.0
    for row, do in work:
        rows.append(row)
        start = time.perf_counter()
        if start + longest > deadline:
            row["skipped"] = True
            continue
        try:
            row.update(do())
        except Exception as error:  # whatever it is, the other rows are worth having
            row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        row["seconds"] = time.perf_counter() - start
        longest = max(longest, row["seconds"])
        compare(rows)
        print(_line(row), flush=True)
        measuring.write_json(settings.output_json, settings, rows)
    measuring.write_json(settings.output_json, settings, rows)
    return rows


def compare(rows):
    """Adds to each measured cell its share of the roofline, and its rate over that of the faster
    `fit` beside it, if measured.
    """
    bandwidth = rows[0].get("published") or rows[0].get("copy")
    cells = [row for row in rows if "images_per_second" in row]
    for row in cells:
        row["roofline"] = (
            row["images_per_second"] * row["bytes_per_image"] / (1e9 * bandwidth)
            if bandwidth
            else None
        )
        beside = [
            other["images_per_second"]
            for other in cells
            if other["kind"] == "fit"
            and all(
                other[key] == row[key] for key in ("backbone", "image_size", "phase", "precision")
            )
        ]
        row["over_fit"] = row["images_per_second"] / max(beside) if beside else None


def _line(row):
    """Returns a row as a line: of the table, if it is a cell that was measured."""
    if "images_per_second" in row:
        roofline, over = (f"{row[key]:.2f}" if row[key] else "" for key in ("roofline", "over_fit"))
        low, high = row["range"]
        return (
            f"| {row['backbone']}@{row['image_size']}, {row['phase']} | {row['kind']} | "
            f"{row['precision']} | {'on' if row['xla'] else 'off'} | "
            f"{row['images_per_second']:.0f} ({low:.0f}-{high:.0f}) | "
            f"{row['first_epoch_seconds']:.1f} | {roofline} | {over} |"
        )
    name = (
        "machine"
        if "machine" in row
        else f"check {row['check']}"
        if "check" in row
        else (
            f"{row['backbone']}@{row['image_size']}, {row['phase']}, {row['kind']}, "
            f"{row['precision']}, XLA {'on' if row['xla'] else 'off'}"
        )
    )
    if "skipped" in row or "error" in row:
        return f"{name}: {row.get('error', 'skipped')}"
    if "check" in row:
        return f"{name}: {'passed' if row['passed'] else 'FAILED'}: {row['detail']}"
    return (
        f"{name}: {row['device']}, TensorFlow {row['tensorflow']}, Keras {row['keras']}, float32 "
        f"(TF32 on a GPU) {row['float32']:.0f}, bfloat16 {row['bfloat16']:.0f} GFLOP/s, memory "
        f"{row['copy']:.0f} GB/s read and written"
        + (f", published {row['published']} GB/s" if row["published"] else "")
    )


def table(rows):
    """Returns the machine and the checks, the cells that were measured as a Markdown table, and the
    others.
    """
    return "\n".join(
        [
            *(_line(row) for row in rows if "phase" not in row),
            "",
            (
                "| backbone, phase | kind | precision | XLA | images/s (range) | first epoch, s | "
                "roofline | over fit |"
            ),
            "|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in rows if "images_per_second" in row),
            "",
            *(_line(row) for row in rows if "phase" in row and "images_per_second" not in row),
        ]
    )


def main():
    started, settings = time.perf_counter(), cli.config_from_flags(Settings)
    tf.get_logger().setLevel("ERROR")  # it warns that each network traces its own functions
    measuring.prepare_json(settings.output_json)
    gpus = tf.config.list_physical_devices("GPU")
    if settings.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not gpus:
        print(
            "no GPU here: nothing was checked or measured; --device=cpu runs the program on the CPU"
        )
        return
    rows = measure(settings, gpus[0] if settings.device == "auto" else None, started)
    print(
        f"\nbatch {settings.batch_size}, {settings.images} images an epoch, median of "
        f"{_ROUNDS}\n\n{table(rows)}",
        flush=True,
    )


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
