"""What a training step computes and moves, and what the machine can.

`throughput.py` and `gpu.py` say which share of it our steps reach.
"""

import math

import measuring
import tensorflow as tf

_SIDE, _REPEATS = 2048, 8
_COPIED = 1 << 26  # float32 values, 256 MiB: more than caches hold


def probe(rounds, side=_SIDE, copied=_COPIED):
    """Returns {"float32", "bfloat16": GFLOP/s of a matrix product, "copy": GB/s read and written},
    medians of the rounds.
    """

    def repeated(work, start):
        @tf.function
        def loop():
            value = start
            for _ in tf.range(_REPEATS):
                value = work(value)
            return tf.reshape(value, [-1])[0]

        return measuring.timed(lambda: float(loop()))

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
    """Returns the arithmetic of one training step on a source, for one image: that of the
    convolutions, 2 operations for each multiplication.

    Forward of everything, and of the part that trains once more for the gradients of its kernels
    and once more for those of its inputs, except in layers that read the boundary.
    """
    graph, boundary = classifier.graph, source.boundary
    forward = graph.multiply_adds(source.stored, classifier.head_boundary)
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

    Compiled for an H100 (XLA of JAX 0.11), ReLU6 and swish stay kernels of their own: a step of
    finetune in bfloat16 moves 33.0 MB for MobileNetV2@160 where this is 17.7, and 52.2 for 31.9
    with EfficientNetV2B0@224, so that 0.5 to 0.6 of this roofline is the most to expect there; 0.81
    with ResNet50. Which formulations would move less: docs/scale.md.
    """
    graph, boundary = classifier.graph, source.boundary
    trained = {written for *_, written in graph.layers(boundary, classifier.head_boundary)}
    numbers = sum(math.prod(graph.shape(name)) for name in classifier.head_boundary)  # read by it
    for layer, kernels, read, written in graph.layers(source.stored, classifier.head_boundary):
        *inputs, output = (math.prod(graph.shape(name)) for name in (*read, written))
        if kernels:
            backward = (written in trained) * (2 - (set(read) <= set(boundary)))
            numbers += (1 + backward) * (sum(inputs) + output) + output * (backward > 0)
        elif len(read) > 1 or "Pooling" in type(layer).__name__:
            numbers += max(inputs)
    return numbers * tf.as_dtype(classifier.backbone.compute_dtype).size
