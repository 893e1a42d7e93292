"""Whether a device computes what it should: the checks of `benchmarks/gpu.py`, each (settings) ->
(passed, what was seen).

They use a few batches of random pixels and the first of `settings.backbones` with finetune's layers
open and BatchNorm folded; EfficientNetLite0 has its ImageNet weights (with random ones activations
shrink from layer to layer, until float16 holds none). "Off" is the norm of a difference over that
of the reference, all tensors together.
"""

import contextlib
import math

import measuring
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from tl_research.optim import loss_scale
from tl_research.run import environment
from tl_research.training import audit

_STEPS, _BATCH_SIZE = 4, 32
_XLA_TOLERANCE, _FLOAT16_TOLERANCE = 1e-3, 1e-1
# In 16 bit at least twice what a CPU is off by with EfficientNetLite0.
_PARITY_TOLERANCES = {
    "float32": 1e-3,
    "float32 (TF32)": 2e-2,
    "mixed_float16": 5e-2,
    "mixed_bfloat16": 2e-1,
}
_LARGE_SCALE = 2.0**30


def precision(settings):
    """The boundary has the type that each precision promises.

    Logits, gradients and variables are float32. Tells what `auto` is.
    """
    passed, told = True, []
    for name in measuring.PRECISIONS:
        config, classifier, source = make_network(settings, name)
        tensors, logits, gradients = _gradients(classifier, source, config.batch_size)
        computed = {tensor.dtype.name for tensor in tensors}
        others = {
            logits.dtype.name,
            *(gradient.dtype.name for gradient in gradients.values()),
            *(str(variable.dtype) for variable in classifier.variables.values()),
        }
        passed &= computed == {name.removeprefix("mixed_")} and others == {"float32"}
        told.append(f"{name}: {'/'.join(computed)} and {'/'.join(others)}")
    return passed, f"auto is {resolved(settings)[0]}; {', '.join(told)}"


def xla(settings):
    """Steps compiled with XLA change the weights as those without do, TF32 off."""
    with _tf32(False):
        off = _off(
            weight_changes(settings, "float32", xla=True), weight_changes(settings, "float32")
        )
    return off <= _XLA_TOLERANCE, f"off by {off:.1e} (at most {_XLA_TOLERANCE:g})"


def float16(settings):
    """From a scale too large for float16 each skipped step halves it.

    With one that fits, weights change as in float32.
    """
    config, classifier, source = make_network(settings, "mixed_float16")
    steps = measuring.our_steps(config, "finetune", classifier, source)
    scaling, taken, skipped = {**loss_scale.initial(), "loss_scale": _LARGE_SCALE}, 0, 0
    for _ in range(8):
        totals = {name: value.numpy() for name, value in steps(scaling=scaling).items()}
        scaling = {name: float(totals[name]) for name in scaling}
        taken, skipped = taken + int(totals["steps"]), skipped + int(totals["skipped_steps"])
    fits = {**loss_scale.initial(), "loss_scale": scaling["loss_scale"] / 4}
    with _tf32(False):
        off = _off(
            weight_changes(settings, "mixed_float16", scaling=fits),
            weight_changes(settings, "float32"),
        )
    passed = (
        totals["finite"] == 1
        and scaling["loss_scale"] == _LARGE_SCALE / 2**skipped
        and 0 < skipped < taken
        and off <= _FLOAT16_TOLERANCE
    )
    return passed, (
        f"from 2^{math.log2(_LARGE_SCALE):g} to 2^{math.log2(scaling['loss_scale']):g}, {skipped} "
        f"of {taken} steps skipped; off by {off:.1e} (at most {_FLOAT16_TOLERANCE:g})"
    )


def determinism(settings):
    """With deterministic operations two runs as `auto` resolves them, augmented, end with equal
    bits.
    """
    name, compiled = resolved(settings)
    hashes = []
    tf.config.experimental.enable_op_determinism()
    try:
        for _ in range(2):
            config, classifier, source = make_network(
                settings, name, optimizer="adam", augment=("flip", "rotation=0.1", "zoom=0.1")
            )
            measuring.our_steps(config, "finetune", classifier, source, xla=compiled)()
            hashes.append(audit.weights_sha256(classifier.variables)[:12])
    finally:
        # there is no public way back, and what is timed next would be slower
        tf_config.disable_op_determinism()
    told = f"{name}, XLA {'on' if compiled else 'off'}: {' and '.join(hashes)}"
    return hashes[0] == hashes[1], told


