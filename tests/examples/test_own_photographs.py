"""The notebook runs as it is, but for its first cell, on a folder of drawn images."""

import os

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_SETTINGS = """
photos = "photos"
settings = dict(
    extension="one_layer.py", unfreeze=("0%", "all"), image_size=32, epochs=(1, 1),
    split=(0.4, 0.3, 0.3)
)
"""


def test_notebook_trains_predicts_and_evaluates(tmp_path, write_images, one_layer, monkeypatch):
    write_images(tmp_path / "photos", count=10, strength=12)
    monkeypatch.setenv("PYTHONPATH", _ROOT)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # none of the user's kernels
    notebook = nbformat.read(os.path.join(_ROOT, "examples", "own_photographs.ipynb"), as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].source.startswith("photos = ")
    cells[0].source = _SETTINGS
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    training = said[1].splitlines()
    assert sum(line.startswith("  1/2  head ") for line in training) == 1
    assert any("checking images: " in line for line in training)  # how far it is
    assert not any(word in text for word in ("RESULT", "retracing", "arning") for text in said)
    assert f"--run={tmp_path}/runs/notebook PHOTO.jpg" in said[1]
    assert " of 9 photographs, between 0." in said[2]
    assert "image/png" in cells[3].outputs[0].data
    assert [line.split()[1] in ("ant", "bee", "cat") for line in said[4].splitlines()] == [True] * 3
    assert [line for line in said[5].splitlines() if line.startswith("ant: ")][0].endswith(
        " of 3 found"
    )
