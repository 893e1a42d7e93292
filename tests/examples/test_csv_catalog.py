"""examples/csv_catalog.py: a run on the files of a list."""

import csv
import json
import os
import re

import pytest

from tl_research import evaluate
from tl_research.errors import DataError, UserError

EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "csv_catalog.py")


@pytest.fixture
def catalog(tiny_run, tmp_path, monkeypatch):
    """A CSV file of the images in `photos`; returns a function that writes its rows anew."""
    path = tmp_path / "photos.csv"
    monkeypatch.setenv("CATALOG", str(path))
    rows = [
        {"path": f"photos/{name}/{i:02d}.png", "label": name}
        for i in range(15)
        for name in ("cat", "ant", "bee")
    ]

    def write(rows):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ("path", "label"))
            writer.writeheader()
            writer.writerows(rows)

    write(rows)
    return rows, write


def test_run_is_resumed_and_evaluated_with_the_file(catalog, assert_resumes, tmp_path):
    rows, write = catalog
    settings = {"dataset": "tf_flowers", "data_dir": None, "epochs": (2, 0), "crashes": (3,)}
    results, _ = assert_resumes("csv_catalog.py", **settings)
    files = json.loads((tmp_path / "broken" / "split.json").read_text())["files"]
    assert {f"photos/{file['path']}": file["class"] for file in files} == {
        row["path"]: row["label"] for row in rows
    }

    run = str(tmp_path / "broken")
    with pytest.raises(UserError, match="came from load_catalog of .*; add --extension=FILE"):
        evaluate.evaluate(evaluate.EvaluateConfig(run=run))
    config = evaluate.EvaluateConfig(run=run, extension=EXAMPLE, side="test")
    assert evaluate.evaluate(config)["accuracy"] == results["test"]["accuracy"]

    read = next(file for file in files if file["side"] == "test" and file["class"] != "bee")
    (row,) = (row for row in rows if row["path"] == f"photos/{read['path']}")
    row["label"] = "bee"
    write(rows)
    changed = re.escape(f"the images: 1 changed ({read['path']})")
    with pytest.raises(DataError, match=f"{changed}.*csv_catalog.py"):
        evaluate.evaluate(config)
