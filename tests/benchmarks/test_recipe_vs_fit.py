"""Both recipes, from histories written down by hand and programs that say what they were given."""

import json
import os
import sys

import fit_recipe
import program
import pytest
import recipe_vs_fit
import time_to_accuracy

from tl_research.errors import UserError


def _row(column, seed, history, **more):
    row = {
        "backbone": "Tiny@16",
        "seed": seed,
        "column": column,
        "seconds": history[-1][0],
        "val_accuracy": history[-1][1],
        "val_loss": 0.25,
        "test_accuracy": 0.9,
    }
    names = ("seconds", "val_accuracy", "val_loss")
    return {**row, "history": [dict(zip(names, epoch)) for epoch in history], **more}


ROWS = [
    _row("instant", 0, [(20, 0.92, 0.2)]),
    _row("instant", 1, [(30, 0.90, 0.3)], test_accuracy=0.8),
    _row("fit", 0, [(100, 0.8, 0.6), (300, 0.91, 0.3), (500, 0.91, 0.25)]),
    # what it returns in the end is the model of its second epoch
    _row("fit", 1, [(100, 0.8, 0.5), (600, 0.94, 0.25), (800, 0.97, 0.4)], val_accuracy=0.94),
]


def _settings(path, **more):
    return recipe_vs_fit.Settings(
        **{
            "runs": str(path / "runs"),
            "dataset": "directory",
            "data_dir": str(path / "photographs"),
            "backbones": "Tiny@16",
            "seeds": "0,1",
            "output_json": str(path / "out.json"),
            **more,
        }
    )


def _write_split(place, sides):
    """Writes the split of a run of the first recipe: of ant/0.jpg, ant/1.jpg, ..."""
    os.makedirs(place)
    files = [
        {"path": f"ant/{index}.jpg", "class": "ant", "side": side}
        for index, side in enumerate(sides)
    ]
    (place / "split.json").write_text(json.dumps({"files": files}))


def test_seconds_are_those_of_the_first_time():
    history = ROWS[2]["history"]
    assert recipe_vs_fit.seconds_to(history, 0.8) == 100
    assert recipe_vs_fit.seconds_to(history, 0.9) == 300
    assert recipe_vs_fit.seconds_to(history, 0.95) is None
    assert recipe_vs_fit.seconds_to(ROWS[3]["history"], 0.95) is None  # of a larger loss


def test_table_has_means_ratios_of_equal_seeds_and_counts_those_that_reach():
    rows = [*ROWS, _row("fit held", 0, [(250, 0.95, 0.2)])]
    lines = recipe_vs_fit.table(rows, 0.92).splitlines()
    assert lines[0] == (
        "| backbone |  | seconds | seconds of fit over these | validation accuracy | validation "
        "loss | test accuracy | seconds to what fit ends with | to 2 points more | to --target |"
    )
    losses = "0.250 (0.250, 0.250)"
    assert lines[2:] == [
        f"| Tiny@16 | instant | 25 (20, 30) | 25.8 x (25.0-26.7) | 0.910 (0.920, 0.900) | {losses} "
        "| 0.850 (0.900, 0.800) | 20 (1 of 2), 15.0 x (15.0-15.0) | never (0 of 2) | 20 (1 of 2) |",
        f"| Tiny@16 | fit | 650 (500, 800) |  | 0.925 (0.910, 0.940) | {losses} "
        "| 0.900 (0.900, 0.900) | 450 (2 of 2) | never (0 of 2) | 600 (1 of 2) |",
        "| Tiny@16 | fit held | 250 | 2.0 x (2.0-2.0) | 0.950 | 0.250 | 0.900 "
        "| 250 (1 of 1), 1.2 x (1.2-1.2) | 250 (1 of 1) | 250 (1 of 1) |",
    ]


def test_table_of_a_column_without_fit_has_no_ratios():
    (line,) = recipe_vs_fit.table(ROWS[:1], 0.92).splitlines()[2:]
    assert line == "| Tiny@16 | instant | 20 |  | 0.920 | 0.250 | 0.900 |  |  |  |"


