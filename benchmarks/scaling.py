"""Seconds and peak memory of a run against the number of images, of epochs, which must not make an
image cost more, and of processes, of which each should take its share.

    python benchmarks/scaling.py --data_dir=DIR

Each point is a `train.py` of its own, with `--flags` on the first N images of a random order of
`--data_dir` (one folder per class). More images than there are repeat them: bytes after the end of
a JPEG decode to nothing, but make another file to the split. The peak is what the kernel reports of
that process when it ends, so this program imports no TensorFlow: the peak of a child begins at that
of its parent. Seconds are those of `results.json`, from the first line of the program on.
"""

import os
import random
import shlex
import tempfile

import program

from tl_research.errors import UserError
from tl_research.settings import setting

_COLUMNS = """
images | {images}
epochs | {epochs}
processes | {processes}
seconds | {seconds[total]:.1f}
data | {seconds[data]:.1f}
features | {seconds[features]:.1f}
train | {seconds[train]:.1f}
evaluate | {seconds[evaluate]:.1f}
ms an image | {milliseconds_per_image:.1f}
ms an image and epoch, training | {milliseconds_per_image_epoch:.2f}
peak MiB | {peak_mib:.0f}
MiB for 1000 images more | {growth:.0f}
"""


class Settings(program.Settings):
    """The flags of this benchmark."""

    required = ("data_dir",)
    data_dir: str | None = setting(
        None, "one folder per class, of JPEG files; must be given", path="absolute"
    )
    images: tuple[str, ...] = setting(
        ("500", "1000", "2000", "all", "50000"),
        "numbers of images, each a run; all: as many as there are; or none",
    )
    epochs_list: tuple[str, ...] = setting(
        ("2:1", "4:2", "8:4"),
        "numbers of epochs HEAD:FINETUNE, each a run with --epochs_images images; or none",
    )
    epochs_images: int = setting(1000, "images of the runs of --epochs_list", low=1)
    processes_list: tuple[str, ...] = setting(
        ("1", "2", "4"), "numbers of processes, each a run with --processes_images images; or none"
    )
    processes_images: int = setting(20000, "images of the runs of --processes_list", low=1)
    processes_flags: str = setting(
        "--backbone=EfficientNetLite0 --image_size=96 --epochs=2,2 --patience=0 "
        "--on_bad_image=skip",
        "flags of the runs of --processes_list",
    )
    flags: str = setting(
        "--backbone=EfficientNetLite0 --image_size=64 --augment_views=2 --epochs=2,1 --patience=0 "
        "--on_bad_image=skip",
        "flags of the other runs, as on a command line",
    )


def plan(settings, available):
    """Returns [(number of images, of processes, flags)], in growing numbers of images.

    Raises:
        UserError: If an entry is no number.
    """
    images, epochs, processes = (
        [entry for entry in entries if entry != "none"]
        for entries in (settings.images, settings.epochs_list, settings.processes_list)
    )
    flags, of_processes = settings.flags, settings.processes_flags
    try:
        points = [(available if count == "all" else int(count), 1, flags) for count in images]
        points += [(settings.processes_images, int(count), of_processes) for count in processes]
    except ValueError as error:
        raise UserError(
            f"--images={','.join(settings.images)} --processes_list="
            f"{','.join(settings.processes_list)}: {error}; expected for example "
            "--images=500,all --processes_list=1,2; correct it"
        ) from error
    points += [
        (settings.epochs_images, 1, f"{flags} --epochs={each.replace(':', ',')}") for each in epochs
    ]
    return sorted(points, key=lambda point: point[0])


def measure(settings):
    """Returns a row for each run; see `_run`."""
    files = sorted(
        f"{place}/{name}"
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

    def rows(place):
        folder, written = f"{place}/images", 0
        for index, (count, *point) in enumerate(plan(settings, len(files))):
            for number in range(written, count):
                _write_image(files[number % len(files)], folder, number, number // len(files))
            written = count
            yield _run(folder, f"{place}/run{index}", count, *point)

    with tempfile.TemporaryDirectory() as place:
        return program.gathered(settings, _COLUMNS, rows(place))


def _write_image(path, folder, number, repeat):
    """Copies an image into the folder of its class.

    `repeat` > 0 makes it another file that decodes to the same.
    """
    place = f"{folder}/{os.path.basename(os.path.dirname(path))}"
    os.makedirs(place, exist_ok=True)
    with open(path, "rb") as source, open(f"{place}/{number}.jpg", "xb") as copy:
        copy.write(source.read() + (b"%d" % repeat if repeat else b""))


def _run(folder, workdir, count, processes, flags):
    """Trains once.

    Returns:
        dict: images, epochs, processes, flags, seconds (total, data, features, train, evaluate),
        milliseconds_per_image (of the total) and milliseconds_per_image_epoch (of training and
        evaluation), peak_mib.
    """
    data = ("--dataset=directory", f"--data_dir={folder}")
    results = program.train(workdir, *shlex.split(flags), *data, processes=processes)
    epochs, seconds = sum(phase["epochs"] for phase in results["phases"]), results["seconds"]
    trained = seconds["train"] + seconds["evaluate"]
    return {
        "images": count,
        "epochs": epochs,
        "processes": processes,
        "flags": flags,
        "seconds": seconds,
        "milliseconds_per_image": 1e3 * seconds["total"] / count,
        "milliseconds_per_image_epoch": 1e3 * trained / count / epochs,
        "peak_mib": results["peak_mib"],
    }


def table(rows):
    """Returns the rows as a Markdown table."""
    # Against the smallest run: the program itself takes memory too.
    least = min(rows, key=lambda row: row["images"])
    found = []
    for row in rows:
        more = row["images"] - least["images"]
        growth = 1000 * (row["peak_mib"] - least["peak_mib"]) / more if more else None
        found.append({**row, "growth": growth})
    return program.table(_COLUMNS, found)


def report(settings):
    flags = f"`{settings.flags}`; --processes_list: `{settings.processes_flags}`"
    return f"{table(measure(settings))}\n\n{flags}, {os.cpu_count()} CPU cores"


if __name__ == "__main__":
    program.main(Settings, report)
