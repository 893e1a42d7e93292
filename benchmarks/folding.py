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
import functools
import gc

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import numpy as np
import program
import tensorflow as tf

from tl_research.errors import UserError
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.settings import setting

_OUTPUT_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 1e-4
_COLUMNS = """
backbone, phase | {backbone}@{image_size}, {phase}
plain | {plain:.0f}
folded | {folded:.0f}
folded / plain | {ratio:.2f} ({ratio_range[0]:.2f}-{ratio_range[1]:.2f})
"""
_CHECKED = """
backbone | {backbone}@{image_size}
BatchNorm layers folded | {folded} of {batchnorms}
outputs | {outputs:.1e}
gradients | {gradients:.1e}
largest of | `{worst}`
 | {verdict}
"""
table, check_table = (functools.partial(program.table, of) for of in (_COLUMNS, _CHECKED))


class Settings(measuring.Settings):
    """The flags of this benchmark."""

    check: bool = setting(False, "compare values, in float64, instead of times")
    backbones: str | None = setting(
        None, f"NAME@SIZE, a list; None: {program.BACKBONES}, and with --check the whole table"
    )
    precision: str = setting("float32", "of the steps", choices=measuring.PRECISIONS)


def measure(settings):
    """Returns a row for each backbone and phase: images per second folded and plain, medians, and
    the ratio with its range.
    """
    settings = dataclasses.replace(settings, backbones=settings.backbones or program.BACKBONES)

    def epochs(make, phase):
        return {
            kind: measuring.step_epoch(make(fold_batchnorm=fold), phase, settings.images)
            for kind, fold in (("folded", "on"), ("plain", "off"))
        }

    return measuring.compare(settings, _COLUMNS, epochs, {"ratio": ("plain", "folded")})


def check(settings):
    """Returns a row for each backbone that has BatchNorm; see `_check_backbone`."""
    entries = settings.backbones or ",".join(
        f"{spec.name}@{max(64, spec.min_image_size)}" for spec in backbones.BACKBONES.values()
    )
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")

    def rows():
        for name, size in program.parse_backbones(entries):
            row = _check_backbone(name, size)
            if row["batchnorms"]:
                yield row
            keras.backend.clear_session()
            gc.collect()  # the largest backbones do not fit twice

    try:
        return program.gathered(settings, _CHECKED, rows())
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def _check_backbone(name, size):
    """Returns the number of BatchNorm layers, how many are folded, and the largest relative
    differences of folded from plain.
    """
    classifier = Classifier(name, "none", size, 3)
    layers, graph = measuring.batchnorms(classifier.backbone), classifier.graph
    row = {"backbone": name, "image_size": size, "batchnorms": len(layers)}
    row["folded"] = graph.num_folded
    if not layers:
        return row
    images = classifier.preprocessing(tf.cast(_pictures(16, size), tf.float32))
    _randomize(classifier, layers, images)
    # some of those: of others a network of hundreds of layers may make numbers out of all bounds
    images = images[:2]
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
    row["verdict"] = "equal" if row["passed"] else "DIFFERENT"
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
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                fan_in = np.prod(shape[: 2 if depthwise or "depthwise" in variable.name else -1])
                value = random.normal(0, np.sqrt(2 / fan_in), shape)
            elif variable.name == "gamma":
                value = random.uniform(0.5, 1.5, shape)
            else:
                value = random.normal(0, 0.3, shape)
            variable.assign(value)
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


def report(settings):
    if not settings.check:
        rows = measure(settings)
        return (
            f"images/s of our step without input, {settings.precision}, "
            f"{measuring.conditions(settings)}\n\n{table(rows)}"
        )
    rows = check(settings)
    print(f"\n{check_table(rows)}", flush=True)
    if failed := [row["backbone"] for row in rows if not row["passed"]]:
        raise UserError(
            f"folded differs from plain in {', '.join(failed)}; expected at most "
            f"{_OUTPUT_TOLERANCE:g} in outputs and {_GRADIENT_TOLERANCE:g} in gradients; see the "
            "table above"
        )
    return "float64, norm of the difference of folded from plain over norm of the reference"


if __name__ == "__main__":
    program.main(Settings, report)
