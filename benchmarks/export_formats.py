"""Size, time for an image, and agreement with model.keras of each format that is exported.

    python benchmarks/export_formats.py
    python benchmarks/export_formats.py --data_dir=PHOTOS --weights=imagenet

Each backbone is a run that trains nothing, its head the closed form. EfficientNetLite has its
packaged ImageNet weights; others have random ones unless --weights says otherwise, so that only
their sizes and times mean something. Answers are to up to 256 validation images, one at a time.
"""

import math
import os
import tempfile

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import program
import tensorflow as tf

from tl_research import experiment, serving, trained
from tl_research.errors import ExportError
from tl_research.models import keras_private
from tl_research.run.directory import Directory
from tl_research.settings import setting

_COLUMNS = """
 | {backbone}
format | {form}
MB | {refused}{mb:.1f}
ms (CPU ms) an image | {times}
largest difference of a probability | {largest_difference:.1g}
same class | {same}
accuracy | {accuracy}
"""


class Settings(program.Networks):
    """The flags of this benchmark."""

    backbones: str = setting(
        "MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224", "NAME@SIZE, a list"
    )
    data_dir: str | None = setting(None, "photographs in class folders; None: drawn flowers")


def measure(settings, name, size, place):
    """Yields a row for model.keras and each format of a backbone."""
    config = measuring.make_config(
        settings,
        name,
        size,
        dataset="directory" if settings.data_dir else "drawn_flowers",
        head_init="lda",
        epochs=(0, 0),
        workdir=os.path.join(place, name),
    )
    experiment.run(config)
    run = trained.TrainedRun(config.workdir)
    model, data = run.load_model(), run.load_data(sides=("train", "validation"))
    if config.weights == "none":
        _normalize(model, data.train.images(range(32)))
    reference = serving.Reference(run, model, data.validation, True, batch_size=32)
    network = tf.function(lambda images: model(images, training=False), autograph=False)
    pixels = tf.constant(next(reference.images(size)), tf.float32)
    row = {"backbone": f"{name}@{size}", "weights": config.weights}
    path = os.path.join(config.workdir, "export", "model.keras")
    latency = serving.latency(lambda image: network(pixels).numpy(), next(reference.images()))
    yield {**row, "format": "model.keras", "bytes": os.path.getsize(path), "latency": latency}
    for form in serving.FORMATS:
        if config.weights == "none":  # a rounding error more or less decides what it says
            serving.FORMATS[form] = (serving.FORMATS[form][0], math.inf)
        try:
            _, known = serving.save(form, reference, Directory(place), calibration=data.train)
            yield {**row, **known}
        except ExportError as error:
            yield {**row, "format": form[0], "quantize": form[1], "refused": str(error)}
    keras.backend.clear_session()


def _normalize(model, images):
    """Gives BatchNorm layers of random weights the statistics of images: else what the network
    computes vanishes, at which LiteRT's int8 ends.
    """
    held = model.get_layer("backbone")
    for layer in keras_private.all_layers(held.backbone):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable, layer.momentum = True, 0.0
    held.backbone(model.get_layer("preprocessing")(tf.cast(images, tf.float32)), training=True)


def _with_texts(row):
    """Returns a row with what the table has of it."""
    forms = (row["format"], row.get("quantize", "none"))
    found = {**row, "form": " ".join(form for form in forms if form != "none")}
    if "latency" in row:
        times = "{median_ms:.1f} ({median_cpu_ms:.1f})".format_map(row["latency"])
        found |= {"mb": row["bytes"] / 1e6, "times": times}
    if row["weights"] != "none" and (facts := row.get("compared")):
        accuracy = "{measured[accuracy]:.4f} ({keras[accuracy]:.4f})".format_map(facts)
        same = "{same_class} of {images}".format_map(facts)
        largest = facts["largest_difference"]
        found |= {"largest_difference": largest, "same": same, "accuracy": accuracy}
    return found


def report(settings):
    def rows(place):
        for name, size in program.parse_backbones(settings.backbones):
            yield from map(_with_texts, measure(settings, name, size, place))

    with tempfile.TemporaryDirectory() as place:
        return program.table(_COLUMNS, program.gathered(settings, _COLUMNS, rows(place)))


if __name__ == "__main__":
    program.main(Settings, report)