def test_picture_is_drawn(tmp_path):
    recipe_vs_fit.draw(str(tmp_path / "figure.png"), ROWS)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_is_written_at_once_and_not_measured_again(tmp_path, monkeypatch):
    calls = []

    def ours(settings, recipe, backbone, seed, workdir):
        calls.append((recipe, seed))
        _write_split(tmp_path / "runs" / backbone / f"seed{seed}" / recipe, ["train"])
        assert workdir == f"{tmp_path}/runs/{backbone}/seed{seed}/{recipe}"
        return {"seconds": 1.0}

    def fit(settings, backbone, seed, folders, columns):
        assert os.listdir(f"{folders}/train/ant") == ["000000.jpg"]
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
    _write_split(place / "ours", ("train", "train", "validation", "test"))
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
    folders = recipe_vs_fit.link_images(settings, str(place))
    (row,) = recipe_vs_fit.run_fit(settings, "Tiny@16", 0, folders, ["fit held"])
    photographs = tmp_path / "photographs" / "ant"
    sides = {"train": ["0.jpg", "1.jpg"], "validation": ["2.jpg"], "test": ["3.jpg"]}
    assert row == {
        "column": "fit held",
        "sides": {
            side: [str(photographs / name) for name in names] for side, names in sides.items()
        },
    }


def test_peer_runs_in_its_interpreter_on_the_split_of_ours(tmp_path, monkeypatch):
    """The rows of ours and of `fit` are there already; the peer says what it was given."""
    settings = _settings(
        tmp_path, recipes="flowers", columns="fit", seeds="3", epochs="2,1", peer=sys.executable
    )
    there = [{**_row(column, 3, [(9.0, 0.8, 0.5)])} for column in ("flowers", "fit")]
    program.write_json(settings.output_json, settings, there)
    _write_split(tmp_path / "runs" / "Tiny@16" / "seed3" / "flowers", ["train"])
    (tmp_path / "torch_peer.py").write_text("""
import json, os, sys
print("Loaded weights")
history = [{"seconds": 5.0, "val_accuracy": 0.9, "val_loss": 0.3}]
folder = f"{sys.argv[1].partition('=')[2]}/train/ant"
column = "torch compiled" if "--compile" in sys.argv else "torch"
found = {"flags": sys.argv[2:], "images": os.listdir(folder)}
print(json.dumps({"column": column, "history": history, **found}))
""")
    monkeypatch.setattr(recipe_vs_fit, "HERE", str(tmp_path))
    rows = recipe_vs_fit.measure(settings)
    assert [row["column"] for row in rows] == ["flowers", "fit", "torch", "torch compiled"]
    flags = ["--backbone=Tiny@16", "--epochs=2,1", "--seed=3"]
    assert [row["flags"] for row in rows[2:]] == [flags, [*flags, "--compile"]]
    assert [row["images"] for row in rows[2:]] == [["000000.jpg"]] * 2
    assert [row["seed"] for row in rows] == [3] * 4
    assert recipe_vs_fit.seconds_to(rows[2]["history"], 0.9) == 5.0


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


def test_time_to_accuracy_is_the_same_of_the_recipes(run_script):
    """With defaults of its own, and help of its own."""
    program_file = os.path.join(recipe_vs_fit.HERE, "time_to_accuracy.py")
    text = f"import runpy; runpy.run_path({program_file!r}, run_name='__main__')"
    stdout = run_script(text, "--help")
    assert stdout.lstrip().startswith("`recipe_vs_fit.py` with the recipes of")
    flags = ("backbones=EfficientNetLite0@224 ", "recipes=instant,minute,flowers ")
    assert all(f"--{flag}" in stdout for flag in (*flags, "seeds=0,1,2,3,4 "))
    assert time_to_accuracy.Settings.required == recipe_vs_fit.Settings.required
