import keras
import limits
import measuring
import pytest


def test_arithmetic_of_a_step_is_that_of_its_convolutions(tiny_backbone, make_examples):
    # Positions times kernel: 8 x 8 x 3 x 3 x 3 x 6, 4 x 4 x 3 x 3 x 6 x 8 and 4 x 4 x 8 x 10
    # multiplications.
    block1, block2, block3 = 10368, 6912, 1280
    settings = measuring.Settings(batch_size=4)
    config = measuring.make_config(settings, "Tiny", 16)
    classifier = measuring.make_classifier(config, "head", 3)
    examples = make_examples(8)
    head = limits.gflop_per_image(classifier, measuring.live_source(config, classifier, examples))
    assert head == pytest.approx(2e-9 * (block1 + block2 + block3))
    classifier.unfreeze("block2")  # its convolution reads the boundary: no gradient of its input
    live = limits.gflop_per_image(classifier, measuring.live_source(config, classifier, examples))
    assert live == pytest.approx(2e-9 * (block1 + 2 * block2 + 3 * block3))
    cached = measuring.cached_source(
        config, classifier, measuring.fill_cache(config, classifier, examples)
    )
    assert limits.gflop_per_image(classifier, cached) == pytest.approx(live - 2e-9 * block1)


def test_probe_measures_this_machine():
    assert all(rate > 0 for rate in limits.probe(1, side=64, copied=1024).values())


def test_traffic_of_a_step_is_what_its_convolutions_read_and_write(tiny_backbone, make_examples):
    # Numbers read and written: 16 x 16 x 3 + 8 x 8 x 6, 8 x 8 x 6 + 4 x 4 x 8 and 4 x 4 x 8 + 4 x 4
    # x 10; pooling reads 160 more and the new head 10.
    block1, block2, block3, others = 1152, 512, 288, 170
    config = measuring.make_config(measuring.Settings(batch_size=4), "Tiny", 16)
    classifier = measuring.make_classifier(config, "head", 3)
    examples = make_examples(8)
    head = limits.bytes_per_image(classifier, measuring.live_source(config, classifier, examples))
    assert head == 4 * (block1 + block2 + block3 + others)
    # block2: one pass more and its output of 128 again; block3: two and its 160
    classifier.unfreeze("block2")
    live = limits.bytes_per_image(classifier, measuring.live_source(config, classifier, examples))
    assert live == head + 4 * (block2 + 128 + 2 * block3 + 160)
    cached = measuring.cached_source(
        config, classifier, measuring.fill_cache(config, classifier, examples)
    )
    assert limits.bytes_per_image(classifier, cached) == live - 4 * block1


def test_traffic_of_mobilenet_is_that_of_its_tensors_in_bfloat16():
    keras.backend.clear_session()
    config = measuring.make_config(
        measuring.Settings(batch_size=4), "MobileNetV2", 160, precision="mixed_bfloat16"
    )
    try:
        classifier = measuring.make_classifier(config, "finetune", 5)
        source = measuring.live_source(config, classifier, measuring.drawn_examples(config, 4))
        assert limits.bytes_per_image(classifier, source) == pytest.approx(17.7e6, rel=0.01)
        classifier.unfreeze("0%")
        source = measuring.live_source(config, classifier, measuring.drawn_examples(config, 4))
        assert limits.bytes_per_image(classifier, source) == pytest.approx(14.0e6, rel=0.01)
    finally:
        keras.config.set_dtype_policy("float32")
