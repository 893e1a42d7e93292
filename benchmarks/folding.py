"""What folding BatchNorm into convolutions brings alone, and that it changes nothing.

    python benchmarks/folding.py
    python benchmarks/folding.py --check

times our step without input (the same batch of random pixels again and again), folded against
`Classifier(fold=False)`, whose epochs alternate in one process; the figures are medians of
`--rounds`, after an epoch each that compiles and warms up.

With `--check` nothing is timed. Every backbone with BatchNorm after a convolution is computed in
float64, folded and by Keras' own layers: kernels, gamma, beta and statistics are random, everything
trains. It ends with 1 if the norm of a difference is more than 1e-5 (pooled features, from constant
kernels as in a frozen part and from variables) or 1e-4 (the gradient of one variable) of that of
the reference.
"""

import dataclasses
import gc
import os
import statistics

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import numpy as np
import tensorflow as tf

from tl_research import cli
from tl_research.errors import UserError
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.settings import setting

_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 1e-4


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    check: bool = setting(False, "compare values instead of times")
    backbones: str | None = setting(
        None, f"NAME@SIZE, a list; None: {measuring.BACKBONES}, and with --check the whole table"
    )
    weights: str = setting("none", "imagenet or none, which is as fast")
    precision: str = setting(
        "float32", "of the steps; --check is in float64", choices=measuring.PRECISIONS
    )
    images: int = setting(320, "images of an epoch, which is what is timed")
    batch_size: int = setting(32, "images a step")
    rounds: int = setting(5, "epochs timed of each kind; at least 1")
    output_json: str | None = setting(None, "file for all numbers; None writes none")


def measure(settings):
    """Returns a row for each backbone and phase: images per second folded and plain, medians, and
    the ratio with its range.
    """
    rows = []
    for name, size in measuring.parse_backbones(settings.backbones or measuring.BACKBONES):
        config = measuring.make_config(settings, name, size)
        examples = measuring.drawn_examples(config, settings.images)
        for phase in measuring.PHASES:
            epochs = {}
            for kind in ("folded", "plain"):
                classifier = measuring.make_classifier(config, phase, 5, fold=kind == "folded")
                source = measuring.live_source(config, classifier, examples)
                epochs[kind] = measuring.our_epoch(
                    config, phase, classifier, source, same_batch=True
                )
            seconds = measuring.alternate(epochs, settings.rounds)
            ratio, ratio_range = measuring.ratios(seconds["plain"], seconds["folded"])
            rows.append(
                {
                    "backbone": name,
                    "image_size": size,
                    "phase": phase,
                    "ratio": ratio,
                    "ratio_range": ratio_range,
                    **{
                        kind: settings.images / statistics.median(times)
                        for kind, times in seconds.items()
                    },
                }
            )
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            keras.backend.clear_session()
    return rows


def table(rows):
    """Returns the rows of `measure` as a Markdown table."""
    lines = ["| backbone, phase | plain | folded | folded / plain |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['backbone']}@{row['image_size']}, {row['phase']} | {row['plain']:.0f} | "
            f"{row['folded']:.0f} | {row['ratio']:.2f} "
            f"({row['ratio_range'][0]:.2f}-{row['ratio_range'][1]:.2f}) |"
        )
    return "\n".join(lines)


def check(settings):
    """Returns a row for each backbone that has BatchNorm; see `_check_backbone`."""
    entries = (
        measuring.parse_backbones(settings.backbones)
        if settings.backbones
        else [(spec.name, max(64, spec.min_image_size)) for spec in backbones.BACKBONES.values()]
    )
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    rows = []
    try:
        for name, size in entries:
            row = _check_backbone(name, size)
            if row["batchnorms"]:
                rows.append(row)
                print(check_table([row]).splitlines()[-1], flush=True)
            keras.backend.clear_session()
            gc.collect()  # the largest backbones do not fit twice
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
    return rows


