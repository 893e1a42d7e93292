"""Exports a finished run's model for serving.

    python -m tl_research.export --run=DIR --format=saved_model,litert

Writes DIR/export/saved_model/ and DIR/export/model.tflite, beside model.keras. Each takes uint8
images [B, H, W, 3] of any size (litert: one at a time) and returns `probabilities` [B, K],
calibrated, and the best `class` [B], a name; of sets of classes it returns `probabilities` alone,
of numbers `number` [B]. Resizing and preprocessing are inside, augmentation is gone, BatchNorm is
folded; EXIF orientation is left to the caller (`PIL.ImageOps.exif_transpose`). Each is compared
with model.keras on validation images and deleted, with exit code 6, if it differs.
"""

import dataclasses
import os
import statistics
import time

from tl_research import cli
from tl_research.config import ToolConfig
from tl_research.settings import setting

_FORMATS = ("saved_model", "litert")
_TIMED = 20


@dataclasses.dataclass(frozen=True)
class ExportConfig(ToolConfig):
    """Settings of `python -m tl_research.export`."""

    format: tuple[str, ...] = setting(
        _FORMATS, "what to write, any of saved_model, litert", choices=_FORMATS
    )


def export(config):
    """Writes what an `ExportConfig` asks for and prints what each is like; returns {format: path}.

    Raises:
        RunDirectoryError: If `config.run` is no finished run, or in use.
        DataError: If the images are not those of the run.
        ExportError: If a format answers differently, and was removed, or cannot hold the model.
        StorageError: If it cannot be written.
    """
    # imports TensorFlow, which --help need not wait for; before what imports it loudly
    from tl_research import artefacts, trained
    from tl_research.run.directory import RunDirectory

    run, paths = trained.TrainedRun(config.run), {}
    with RunDirectory(run.config) as directory:
        model, data = run.load_model(config.extension), run.load_data(config.extension)
        for name in config.format:
            path, parity, serve, image = artefacts.save_for_serving(
                name, model, data, directory, run.config.image_size, run.answer, run.temperature
            )
            paths[name] = path
            print(
                f"{name}: {path}, {_size(path) / 1e6:.1f} MB; {parity}; "
                f"{_latency_ms(serve, image):.1f} ms for an image of {image.shape[2]} x "
                f"{image.shape[1]} (median of {_TIMED}, {os.cpu_count()} CPU cores)",
                flush=True,
            )
    return paths


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
