"""Seconds and peak memory of a run against the number of images and of epochs: what an image costs
must not grow.

    python benchmarks/scaling.py --data_dir=DIR

Each point is a `train.py` of its own, with `--flags` on the first N images of a random order of
`--data_dir` (one folder per class). More images than there are repeat them: bytes after the end of
a JPEG decode to nothing, but make another file to the split. The peak is what the kernel reports of
that process when it ends, so this program imports no TensorFlow: the peak of a child begins at that
of its parent. Seconds are those of `results.json`, from the first line of the program on.
"""

import dataclasses
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile

from tl_research import cli
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.settings import setting

_TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")
_PARTS = ("data", "features", "train", "evaluate")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    data_dir: str | None = setting(
        None, "one folder per class, of JPEG files; must be given", path="absolute"
    )
    images: str = setting(
        "500,1000,2000,all,50000", "numbers of images, each a run; all: as many as there are"
    )
    epochs_list: str = setting(
        "2:1,4:2,8:4", "numbers of epochs HEAD:FINETUNE, each a run with --epochs_images images"
    )
    epochs_images: int = setting(1000, "images of the runs of --epochs_list", low=1)
    flags: str = setting(
        "--backbone=EfficientNetLite0 --image_size=64 --augment_views=2 --epochs=2,1 --patience=0",
        "flags of every run, as on a command line",
    )
    output_json: str | None = setting(
        None, "file for all numbers, rewritten after each run; None writes none"
    )


def plan(settings, available):
    """Returns [(number of images, flags besides --flags)], in growing numbers of images.

    Raises:
        UserError: If an entry is no number.
    """
    try:
        counts = [
            available if entry == "all" else int(entry)
            for entry in filter(None, settings.images.split(","))
        ]
        epochs = [
            tuple(map(int, entry.split(":")))
            for entry in filter(None, settings.epochs_list.split(","))
        ]
    except ValueError as error:
        raise UserError(
            f"--images={settings.images} or --epochs_list={settings.epochs_list}: {error}; "
            "expected for example --images=500,all --epochs_list=2:1,4:2"
        ) from error
    points = [(count, "") for count in counts]
    points += [(settings.epochs_images, f"--epochs={','.join(map(str, each))}") for each in epochs]
    return sorted(points, key=lambda point: point[0])


def measure(settings):
    """Returns a row for each run; see `_run`."""
    if not settings.data_dir:
        raise UserError(
            "--data_dir is missing; expected a directory with one folder per class; give it"
        )
    files = sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(settings.data_dir)
        for name in names
        if name.lower().endswith((".jpg", ".jpeg"))
    )
    if not files:
        raise UserError(
            f"--data_dir={settings.data_dir} has no JPEG files; expected one folder per class; "
            "correct it"
        )
    random.Random(0).shuffle(files)
    rows, written = [], 0
    with tempfile.TemporaryDirectory() as place:
        folder = os.path.join(place, "images")
        for index, (count, flags) in enumerate(plan(settings, len(files))):
            for number in range(written, count):
                _write_image(files[number % len(files)], folder, number, number // len(files))
            written = count
            rows.append(_run(settings, folder, os.path.join(place, f"run{index}"), count, flags))
            print("\n".join(table(rows[-1:]).splitlines()[2:]), flush=True)
            if settings.output_json:
                write_atomically(
                    settings.output_json,
                    json.dumps({"settings": vars(settings), "rows": rows}, indent=1) + "\n",
                )
    return rows


def _write_image(path, folder, number, repeat):
    """Copies an image into the folder of its class.

    `repeat` > 0 makes it another file that decodes to the same.
    """
    place = os.path.join(folder, os.path.basename(os.path.dirname(path)))
    os.makedirs(place, exist_ok=True)
    with open(path, "rb") as source, open(os.path.join(place, f"{number}.jpg"), "xb") as copy:
        copy.write(source.read() + (b"%d" % repeat if repeat else b""))


def _run(settings, folder, workdir, count, flags):
    """Trains once.

    Returns:
        dict: images, epochs, flags, seconds (total, data, features, train, evaluate),
        milliseconds_per_image (of the total) and milliseconds_per_image_epoch (of training and
        evaluation), peak_mib.
    """
    command = [
        sys.executable,
        _TRAIN,
        *shlex.split(settings.flags),
        *shlex.split(flags),
        "--dataset=directory",
        f"--data_dir={folder}",
        f"--workdir={workdir}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # of this child alone; getrusage has the largest of all
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(
            f"{shlex.join(command)} ended with exit code {process.returncode}; expected 0; correct "
            "--flags"
        )
    with open(os.path.join(workdir, "results.json"), encoding="utf-8") as file:
        results = json.load(file)
    epochs = sum(phase["epochs"] for phase in results["phases"])
    seconds = {part: results["seconds"][part] for part in ("total", *_PARTS)}
    return {
        "images": count,
        "epochs": epochs,
        "flags": flags,
        "seconds": seconds,
        "milliseconds_per_image": 1e3 * seconds["total"] / count,
        "milliseconds_per_image_epoch": 1e3
        * (seconds["train"] + seconds["evaluate"])
        / count
        / epochs,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        (
            f"| images | epochs | seconds | {' | '.join(_PARTS)} | ms an image | ms an image and "
            "epoch, training | peak MiB | MiB for 1000 images more |"
        ),
        "|" + "---|" * (7 + len(_PARTS)),
    ]
    for row in rows:
        # Against the smallest run: the program itself takes memory too.
        smallest = min(rows, key=lambda other: other["images"])
        more = row["images"] - smallest["images"]
        growth = f"{1000 * (row['peak_mib'] - smallest['peak_mib']) / more:.0f}" if more else ""
        parts = " | ".join(f"{row['seconds'][part]:.1f}" for part in _PARTS)
        lines.append(
            f"| {row['images']} | {row['epochs']} | {row['seconds']['total']:.1f} | {parts} | "
            f"{row['milliseconds_per_image']:.1f} | {row['milliseconds_per_image_epoch']:.2f} | "
            f"{row['peak_mib']:.0f} | {growth} |"
        )
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    if settings.output_json:
        # now, rather than fail after measuring
        os.makedirs(os.path.dirname(settings.output_json) or ".", exist_ok=True)
    rows = measure(settings)
    print(f"\n`{settings.flags}`, {os.cpu_count()} CPU cores\n\n{table(rows)}", flush=True)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