def _check_backbone(name, size):
    """Returns the number of BatchNorm layers, how many are folded, and the largest relative
    differences of folded from plain.
    """
    classifier = Classifier(name, "none", size, 3)
    layers = [
        layer
        for layer in classifier.backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    row = {
        "backbone": name,
        "image_size": size,
        "batchnorms": len(layers),
        "folded": classifier.graph.num_folded,
    }
    if not layers:
        return row
    images = classifier.preprocessing(tf.cast(_pictures(16, size), tf.float32))
    _randomize(classifier, layers, images)
    # some of those: of others a network of hundreds of layers may make numbers out of all bounds
    images = images[:2]
    graph = classifier.graph
    (frozen,) = graph.run(
        {graph.input: images},
        classifier.head_boundary,
        graph.fold_constants((graph.input,), classifier.head_boundary),
    )
    classifier.unfreeze("all")
    expected, expected_gradients = _outputs_and_gradients(
        classifier, lambda: tf.reduce_mean(classifier.backbone(images, training=False), axis=(1, 2))
    )
    trained, gradients = _outputs_and_gradients(
        classifier, lambda: graph.run({graph.input: images}, classifier.head_boundary)[0]
    )
    row["outputs"] = max(_difference(output, expected) for output in (frozen, trained))
    row["gradients"], row["worst"] = max(
        (_difference(gradients[path], gradient), path)
        for path, gradient in expected_gradients.items()
    )
    # not a NaN either
    row["passed"] = row["outputs"] <= _OUTPUT_TOLERANCE and row["gradients"] <= _GRADIENT_TOLERANCE
    return row


def _outputs_and_gradients(classifier, function):
    """Returns (pooled features, {path: gradient of a weighting of them}) of a function, for all
    variables of the backbone.
    """
    variables = {
        path: each.value
        for path, each in classifier.trainable_variables().items()
        if path.startswith("backbone/")
    }
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(variables.values()))
        outputs = function()
        loss = tf.reduce_sum(outputs * np.random.RandomState(5).normal(size=outputs.shape))
    return outputs, dict(zip(variables, tape.gradient(loss, list(variables.values()))))


def _difference(value, reference):
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def _pictures(count, size):
    """Returns [count, size, size, 3] in 0..255, smooth and unlike each other: noise looks all the
    same to a network.
    """
    return tf.image.resize(np.random.RandomState(0).uniform(0, 255, (count, 4, 4, 3)), (size, size))


def _randomize(classifier, batchnorms, images):
    """Draws kernels that keep the signal's size, gamma and beta, and gives BatchNorm the statistics
    of preprocessed images.

    With random statistics a deep network magnifies rounding without end, or says the same of every
    image.
    """
    random = np.random.default_rng(0)
    classifier.unfreeze("all")  # a frozen BatchNorm never takes the statistics of a batch
    for layer in classifier.backbone.layers:
        for variable in layer.trainable_variables:
            shape = variable.shape
            if "kernel" in variable.name:
                depthwise = "depthwise" in variable.name or isinstance(
                    layer, keras.layers.DepthwiseConv2D
                )
                fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
                variable.assign(random.standard_normal(shape) * np.sqrt(2 / fan_in))
            else:
                variable.assign(
                    random.uniform(0.5, 1.5, shape)
                    if variable.name == "gamma"
                    else random.normal(0, 0.3, shape)
                )
    momenta = [layer.momentum for layer in batchnorms]
    for layer in batchnorms:
        layer.momentum = 0.0
    classifier.graph.run(
        {classifier.graph.input: images},
        classifier.head_boundary,
        batchnorm_in_training=batchnorms,
    )
    for layer, momentum in zip(batchnorms, momenta):
        layer.momentum = momentum
    classifier.unfreeze("0%")


def check_table(rows):
    """Returns the rows of `check` as a Markdown table."""
    lines = [
        "| backbone | BatchNorm layers folded | outputs | gradients | largest of | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['backbone']}@{row['image_size']} | {row['folded']} of {row['batchnorms']} | "
            f"{row['outputs']:.1e} | {row['gradients']:.1e} | `{row['worst']}` | "
            f"{'equal' if row['passed'] else 'DIFFERENT'} |"
        )
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    measuring.prepare_json(settings.output_json)
    rows = check(settings) if settings.check else measure(settings)
    if settings.check:
        print(
            "\nfolded against plain, float64, norm of the difference over norm of the "
            f"reference\n\n{check_table(rows)}",
            flush=True,
        )
    else:
        print(
            f"\nimages/s of our step without input, {os.cpu_count()} CPU cores, "
            f"{settings.precision}, batch {settings.batch_size}, median of "
            f"{settings.rounds}\n\n{table(rows)}",
            flush=True,
        )
    measuring.write_json(settings.output_json, settings, rows)
    failed = [row["backbone"] for row in rows if settings.check and not row["passed"]]
    if failed:
        raise UserError(
            f"folded differs from plain in {', '.join(failed)}; expected at most "
            f"{_OUTPUT_TOLERANCE:g} in outputs and {_GRADIENT_TOLERANCE:g} in gradients; see the "
            "table above"
        )


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
