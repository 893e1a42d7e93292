"""When a user has which accuracy, from histories written down by hand."""

import json
import os
import sys

import program
import recipe_vs_fit
import time_to_accuracy


def _row(column, seed, history, test=0.9):
    history = [{"seconds": at, "val_accuracy": value} for at, value in history]
    return {
        "column": column,
        "seed": seed,
        "history": history,
        "val_accuracy": history[-1]["val_accuracy"],
        "test_accuracy": test,
    }


ROWS = [
    _row("instant", 0, [(20, 0.92)]),
    _row("instant", 1, [(30, 0.90)], test=0.8),
    _row("fit", 0, [(100, 0.8), (300, 0.91), (500, 0.91)]),
    _row("fit", 1, [(100, 0.8), (600, 0.94)]),
]


def test_seconds_are_those_of_the_first_time():
    history = ROWS[2]["history"]
    assert time_to_accuracy.seconds_to(history, 0.8) == 100
    assert time_to_accuracy.seconds_to(history, 0.9) == 300
    assert time_to_accuracy.seconds_to(history, 0.95) is None


def test_table_counts_seeds_and_compares_those_that_both_reach():
    lines = time_to_accuracy.table(ROWS, 0.92).splitlines()
    assert lines[0] == "|  | what fit ends with | plus 2 points | 0.92 | validation | test |"
    assert lines[2:] == [
        "| instant | 20 s (1 of 2), 15.0 x (15.0-15.0) | never (0 of 2) | 20 s (1 of 2) | 0.910 | "
        "0.850 |",
        "| fit | 450 s (2 of 2) | never (0 of 2) | 600 s (1 of 2) | 0.925 | 0.900 |",
    ]


def test_picture_is_drawn(tmp_path):
    time_to_accuracy.draw(str(tmp_path / "figure.png"), ROWS)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_peer_runs_in_its_interpreter_on_the_split_of_ours(tmp_path, monkeypatch):
    """The rows of ours and of `fit` are there already; the peer says what it was given."""
    settings = time_to_accuracy.Settings(
        runs=str(tmp_path),
        dataset="directory",
        data_dir=str(tmp_path / "photographs"),
        recipes="flowers",
        columns="fit",
        seeds="3",
        epochs="2,1",
        peer=sys.executable,
    )
    history = [{"seconds": 9.0, "val_accuracy": 0.8, "val_loss": 0.5}]
    there = [
        {"backbone": settings.backbone, "column": column, "seed": 3, "history": history}
        for column in ("flowers", "fit")
    ]
    program.write_json(str(tmp_path / "rows.json"), settings, there)
    place = tmp_path / settings.backbone / "seed3"
    os.makedirs(place / "flowers")
    files = [{"path": "ant/1.jpg", "class": "ant", "side": "train"}]
    (place / "flowers" / "split.json").write_text(json.dumps({"files": files}))
    (tmp_path / "torch_peer.py").write_text("""
import json, os, sys
print("Loaded weights")
history = [{"seconds": 5.0, "val_accuracy": 0.9, "val_loss": 0.3}]
folder = f"{sys.argv[1].partition('=')[2]}/train/ant"
print(json.dumps({"history": history, "flags": sys.argv[2:], "images": os.listdir(folder)}))
""")
    monkeypatch.setattr(recipe_vs_fit, "HERE", str(tmp_path))
    rows = time_to_accuracy.measure(settings)
    assert [row["column"] for row in rows] == ["flowers", "fit", "torch", "torch compiled"]
    flags = [f"--backbone={settings.backbone}", "--epochs=2,1", "--seed=3"]
    assert [row["flags"] for row in rows[2:]] == [flags, [*flags, "--compile"]]
    assert [row["images"] for row in rows[2:]] == [["000000.jpg"]] * 2
    assert time_to_accuracy.seconds_to(rows[2]["history"], 0.9) == 5.0
