import folding
import keras
import pytest


def test_rows_hold_both_phases_and_the_ratio_of_what_was_timed(tiny_backbone, capsys):
    rows = folding.measure(folding.Settings(backbones="Tiny@16", images=8, batch_size=4, rounds=1))
    assert [row["phase"] for row in rows] == ["head", "finetune"]
    for row in rows:  # of one round: the medians are the times themselves
        assert (
            row["ratio"] == pytest.approx(row["folded"] / row["plain"])
            and row["ratio_range"] == [row["ratio"]] * 2
        )
    lines = folding.table(rows).splitlines()
    assert (
        len(lines) == 4
        and {line.count("|") for line in lines} == {5}
        and lines[2] in capsys.readouterr().out
    )


def test_check_passes_in_float64_and_puts_the_types_back(tiny_backbone):
    before = keras.config.floatx(), keras.config.dtype_policy().name
    (row,) = folding.check(folding.Settings(check=True, backbones="Tiny@16"))
    assert (row["folded"], row["batchnorms"], row["passed"]) == (2, 2, True)
    assert 0 < row["gradients"] < 1e-10 and 0 < row["outputs"] < 1e-10  # compared, and in float64
    assert (keras.config.floatx(), keras.config.dtype_policy().name) == before
    assert folding.check_table([row]).splitlines()[-1].endswith("| equal |")


def test_check_sees_a_wrong_folding(tiny_backbone, monkeypatch):
    from tl_research.models import folding as folding_lib

    right = folding_lib.folded_weights

    def wrong(convolution, batchnorm):
        kernel, bias = right(convolution, batchnorm)
        return kernel * 1.001, bias

    monkeypatch.setattr(folding_lib, "folded_weights", wrong)
    (row,) = folding.check(folding.Settings(check=True, backbones="Tiny@16"))
    assert not row["passed"] and folding.check_table([row]).splitlines()[-1].endswith(
        "| DIFFERENT |"
    )
