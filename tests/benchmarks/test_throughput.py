import os

import program
import pytest
import throughput

from tl_research.errors import UserError


def test_rows_hold_both_phases_and_ratios_of_what_was_timed(
    tiny_backbone, write_images, tmp_path, monkeypatch, capsys
):
    machine = {"float32": 100.0, "bfloat16": 200.0, "copy": 10.0}
    monkeypatch.setattr(throughput.limits, "probe", lambda rounds: machine)
    photographs = write_images(tmp_path / "photographs", size=16)
    settings = throughput.Settings(
        dataset="directory",
        data_dir=photographs,
        backbones="Tiny@16",
        images=32,
        batch_size=8,
        rounds=1,
    )
    found, rows = throughput.measure(settings)
    assert found == machine and [
        (row["backbone"], row["image_size"], row["phase"]) for row in rows
    ] == [("Tiny", 16, "head"), ("Tiny", 16, "finetune")]
    for row in rows:  # of one round: the medians are the times themselves
        assert row["ratio"] == pytest.approx(row["ours"] / row["fit"])
        assert row["step_ratio"] == pytest.approx(row["our step"] / row["fit step"])
        assert row["live_ratio"] == pytest.approx(row["cached"] / row["ours"])
        assert row["fit_ratio"] == pytest.approx(row["cached"] / row["fit"])
        assert row["ratio_range"] == [row["ratio"]] * 2
        assert row["input_share"] == pytest.approx(1 - row["ours"] / row["our step"])
        assert row["fill_seconds_per_view"] > 0
        live, cached = 32 / row["ours"], 32 / row["cached"]
        assert row["pays_after_epochs"] == throughput.epochs_to_pay(
            row["fill_seconds_per_view"], live, cached
        )
        for kind, rate in {"step": row["our step"], "kept": row["cached"]}.items():
            done = rate * row[kind]["gflop_per_image"]
            assert row[kind]["gflop_per_second"] == pytest.approx(done)
            assert row[kind]["share_of_peak"] == pytest.approx(done / 100.0)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in (first, second)] == [9, 9]
    assert first.startswith("| Tiny@16, head | ") and second.startswith("| Tiny@16, finetune | ")


@pytest.mark.parametrize(
    "fill, live, cached, epochs", [(10.0, 6.0, 1.0, 2), (11.0, 6.0, 1.0, 3), (1.0, 2.0, 2.0, None)]
)
def test_filling_pays_when_the_epochs_saved_took_as_long(fill, live, cached, epochs):
    assert throughput.epochs_to_pay(fill, live, cached) == epochs


def test_one_batch_is_too_little_to_time_filling():
    with pytest.raises(UserError, match="two batches"):
        throughput.measure(throughput.Settings(images=32))


def test_folders_hold_each_image_once_under_its_class(make_examples, tmp_path):
    examples = make_examples(5)
    folder = program.as_folders(
        examples.paths, ["abc"[label] for label in examples.labels], str(tmp_path / "images")
    )
    found = {
        os.readlink(os.path.join(place, name)): os.path.basename(place)
        for place, _, names in os.walk(folder)
        for name in names
    }
    assert found == {path: "abc"[label] for path, label in zip(examples.paths, examples.labels)}


def test_backbone_without_a_size_is_refused():
    with pytest.raises(UserError, match="expected NAME@SIZE"):
        program.parse_backbones("MobileNetV2")