def parity(settings):
    """Logits and gradients of one batch, in each precision, are those of the CPU in float32 from
    the same weights and images.
    """
    with tf.device("/CPU:0"):
        config, classifier, source = make_network(settings, "float32")
        _, logits, gradients = _gradients(classifier, source, config.batch_size)
        weights = [np.array(variable) for variable in classifier.variables.values()]
    passed, told = True, []
    for kind, most in _PARITY_TOLERANCES.items():
        with _tf32("TF32" in kind):
            config, classifier, source = make_network(settings, kind.split()[0], weights)
            _, here, gradients_here = _gradients(classifier, source, config.batch_size)
        off = _off({"logits": here}, {"logits": logits}), _off(gradients_here, gradients)
        passed &= max(off) <= most
        told.append(f"{kind} {off[0]:.1e} and {off[1]:.1e} (at most {most:g})")
    return passed, f"logits and gradients are off by {', '.join(told)}"


CHECKS = {
    "precision": precision,
    "xla": xla,
    "loss_scale": float16,
    "determinism": determinism,
    "parity": parity,
}


def resolved(settings):
    """Returns (precision, whether XLA is on) that `auto` is here."""
    network = measuring.parse_backbones(settings.backbones)[0]
    return environment.resolve_device(
        measuring.make_config(settings, *network, precision="auto"), {}
    )


def make_network(settings, precision, weights=None, **more):
    """Returns (config, classifier, live source of `_STEPS` batches), weights given or its own."""
    network, batch_size = measuring.parse_backbones(settings.backbones)[0], settings.batch_size
    own = {"batch_size": min(batch_size, _BATCH_SIZE), "augment": ("none",), "dropout": 0.0}
    own |= {"optimizer": "sgd", "precision": precision, **more}
    config = measuring.make_config(settings, *network, **own)
    classifier = measuring.make_classifier(config, "finetune", 5)
    for variable, value in zip(classifier.variables.values(), weights or ()):
        variable.assign(value)
    # of several, gradients would nearly cancel
    examples = measuring.drawn_examples(config, _STEPS * config.batch_size, 1)
    return config, classifier, measuring.live_source(config, classifier, examples)


def weight_changes(settings, precision, xla=False, scaling=None):
    """Returns {path: what steps of SGD change a variable by}."""
    config, classifier, source = make_network(settings, precision)
    variables = classifier.trainable_variables()
    before = {path: np.array(variable) for path, variable in variables.items()}
    options = {"learning_rate": 1e-3, "xla": xla}
    measuring.our_steps(config, "finetune", classifier, source, **options)(scaling=scaling)
    return {path: np.array(variable) - before[path] for path, variable in variables.items()}


def _gradients(classifier, source, batch_size):
    """Returns (tensors at the boundary, logits, {path: gradient}) of the first batch."""
    # small gradients would be zero in float16
    scale, variables = 256.0, classifier.trainable_variables()

    @tf.function
    def compute(rows):
        pixels = source.examples.lookup(rows)
        tensors = source.compute(source.read(rows, tf.zeros([0, 0]), pixels))
        with tf.GradientTape() as tape:
            logits = classifier.logits(source.boundary, tensors)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.gather(source.examples.labels, rows), logits
            )
            loss = scale * tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [each.value for each in variables.values()])
        return tensors, logits, [each / scale for each in gradients]

    tensors, logits, gradients = compute(tf.range(batch_size))
    return tensors, logits, dict(zip(variables, gradients))


def _off(values, reference):
    """Returns the norm of the difference of two {name: array} over that of the second."""

    def all_of(arrays):
        return np.concatenate([np.ravel(arrays[name]).astype(np.float64) for name in reference])

    expected = all_of(reference)
    return float(np.linalg.norm(all_of(values) - expected) / np.linalg.norm(expected))


@contextlib.contextmanager
def _tf32(on):
    """Allows, or forbids, the products of float32 numbers rounded to 10 bits that a GPU makes by
    default.
    """
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(on)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
