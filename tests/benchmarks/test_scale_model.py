import math
import os
import types

import keras
import limits
import measuring
import pytest
import scale_model

# Round numbers: a GPU does 50 images/s forward, 20 live and 100 cached; its node of 2 decodes 80.
INPUTS = scale_model.Inputs(
    file_bytes=10,
    decoded_per_core=20,
    pixel_bytes=100,
    feature_bytes=50,
    forward=(1, 10),
    live=(1, 25),
    cached=(4, 1),
    parameters=100,
    head_epochs=2,
    finetune_epochs=3,
    views=2,
    batch=4,
    flops=800,
    bandwidth=1000,
    efficiency=0.5,
    node_gpus=2,
    node_cores=4,
    node_memory=1e5,
    node_disk=2e5,
    nvlink=1000,
    infiniband=100,
    store=1000,
)


def test_rate_is_that_of_the_scarcer_of_arithmetic_and_memory():
    assert [
        scale_model.rate(work, INPUTS) for work in (INPUTS.forward, INPUTS.live, INPUTS.cached)
    ] == [50, 20, 100]


def test_ring_moves_twice_the_gradients_but_for_one_part():
    assert scale_model.all_reduce_seconds(1, INPUTS) == 0
    assert scale_model.all_reduce_seconds(2, INPUTS) == pytest.approx(2 * 1 / 2 * 400 / 1000)
    assert scale_model.all_reduce_seconds(4, INPUTS) == pytest.approx(2 * 3 / 4 * 400 / 100)


@pytest.mark.parametrize(
    ("images", "gpus", "place", "parts"),
    [
        # 2 nodes: all is read twice, to hash it and to decode it, half on each at 80 a second.
        (
            100,
            4,
            "memory",
            {
                "storage": 2 * 1000 / 1000,
                "decode": 50 / 80,
                "frozen part": 200 / 200,
                "finetune": 75 / 100,
                "all-reduce": 75 / 4 * 6,
            },
        ),
        # Half a node: neither 600 x 2 x 50 bytes of features nor 600 x 100 of pixels fit into
        # 50000; one pass checks, two fill.
        (
            600,
            1,
            "disk",
            {
                "storage": 3 * 6,
                "decode": 3 * 600 / 40,
                "frozen part": 1200 / 50,
                "finetune": 1800 / 100,
                "all-reduce": 0,
            },
        ),
        # Live: a pass for each of 5 epochs after the first; head computes 2 epochs forward.
        (
            3000,
            2,
            "nowhere",
            {
                "storage": 6 * 30,
                "decode": 6 * 3000 / 80,
                "frozen part": 6000 / 100,
                "finetune": 4500 / 20,
                "all-reduce": 4500 / 4 * 0.4,
            },
        ),
    ],
)
def test_parts_of_a_run(images, gpus, place, parts):
    predicted, where = scale_model.predict(images, gpus, INPUTS)
    assert where == place and predicted == pytest.approx(parts)


def test_input_overlaps_what_is_computed():
    parts = {"storage": 5.0, "decode": 1.0, "frozen part": 2.0, "finetune": 1.0, "all-reduce": 1.0}
    assert scale_model.total(parts) == 5 and scale_model.total({**parts, "storage": 1.0}) == 4


def test_replicas_add_a_sum_and_an_update():
    assert scale_model.replica_ratio(1.0, 100, memory=32000) == pytest.approx(1 / 1.1)
    assert scale_model.replica_ratio(1.0, 100, link=4000, memory=32000) == pytest.approx(1 / 1.2)


def test_document_has_the_tables_that_are_printed():
    root = os.path.dirname(os.path.dirname(scale_model.__file__))
    with open(os.path.join(root, "docs", "scale.md")) as file:
        text = file.read()
    assert scale_model.table() in text


def test_inputs_are_what_the_network_has():
    inputs = scale_model.Inputs()
    config = measuring.make_config(
        measuring.Settings(), "EfficientNetV2B0", 224, precision="mixed_bfloat16"
    )
    try:
        classifier = measuring.make_classifier(config, "finetune", 5)
    finally:
        keras.config.set_dtype_policy("float32")
    kept = classifier.graph.cheapest_boundary(classifier.boundary())
    assert (
        kept == classifier.boundary()
        and classifier.graph.bytes_per_image(kept) == inputs.feature_bytes
    )
    assert (
        sum(math.prod(variable.shape) for variable in classifier.trainable_variables().values())
        == inputs.parameters
    )
    for name, cached in {"live": False, "cached": True, "forward": False}.items():
        if name == "forward":
            classifier.unfreeze("0%")
        stored = kept if cached else (classifier.graph.input,)
        source = types.SimpleNamespace(boundary=classifier.boundary(), stored=stored)
        counted = (
            1e9 * limits.gflop_per_image(classifier, source),
            limits.bytes_per_image(classifier, source),
        )
        assert getattr(inputs, name) == pytest.approx(counted, rel=3e-3)
