import os

import measuring
import pytest
import throughput

from tl_research.errors import UserError


def test_rows_hold_both_phases_and_ratios_of_what_was_timed(
    tiny_backbone, write_images, tmp_path, capsys
):
    photographs = write_images(tmp_path / "photographs", size=16)
    settings = throughput.Settings(
        dataset="directory",
        data_dir=photographs,
        backbones="Tiny@16",
        images=32,
        batch_size=8,
        rounds=1,
    )
    rows = throughput.measure(settings)
    assert [(row["backbone"], row["image_size"], row["phase"]) for row in rows] == [
        ("Tiny", 16, "head"),
        ("Tiny", 16, "finetune"),
    ]
    for row in rows:  # of one round: the medians are the times themselves
        assert row["ratio"] == pytest.approx(row["ours"] / row["fit"])
        assert row["step_ratio"] == pytest.approx(row["our step"] / row["fit step"])
        assert (
            row["ratio_range"] == [row["ratio"]] * 2
            and row["fit input"] > 0
            and row["our input"] > 0
        )
        assert row["input_share"] == pytest.approx(1 - row["ours"] / row["our step"])
    lines = throughput.table(rows).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {11}
    assert lines[2].startswith("| Tiny@16, head | ") and lines[2] in capsys.readouterr().out


def test_folders_hold_each_image_once_under_its_class(make_examples, tmp_path):
    examples = make_examples(5)
    folder = measuring.as_folders(
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
        throughput.measure(throughput.Settings(backbones="MobileNetV2"))
