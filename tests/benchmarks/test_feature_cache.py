import feature_cache
import pytest

from tl_research.errors import UserError


def test_rows_hold_both_phases_and_ratios_of_what_was_timed(
    tiny_backbone, write_images, tmp_path, capsys
):
    photographs = write_images(tmp_path / "photographs", count=10, size=16)
    rows = feature_cache.measure(
        feature_cache.Settings(
            dataset="directory",
            data_dir=photographs,
            backbones="Tiny@16",
            images=16,
            batch_size=8,
            rounds=1,
        )
    )
    assert [row["phase"] for row in rows] == ["head", "finetune"]
    for row in rows:  # of one round: the medians are the times themselves
        assert row["live_ratio"] == pytest.approx(row["cached"] / row["live"])
        assert row["fit_ratio"] == pytest.approx(row["cached"] / row["fit"])
        assert row["fill_seconds_per_view"] > 0
        live, cached = 16 / row["live"], 16 / row["cached"]
        assert row["pays_after_epochs"] == feature_cache.epochs_to_pay(
            row["fill_seconds_per_view"], live, cached
        )
    lines = feature_cache.table(rows).splitlines()
    assert (
        len(lines) == 4
        and {line.count("|") for line in lines} == {10}
        and lines[2] in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "fill, live, cached, epochs", [(10.0, 6.0, 1.0, 2), (11.0, 6.0, 1.0, 3), (1.0, 2.0, 2.0, None)]
)
def test_filling_pays_when_the_epochs_saved_took_as_long(fill, live, cached, epochs):
    assert feature_cache.epochs_to_pay(fill, live, cached) == epochs


def test_one_batch_is_too_little_to_time_filling():
    with pytest.raises(UserError, match="two batches"):
        feature_cache.measure(feature_cache.Settings(images=32))
