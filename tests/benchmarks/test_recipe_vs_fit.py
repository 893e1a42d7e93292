import json
import os

import fit_recipe
import pytest
import recipe_vs_fit

from tl_research.errors import UserError


def _row(column, seed, seconds, accuracy=0.9):
    return {
        "backbone": "Tiny@16",
        "seed": seed,
        "column": column,
        "seconds": seconds,
        "val_accuracy": accuracy,
        "val_loss": 0.25,
        "test_accuracy": accuracy,
    }


def _settings(path, **more):
    return recipe_vs_fit.Settings(
        runs=str(path / "runs"),
        dataset="directory",
        data_dir=str(path / "photographs"),
        backbones="Tiny@16",
        seeds="0,1",
        output_json=str(path / "out.json"),
        **more,
    )


def test_table_has_means_and_ratios_of_equal_seeds():
    rows = [
        _row("fit", 1, 300),
        _row("fit", 0, 100),
        _row("ours", 0, 50),
        _row("ours", 1, 100),
        _row("fit held", 0, 200, 0.95),
    ]
    lines = recipe_vs_fit.table(rows).splitlines()[2:]
    assert lines == [
        (
            "| Tiny@16 | fit | 200 (100, 300) | 2.50 (2.00-3.00) | 0.900 (0.900, 0.900) | 0.250 "
            "(0.250, 0.250) | 0.900 (0.900, 0.900) |"
        ),
        "| Tiny@16 | fit held | 200 | 4.00 (4.00-4.00) | 0.950 | 0.250 | 0.950 |",
        (
            "| Tiny@16 | ours | 75 (50, 100) |  | 0.900 (0.900, 0.900) | 0.250 (0.250, 0.250) | "
            "0.900 (0.900, 0.900) |"
        ),
    ]


def test_what_is_measured_is_written_at_once_and_not_measured_again(tmp_path, monkeypatch):
    calls = []

    def ours(settings, backbone, seed, workdir):
        calls.append(("ours", seed))
        return {"seconds": 1.0}

    def fit(settings, backbone, seed, place, split_path, columns):
        calls.append((*columns, seed))
        yield {"column": columns[0], "seconds": 2.0}
        if seed == 1 and len(columns) == 2:
            raise UserError("interrupted")
        yield from ({"column": column, "seconds": 3.0} for column in columns[1:])

    monkeypatch.setattr(recipe_vs_fit, "run_ours", ours)
    monkeypatch.setattr(recipe_vs_fit, "run_fit", fit)
    with pytest.raises(UserError, match="interrupted"):
        recipe_vs_fit.measure(_settings(tmp_path))
    rows = recipe_vs_fit.measure(_settings(tmp_path))
    assert calls == [
        ("ours", 0),
        ("fit", "fit held", 0),
        ("ours", 1),
        ("fit", "fit held", 1),
        ("fit held", 1),
    ]
    assert [(row["seed"], row["column"]) for row in rows] == [
        (seed, column) for seed in (0, 1) for column in ("ours", "fit", "fit held")
    ]
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    with pytest.raises(UserError, match="another --epochs"):
        recipe_vs_fit.measure(_settings(tmp_path, epochs="1,1"))


def test_fit_reads_the_sides_of_our_split(tmp_path, monkeypatch):
    place = tmp_path / "place"
    os.makedirs(place / "ours")
    files = [
        {"path": f"ant/{index}.jpg", "class": "ant", "side": side}
        for index, side in enumerate(("train", "train", "validation", "test"))
    ]
    (place / "ours" / "split.json").write_text(json.dumps({"files": files}))
    script = tmp_path / "fit_recipe.py"  # says what it was given instead of training
    script.write_text("""
import json, os, sys
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[1:])
print("Epoch 1")
sides = {}
for side in ("train", "validation", "test"):
    entries = os.scandir(os.path.join(flags["folders"], side, "ant"))
    sides[side] = sorted(os.readlink(entry.path) for entry in entries)
print(json.dumps({"column": flags["columns"], "sides": sides}))
""")
    monkeypatch.setattr(recipe_vs_fit, "HERE", str(tmp_path))
    settings = _settings(tmp_path)
    split = str(place / "ours" / "split.json")
    (row,) = recipe_vs_fit.run_fit(settings, "Tiny@16", 0, str(place), split, ["fit held"])
    photographs = tmp_path / "photographs" / "ant"
    sides = {"train": ["0.jpg", "1.jpg"], "validation": ["2.jpg"], "test": ["3.jpg"]}
    assert row == {
        "column": "fit held",
        "sides": {
            side: [str(photographs / name) for name in names] for side, names in sides.items()
        },
    }


def test_fit_charges_both_columns_the_head_and_keeps_the_better_phase(
    tiny_backbone, write_images, tmp_path
):
    for side in ("train", "validation", "test"):
        write_images(tmp_path / side, count=4, size=16)
    rows = list(
        fit_recipe.measure(
            fit_recipe.Settings(
                folders=str(tmp_path), backbone="Tiny@16", epochs="2,1", batch_size=4
            )
        )
    )
    assert [row["column"] for row in rows] == ["fit", "fit held"]
    assert rows[0]["phases"]["head"] == rows[1]["phases"]["head"]
    for row in rows:
        losses = {name: phase["val_loss"] for name, phase in row["phases"].items()}
        assert row["val_loss"] == min(losses.values()) == losses[row["selected_phase"]]
        assert row["seconds"] > 0 and 0 <= row["test_accuracy"] <= 1
        times = [epoch["seconds"] for epoch in row["history"]]
        assert len(times) == 3 and times == sorted(times) and times[-1] < row["seconds"]
        assert row["val_loss"] == min(epoch["val_loss"] for epoch in row["history"])
    assert rows[0]["history"][:2] == rows[1]["history"][:2]
