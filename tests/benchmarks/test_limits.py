import limits
import measuring
import pytest


def test_arithmetic_of_a_step_is_that_of_its_convolutions(tiny_backbone, make_examples):
    # Positions times kernel: 8 x 8 x 3 x 3 x 3 x 6, 4 x 4 x 3 x 3 x 6 x 8 and 4 x 4 x 8 x 10 multiplications.
    block1, block2, block3 = 10368, 6912, 1280
    settings = limits.Settings(images=8, batch_size=4)
    config = measuring.make_config(settings, "Tiny", 16)
    classifier = measuring.make_classifier(config, "head", 3)
    examples = make_examples(8)
    head = limits.gflop_per_image(classifier, measuring.live_source(config, classifier, examples))
    assert head == pytest.approx(2e-9 * (block1 + block2 + block3))
    classifier.unfreeze("block2")  # its convolution reads the cut: no gradient of its input
    live = limits.gflop_per_image(classifier, measuring.live_source(config, classifier, examples))
    assert live == pytest.approx(2e-9 * (block1 + 2 * block2 + 3 * block3))
    cached = measuring.cached_source(config, classifier, measuring.fill_cache(config, classifier, examples, 1))
    assert limits.gflop_per_image(classifier, cached) == pytest.approx(live - 2e-9 * block1)


def test_rows_are_rates_times_arithmetic_over_the_peak(tiny_backbone, monkeypatch, capsys):
    monkeypatch.setattr(limits, "probe", lambda rounds: {"float32": 100.0, "bfloat16": 200.0, "copy": 10.0})
    machine, rows = limits.measure(limits.Settings(backbones="Tiny@16", images=8, batch_size=4, rounds=1))
    assert [row["kind"] for row in rows] == ["live head", "live finetune", "cached finetune"]
    for row in rows:
        assert row["gflop_per_second"] == pytest.approx(row["images_per_second"] * row["gflop_per_image"])
        assert row["share_of_peak"] == pytest.approx(row["gflop_per_second"] / machine["float32"])
    lines = limits.table(rows).splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {6} and lines[2] in capsys.readouterr().out


def test_probe_measures_this_machine():
    assert all(rate > 0 for rate in limits.probe(1, side=64, copied=1024).values())
