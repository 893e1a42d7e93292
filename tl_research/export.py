"""Exports a finished run's model for serving.

    python -m tl_research.export --run=DIR --format=saved_model,litert

Writes DIR/export/saved_model/ and DIR/export/model.tflite, beside model.keras (with --output_dir
there, not into the run). Each takes uint8
images [B, H, W, 3] of any size (litert: one at a time) and returns `probabilities` [B, K],
calibrated, and the best `class` [B], a name; of sets of classes it returns `probabilities` alone,
of numbers `number` [B]. Resizing and preprocessing are inside, augmentation is gone, BatchNorm is
folded; EXIF orientation is left to the caller (`PIL.ImageOps.exif_transpose`). Each is compared
with model.keras on validation images, or on drawn ones where those cannot be read, and deleted,
with exit code 6, if it differs.
"""

import dataclasses
import os
import statistics
import sys
import time

import numpy as np

from tl_research import cli, machine
from tl_research.config import ReaderConfig
from tl_research.errors import UserError
from tl_research.settings import setting

_FORMATS = ("saved_model", "litert")
_TIMED = 20
_DRAWN = 4  # images of each kind


@dataclasses.dataclass(frozen=True)
class ExportConfig(ReaderConfig):
    """Settings of `python -m tl_research.export`."""

    format: tuple[str, ...] = setting(
        _FORMATS, "what to write, any of saved_model, litert", choices=_FORMATS
    )


def export(config):
    """Writes what an `ExportConfig` asks for and prints what each is like; returns {format: path}.

    Raises:
        RunDirectoryError: If `config.run` is no finished run, or in use.
        DataError: If those of `config.data_dir` are not the run's.
        ExportError: If a format answers differently, and was removed, or cannot hold the model.
        StorageError: If it cannot be written.
    """
    # imports TensorFlow, which --help need not wait for; before what imports it loudly
    from tl_research import artefacts, trained

    run, paths = trained.TrainedRun(config.run), {}
    with run.opened(config.output_dir) as directory:
        model, (examples, what) = run.load_model(config.extension), _compared(run, config)
        for name in config.format:
            path, parity, serve, image = artefacts.save_for_serving(
                name, run, model, examples, directory, run.batch_size(config.batch_size)
            )
            paths[name] = path
            print(
                f"{name}: {path}, {_size(path) / 1e6:.1f} MB; {parity} {what}; "
                f"{_latency_ms(serve, image):.1f} ms for an image of {image.shape[2]} x "
                f"{image.shape[1]} (median of {_TIMED}, {machine.cores()} CPU cores)",
                flush=True,
            )
    return paths


def _compared(run, config):
    """Returns (`Examples` to compare models on, what they are called)."""
    from tl_research.data import drawn_flowers
    from tl_research.data.pipeline import Examples

    try:
        data = run.load_data(config.extension, ("validation",), config.data_dir)
        return data.validation, "validation images"
    except UserError as error:
        if config.data_dir:
            raise
        print(f"note: the validation images cannot be read: {error}", file=sys.stderr)
    names = [(name, i) for i in range(_DRAWN) for name in drawn_flowers.CLASSES]
    images = tuple(drawn_flowers.draw(*named) for named in names)
    labels = np.zeros(len(images), np.int32)
    return Examples(
        ("",) * len(images), images, labels, run.config.image_size, None
    ), "drawn images"


def _size(path):
    """Returns the bytes of a file or of all files in a directory."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _latency_ms(serve, image):
    times = []
    for _ in range(3 + _TIMED):
        start = time.perf_counter()
        serve(image)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def main():
    export(cli.config_from_flags(ExportConfig))


if __name__ == "__main__":
    cli.define_flags(ExportConfig)
    cli.run(main)
