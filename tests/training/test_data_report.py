"""What the audit of the images leaves in a run."""

import json
import os

from tl_research import data_audit


def test_audit_of_the_images_stands_in_the_results_and_in_the_report(run, tmp_path, capsys):
    results = run("run", epochs=(1, 0), data_audit="on")
    assert results["cross_validation"]["n"] == 41  # 36 training and 5 validation images
    assert set(results["data_audit"]) == {"suspects", "near_copies_across_sides", "contradictions"}
    found = results["data_audit"]
    lines = capsys.readouterr().out.splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith("labels: ")]
    measured = results["cross_validation"]
    assert lines[place + 1] == (
        "closed-form head, each of 41 training and validation images left out once: accuracy "
        f"{measured['accuracy']:.4f} (standard error {measured['standard_error']:.4f}; of "
        f"validation images {measured['validation_accuracy']:.4f}), loss {measured['loss']:.4f}"
    )
    assert lines[place] == (
        f"labels: {found['suspects']} of 41 look doubtful"
        f"{data_audit.caveat(found['suspects'], 41, 3)}; pairs of look-alikes with different "
        f"labels: {found['contradictions']}; see report/data_audit.csv"
    )
    assert os.path.getsize(tmp_path / "run" / "report" / "data_audit.png") > 1000
    rows = (tmp_path / "run" / "report" / "data_audit.csv").read_text().splitlines()
    assert rows[0] == "path,side,label,suggested_label,doubt,near_copy_of,distance"
    sides = [row.split(",")[1] for row in rows[1:]]
    assert {side: sides.count(side) for side in sides} == {"train": 36, "validation": 5, "test": 4}


def test_audit_off(run, tmp_path, capsys):
    results = run("run", epochs=(1, 0), data_audit="off")
    assert results["cross_validation"] is None and results["data_audit"] is None
    assert not os.path.exists(tmp_path / "run" / "report" / "data_audit.csv")
    assert "labels:" not in capsys.readouterr().out


def test_audit_is_made_once(run, broken, tmp_path):
    settings = {"checkpoint_every_steps": 2, "data_audit": "on"}
    broken("run", step=4, **settings)
    os.remove(tmp_path / "run" / "report" / "data_audit.csv")
    run("run", **settings)
    assert not os.path.exists(tmp_path / "run" / "report" / "data_audit.csv")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cross_validation"]["n"] == 41
