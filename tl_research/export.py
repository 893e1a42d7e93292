"""Exports a finished run's model for serving.

    python -m tl_research.export --run=DIR --format=saved_model,litert,onnx --quantize=int8

Writes DIR/export/saved_model/1, model.tflite and model.onnx beside model.keras (or to
--output_dir), and facts about each as JSON. Each takes uint8 images [B, H, W, 3] of any size
(litert: one at a time) and returns calibrated `probabilities` [B, K] and the name of the best
`class` [B]; for sets of classes only `probabilities`, for numbers `number` [B]. Resizing and
preprocessing are included, augmentation is not, BatchNorm is folded; the caller applies the EXIF
orientation (`PIL.ImageOps.exif_transpose`). The SavedModel has a second signature, `image_bytes`,
which takes the contents of JPEG, PNG and GIF files and applies the orientation. Each is compared
with model.keras on validation images, or on drawn images if those cannot be read, and deleted, with
exit code 6, if it differs or is less accurate.
"""

import dataclasses

import numpy as np

from tl_research import cli
from tl_research.config import ReaderConfig
from tl_research.errors import UserError, to_stderr
from tl_research.settings import setting

_FORMATS = ("saved_model", "litert", "onnx")
_DRAWN = 4  # images of each class


@dataclasses.dataclass(frozen=True)
class ExportConfig(ReaderConfig):
    """Settings of `python -m tl_research.export`."""

    format: tuple[str, ...] = setting(
        ("saved_model", "litert"),
        f"formats to write, any of {', '.join(_FORMATS)}",
        choices=_FORMATS,
    )
    quantize: str = setting(
        "none",
        "for litert: weights in float16, or everything in int8, calibrated on training images",
        choices=("none", "float16", "int8"),
    )
    fixed_size: bool = setting(False, "accept images of the run's size only, without resizing")
    max_accuracy_drop: float = setting(
        0.02,
        "largest allowed loss of validation accuracy against model.keras; one image is always "
        "allowed",
        high=1,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.quantize != "none" and "litert" not in self.format:
            raise UserError(
                f"--quantize={self.quantize} with --format={','.join(self.format)}; expected "
                "litert, the only format that is quantized; add it",
                "quantize",
            )


def export(config: ExportConfig) -> dict[str, str]:
    """Writes the model in the given formats and prints facts about each; returns {format: path}.

    Raises:
        RunDirectoryError: If `config.run` is not a finished run, or is in use.
        DataError: If the images are not those of the run, or are missing for int8.
        ExportError: If the outputs of a format differ, or it cannot hold the model.
        StorageError: If it cannot be written.
    """
    from tl_research import serving, trained  # import TensorFlow, which --help need not wait for

    run, paths = trained.TrainedRun(str(config.run)), {}
    for name in config.format:
        serving.check_installed(name)
    with run.opened(config.output_dir) as directory:
        model, (examples, training) = run.load_model(config.extension), _images(run, config)
        print("computing the outputs of model.keras ...", flush=True)
        batch_size = run.batch_size(config.batch_size)
        reference = serving.Reference(run, model, examples, training is not None, batch_size)
        for name in config.format:
            print(f"writing {name} and comparing it ...", flush=True)
            form = (name, config.quantize if name == "litert" else "none")
            options = (config.fixed_size, config.max_accuracy_drop, training)
            paths[name], known = serving.save(form, reference, directory, *options)
            print(f"{name}: {paths[name]}, {_described(known)}", flush=True)
    return paths


def _described(known):
    """Returns the facts from `serving.save` in a line."""
    facts, latency = known["compared"], known["latency"]
    measured = {name: of for name, of in facts.get("measured", {}).items() if name != "loss"}
    compared = f"{facts['largest_difference']:.1g} in {known['outputs']}"
    if known["quantize"] != "int8":  # its probabilities of 0 have no logits
        compared = f"a relative {facts['relative_difference']:.1g} in logits and {compared}"
    agreed = " on"
    if "same_class" in facts:
        agreed = f", with the same class for {facts['same_class']} of"
    return "; ".join(
        [
            f"{known['bytes'] / 1e6:.1f} MB",
            f"differs from model.keras by at most {compared}{agreed} {facts['images']} "
            f"{'validation' if measured else 'drawn'} images",
            *(
                f"{name.replace('_', ' ')} {of:.4f} (model.keras {facts['keras'][name]:.4f})"
                for name, of in measured.items()
            ),
            f"{latency['median_ms']:.1f} ms per image of {latency['width']} x "
            f"{latency['height']} (median of {latency['answers']}, {latency['cores']} CPU cores)",
        ]
    )


def _images(run, config):
    """Returns (`Examples` to compare models on, those of training; None if images are drawn)."""
    from tl_research.data import drawn_flowers
    from tl_research.data.pipeline import Examples

    sides = ("train", "validation") if config.quantize == "int8" else ("validation",)
    try:
        data = run.load_data(config.extension, sides, config.data_dir)
        return data.validation, data.train
    except UserError as error:
        if config.data_dir or config.quantize == "int8":
            raise
        to_stderr(f"note: the validation images cannot be read: {error}")
    names = [(name, i) for i in range(_DRAWN) for name in drawn_flowers.CLASSES]
    images = tuple(drawn_flowers.draw(*named) for named in names)
    labels = np.zeros(len(images), np.int32)
    return Examples(("",) * len(images), images, labels, run.config.image_size, None), None


def main() -> None:
    export(cli.config_from_flags(ExportConfig))


if __name__ == "__main__":
    cli.define_flags(ExportConfig)
    cli.run(main)
