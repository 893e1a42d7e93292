import program
import pytest
import steps


def _row(backbone, phase, low):
    return {
        "backbone": backbone,
        "image_size": 32,
        "phase": phase,
        "ratio": 1.5,
        "ratio_range": [low, 2.0],
        "float32": 100.0,
        "mixed_bfloat16": 150.0,
    }


@pytest.mark.parametrize(
    "of, slow, fast", [("precision", "float32", "mixed_bfloat16"), ("folding", "plain", "folded")]
)
def test_rows_hold_both_phases_and_the_ratio_of_what_was_timed(
    tiny_backbone, capsys, of, slow, fast
):
    settings = steps.Settings(of=of, backbones="Tiny@16", images=8, batch_size=4, rounds=1)
    rows = steps.measure(settings)
    assert [(row["backbone"], row["phase"]) for row in rows] == [
        ("Tiny", "head"),
        ("Tiny", "finetune"),
    ]
    for row in rows:  # of one round: the median is the time itself
        assert row["ratio"] == pytest.approx(row[fast] / row[slow])
        assert row["ratio_range"] == [row["ratio"]] * 2
    lines = program.table(steps.columns(settings), rows).splitlines()
    assert lines[0] == f"| backbone, phase | {slow} | {fast} | ratio |"
    assert lines[2] in capsys.readouterr().out


def test_a_backbone_is_faster_only_if_it_is_in_every_round_of_both_phases():
    rows = [
        _row("A", "head", 1.1),
        _row("A", "finetune", 1.01),
        _row("B", "head", 1.1),
        _row("B", "finetune", 0.99),
    ]
    assert steps.faster(rows) == ["A"]
    line = program.table(steps.columns(steps.Settings()), rows).splitlines()[2]
    assert line == "| A@32, head | 100 | 150 | 1.50 (1.10-2.00) |"
