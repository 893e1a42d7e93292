"""How far a training step is from what the machine can multiply, per backbone and phase.

    python benchmarks/limits.py --precision=float32

The peak is the product of two matrices of 2048 by 2048 in the type of the steps, measured in this
process before them. A step is ours without input: the same batch of random pixels (or of their
cached features) again and again; compiling is apart. Arithmetic is that of the convolutions, 2
operations for each multiplication: forward of everything, and of the part that trains once more for
the gradients of its kernels and once more for those of its inputs, except in layers that read the
boundary. The rest (activations, pooling, the dense head, Adam) counts as nothing, so that 100 %
cannot be reached.
"""

import functools
import math
import os

import measuring
import program
import tensorflow as tf

from tl_research.settings import setting

_SIDE, _REPEATS = 2048, 8
_COPIED = 1 << 26  # float32 values, 256 MiB: more than caches hold
_COLUMNS = """
backbone, step | {backbone}@{image_size}, {kind}
images/s | {images_per_second:.0f}
GFLOP an image | {gflop_per_image:.3f}
GFLOP/s | {gflop_per_second:.0f}
share of the peak | {share_of_peak:.0%}
"""
_MACHINE = (
    "{0} CPU cores: float32 {float32:.0f} GFLOP/s, bfloat16 {bfloat16:.0f} GFLOP/s, memory "
    "{copy:.0f} GB/s read and written"
)
table = functools.partial(program.table, _COLUMNS)


class Settings(measuring.Settings):
    """The flags of this benchmark."""

    precision: str = setting("float32", "of the steps", choices=("float32", "mixed_bfloat16"))


def probe(rounds, side=_SIDE, copied=_COPIED):
    """Returns {"float32", "bfloat16": GFLOP/s of a matrix product, "copy": GB/s read and written},
    medians of the rounds.
    """

    def repeated(work, start):
        loop = tf.function(
            lambda: tf.while_loop(
                lambda i, _: i < _REPEATS,
                lambda i, x: (i + 1, work(x)),
                (0, start),
                parallel_iterations=1,
            )[1]
        )
        return measuring.timed(lambda: float(tf.reshape(loop(), [-1])[0]))

    # products stay of its size
    matrix = tf.random.stateless_normal([side, side], [1, 2]) / side**0.5
    kinds = {
        name: repeated(lambda x, m=tf.cast(matrix, name): tf.matmul(x, m), tf.cast(matrix, name))
        for name in ("float32", "bfloat16")
    }
    kinds["copy"] = repeated(lambda x: x + 1.0, tf.zeros([copied]))
    work = {"float32": 2 * side**3, "bfloat16": 2 * side**3, "copy": 2 * 4 * copied}
    found = measuring.rates(measuring.alternate(kinds, rounds), _REPEATS / 1e9)
    return {name: work[name] * rate for name, rate in found.items()}


def gflop_per_image(classifier, source):
    """Returns the arithmetic of one training step on a source, for one image."""
    graph, boundary = classifier.graph, source.boundary
    begin = source.stored if source.cached else (graph.input,)
    forward = graph.multiply_adds(begin, classifier.head_boundary)
    trained = graph.multiply_adds(boundary, classifier.head_boundary)
    first = sum(
        graph.multiply_adds(boundary, (written,))
        for _, _, read, written in graph.layers(boundary, (graph.output,))
        if set(read) <= set(boundary)
    )
    return 2 * (forward + 2 * trained - first) / 1e9


def bytes_per_image(classifier, source):
    """Returns the least bytes to and from memory of one training step on a source, for one image.

    Convolutions and dense layers read their input and write their output once; normalization and
    activation are fused into them; what adds, multiplies or pools reads one tensor more. Backward,
    a layer that trains takes two such passes, for the gradients of its kernels and of its input
    (one where its input is the boundary), and reads its output again. Weights, read once a batch,
    and what the optimizer does count as nothing.
    """
    graph, boundary = classifier.graph, source.boundary
    begin = source.stored if source.cached else (graph.input,)
    trained = {written for *_, written in graph.layers(boundary, classifier.head_boundary)}
    numbers = sum(math.prod(graph.shape(name)) for name in classifier.head_boundary)  # read by it
    for layer, kernels, read, written in graph.layers(begin, classifier.head_boundary):
        *inputs, output = (math.prod(graph.shape(name)) for name in (*read, written))
        if kernels:
            backward = (written in trained) * (2 - (set(read) <= set(boundary)))
            numbers += (1 + backward) * (sum(inputs) + output) + output * (backward > 0)
        elif len(read) > 1 or "Pooling" in type(layer).__name__:
            numbers += max(inputs)
    return numbers * tf.as_dtype(classifier.backbone.compute_dtype).size


def measure(settings):
    """Returns (what `probe` returns, a row for each backbone and kind of step)."""
    machine = probe(settings.rounds)
    print(_MACHINE.format(os.cpu_count(), **machine), flush=True)
    peak = machine["float32" if settings.precision == "float32" else "bfloat16"]

    def rows():
        for name, size in program.parse_backbones(settings.backbones):
            config = measuring.make_config(settings, name, size)
            epochs, work = _kinds(config, settings.images)
            seconds = measuring.alternate(epochs, settings.rounds)
            for kind, rate in measuring.rates(seconds, settings.images).items():
                yield {
                    "backbone": name,
                    "image_size": size,
                    "kind": kind,
                    "images_per_second": rate,
                    "gflop_per_image": work[kind],
                    "gflop_per_second": rate * work[kind],
                    "share_of_peak": rate * work[kind] / peak,
                }
            measuring.keras.backend.clear_session()

    return machine, program.gathered(settings, _COLUMNS, rows(), machine=machine)


def _kinds(config, images):
    """Returns {kind of step: function that returns the seconds of an epoch}, and its arithmetic."""
    examples, epochs, work = measuring.drawn_examples(config, images), {}, {}
    for kind in ("live head", "live finetune", "cached finetune"):
        place, phase = kind.split()
        classifier = measuring.make_classifier(config, phase, 5)
        source = measuring.source(config, classifier, examples, cached=place == "cached")
        epochs[kind] = measuring.our_epoch(config, phase, classifier, source, same_batch=True)
        work[kind] = gflop_per_image(classifier, source)
    return epochs, work


def report(settings):
    machine, rows = measure(settings)
    return (
        f"our step without input, {settings.precision}, {measuring.conditions(settings)}; "
        f"{_MACHINE.format(os.cpu_count(), **machine)}\n\n{table(rows)}"
    )


if __name__ == "__main__":
    program.main(Settings, report)
