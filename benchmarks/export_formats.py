"""Size, time for an image, and agreement with model.keras of each format that is exported.

    python benchmarks/export_formats.py
    python benchmarks/export_formats.py --data_dir=PHOTOS --weights=imagenet

Each backbone is a run that trains nothing, its head the closed form. EfficientNetLite has its
packaged ImageNet weights; others have random ones unless --weights says otherwise, so that only
their sizes and times mean something. Answers are to up to 256 validation images, one at a time.
"""

import dataclasses
import math
import os
import tempfile

import program

from tl_research.settings import setting

_FORMS = (
    ("saved_model", "none"),
    ("litert", "none"),
    ("litert", "float16"),
    ("litert", "int8"),
    ("onnx", "none"),
)


class Settings(program.Settings):
    """The flags of this benchmark."""

    backbones: str = setting(
        "MobileNetV2@160,EfficientNetLite0@224,EfficientNetV2B0@224", "NAME@SIZE, a list"
    )
    weights: str = setting("none", "of backbones but EfficientNetLite: imagenet or none")
    data_dir: str | None = setting(None, "photographs in class folders; None: drawn flowers")


def measure(settings, name, size, place):
    """Yields a row for model.keras and each format of a backbone."""
    import keras
    import tensorflow as tf

    from tl_research import experiment, serving, trained
    from tl_research.config import Config
    from tl_research.errors import ExportError
    from tl_research.run.directory import Directory

    packaged = name.startswith("EfficientNetLite")
    config = Config(
        dataset="directory" if settings.data_dir else "drawn_flowers",
        data_dir=settings.data_dir,
        backbone=name,
        weights="imagenet" if packaged else settings.weights,
        image_size=size,
        head_init="lda",
        epochs=(0, 0),
        precision="float32",
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
    for form in _FORMS:
        if config.weights == "none":  # a rounding error more or less decides what it says
            serving.FORMATS[form] = dataclasses.replace(serving.FORMATS[form], tolerance=math.inf)
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
    import keras
    import tensorflow as tf

    held = model.get_layer("backbone")
    for layer in held.backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable, layer.momentum = True, 0.0
    held.backbone(model.get_layer("preprocessing")(tf.cast(images, tf.float32)), training=True)


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        "| | format | MB | ms (CPU ms) an image | largest difference of a probability | same class "
        "| accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        form = " ".join(x for x in (row["format"], row.get("quantize", "none")) if x != "none")
        cells = [row["backbone"], form]
        if refused := row.get("refused"):
            cells += [refused, "", "", "", ""]
        else:
            times, facts = row["latency"], row.get("compared")
            cells.append(f"{row['bytes'] / 1e6:.1f}")
            cells.append(f"{times['median_ms']:.1f} ({times['median_cpu_ms']:.1f})")
            cells += _agreement(facts) if facts and row["weights"] != "none" else ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _agreement(facts):
    accuracies = [facts[of]["accuracy"] for of in ("measured", "keras")]
    return [
        f"{facts['largest_difference']:.1g}",
        f"{facts['same_class']} of {facts['images']}",
        "{:.4f} ({:.4f})".format(*accuracies),
    ]


def report(settings):
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, size in program.parse_backbones(settings.backbones):
            rows += measure(settings, name, size, place)
            program.write_json(settings.output_json, settings, rows)
    return table(rows)


if __name__ == "__main__":
    program.main(Settings, report)
