"""Seconds and peak memory of a run against the number of images and of epochs: what an image costs
must not grow.

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

    def __post_init__(self):
        """Lists may be empty; all else is checked where flags are read."""


def plan(settings, available):
    """Returns [(number of images, flags besides --flags)], in growing numbers of images.

    Raises:
        UserError: If an entry is no number.
    """
    counts, epochs = (
        list(filter(None, entries.split(",")))
        for entries in (settings.images, settings.epochs_list)
    )
    try:
        points = [(available if count == "all" else int(count), "") for count in counts]
    except ValueError as error:
        raise UserError(
            f"--images={settings.images}: {error}; expected for example --images=500,all"
        ) from error
    points += [(settings.epochs_images, f"--epochs={each.replace(':', ',')}") for each in epochs]
    return sorted(points, key=lambda point: point[0])


def measure(settings):
    """Returns a row for each run; see `_run`."""
    program.need(settings, "data_dir")
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
        for index, (count, flags) in enumerate(plan(settings, len(files))):
            for number in range(written, count):
                _write_image(files[number % len(files)], folder, number, number // len(files))
            written = count
            yield _run(settings, folder, f"{place}/run{index}", count, flags)

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


def _run(settings, folder, workdir, count, flags):
    """Trains once.

    Returns:
        dict: images, epochs, flags, seconds (total, data, features, train, evaluate),
        milliseconds_per_image (of the total) and milliseconds_per_image_epoch (of training and
        evaluation), peak_mib.
    """
    arguments = [*shlex.split(settings.flags), *shlex.split(flags)]
    results = program.train(workdir, *arguments, "--dataset=directory", f"--data_dir={folder}")
    epochs, seconds = sum(phase["epochs"] for phase in results["phases"]), results["seconds"]
    trained = seconds["train"] + seconds["evaluate"]
    return {
        "images": count,
        "epochs": epochs,
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
    return f"{table(measure(settings))}\n\n`{settings.flags}`, {os.cpu_count()} CPU cores"


if __name__ == "__main__":
    program.main(Settings, report)
