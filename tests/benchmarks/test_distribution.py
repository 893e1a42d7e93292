import json

_SCRIPT = """
import sys
import distribution, tiny_network

tiny_network.register()
settings = distribution.Settings(
    dataset="directory",
    data_dir=sys.argv[2],
    backbones="Tiny@16",
    batch_size=4,
    learning_rate=0.1,
    rounds=1,
)
rows = distribution.measure(settings)
distribution.measuring.write_json(sys.argv[1], settings, rows)
"""


def test_losses_of_two_replicas_are_those_of_one_over_twenty_steps(
    run_script, tmp_path, write_images
):
    photos = write_images(tmp_path / "photos", count=12, size=16)
    stdout = run_script(_SCRIPT, tmp_path / "rows.json", photos)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["off", "nudged", "mirrored", "multi_worker"]
    row = {row["kind"]: row for row in rows}
    assert [
        row[kind].get("replicas", row[kind]) for kind in ("off", "mirrored", "multi_worker")
    ] == [1, 2, 2]
    assert len(set(row["off"]["losses"])) == 20  # it trains
    for kind in ("mirrored", "multi_worker"):
        assert len(row[kind]["losses"]) == 20 and row[kind]["images_per_second"] > 0
        worst = max(
            abs(two / one - 1) for one, two in zip(row["off"]["losses"], row[kind]["losses"])
        )
        assert row[kind]["largest_difference"] == worst <= 1e-5
        assert f"| Tiny@16, {kind} | 2 | {worst:.1e} | " in stdout
