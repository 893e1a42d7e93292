import json
import os

import program
import pytest
import scaling

from tl_research.errors import UserError


def _row(images, total, peak):
    return {
        "images": images,
        "epochs": 3,
        "processes": 1,
        "seconds": {"total": total, "data": 1, "features": 2, "train": 3, "evaluate": 0.5},
        "milliseconds_per_image": 1e3 * total / images,
        "milliseconds_per_image_epoch": 1.25,
        "peak_mib": peak,
    }


def test_points_come_in_growing_numbers_of_images():
    settings = scaling.Settings(
        data_dir="x",
        images="500,all",
        epochs_list="2:1,8:4",
        processes_list="1,4",
        flags="--x",
        processes_flags="--y",
    )
    assert scaling.plan(settings, 3670) == [
        (500, 1, "--x"),
        (1000, 1, "--x --epochs=2,1"),
        (1000, 1, "--x --epochs=8,4"),
        (3670, 1, "--x"),
        (20000, 1, "--y"),
        (20000, 4, "--y"),
    ]
    with pytest.raises(UserError, match="expected for example"):
        scaling.plan(scaling.Settings(data_dir="x", images="few"), 10)


def test_table_says_what_an_image_costs_in_time_and_memory():
    lines = scaling.table([_row(500, 10, 1000), _row(2500, 20, 1100)]).splitlines()
    assert lines[2] == "| 500 | 3 | 1 | 10.0 | 1.0 | 2.0 | 3.0 | 0.5 | 20.0 | 1.25 | 1000 |  |"
    # 100 MiB for 2000 more
    assert lines[3] == "| 2500 | 3 | 1 | 20.0 | 1.0 | 2.0 | 3.0 | 0.5 | 8.0 | 1.25 | 1100 | 50 |"
    assert len({line.count("|") for line in lines}) == 1


def test_each_point_is_a_run_on_that_many_different_files(tmp_path, monkeypatch):
    photographs = tmp_path / "photographs"
    for name in ("ant", "bee"):
        os.makedirs(photographs / name)
        (photographs / name / "one.jpg").write_bytes(name.encode())
    script = tmp_path / "train.py"  # counts files instead of training
    script.write_text("""
import json, os, sys
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[1:])
contents = {
    open(os.path.join(place, name), "rb").read()
    for place, _, names in os.walk(flags["data_dir"])
    for name in names
}
os.makedirs(flags["workdir"], exist_ok=True)
with open(os.path.join(flags["workdir"], "results.json"), "w") as file:
    parts = ("total", "data", "features", "train", "evaluate")
    seconds = dict.fromkeys(parts, len(contents))
    json.dump({"phases": [{"epochs": 2}], "seconds": seconds}, file)
""")
    monkeypatch.setattr(program, "TRAIN", str(script))
    output = tmp_path / "out.json"
    settings = scaling.Settings(
        data_dir=str(photographs),
        images="2,5",
        epochs_list="1:1",
        epochs_images=3,
        processes_list="2",
        processes_images=3,
        flags="--epochs=2,0",
        output_json=str(output),
    )
    rows = scaling.measure(settings)
    assert [
        (row["images"], row["seconds"]["total"], row["epochs"], row["processes"]) for row in rows
    ] == [(2, 2, 2, 1), (3, 3, 2, 2), (3, 3, 2, 1), (5, 5, 2, 1)]
    # 2 x 5 s of 5 images and 2 epochs
    assert [row["milliseconds_per_image_epoch"] for row in rows] == [1000] * 4
    assert (
        all(row["peak_mib"] > 1 for row in rows) and json.loads(output.read_text())["rows"] == rows
    )


def test_a_run_that_fails_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="exit code 1"):
        scaling.measure(
            scaling.Settings(data_dir=str(tmp_path), images="1", flags="--no_such_flag")
        )
