"""examples/arrays.py: a run on arrays, from a file or from Python, belongs to its pixels."""

import os

import numpy as np
import pytest

from tl_research.data.catalog import Table
from tl_research.errors import DataError
from tl_research.export import ExportConfig, export
from tl_research.extension import Extension

EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "arrays.py")
ARRAYS = {"images": np.zeros((45, 12, 20, 3), np.uint8), "labels": np.arange(45) % 3}
for _i, _image in enumerate(ARRAYS["images"]):
    _image[:] = np.random.RandomState(_i).randint(0, 200, (12, 20, 3))
    _image[..., _i % 3] += 50


def _load_catalog(config):
    return Table(ARRAYS["images"], ARRAYS["labels"], ("ant", "bee", "cat"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("ARRAYS", str(tmp_path / "arrays.npz"))

    def write(images):
        np.savez(
            os.environ["ARRAYS"], **{**ARRAYS, "images": images}, classes=["ant", "bee", "cat"]
        )

    write(ARRAYS["images"])
    return write


SETTINGS = {"dataset": "tf_flowers", "data_dir": None, "epochs": (2, 0)}


def test_run_is_resumed_bit_for_bit_and_is_the_one_of_python(write, tiny_run, assert_resumes):
    results, rows = assert_resumes("arrays.py", crashes=(3,), **SETTINGS)
    parts = Extension(load_catalog=_load_catalog)
    same, same_rows = tiny_run("python", parts=parts, **SETTINGS)
    assert same["weights_sha256"] == results["weights_sha256"] and same_rows == rows
    assert same["extension"] == {"file": None, "sha256": parts.sha256, "parts": ["load_catalog"]}


def test_run_does_not_go_on_with_other_pixels(write, tiny_run, tmp_path):
    other = ARRAYS["images"].copy()
    other[3, 0, 0, 0] ^= 1

    def spoil(event):
        write(other)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_run("run", "arrays.py", observers=[spoil], **SETTINGS)
    with pytest.raises(
        DataError, match=r"split.json does not match the images: 1 changed \(array/3"
    ):
        tiny_run("run", "arrays.py", **SETTINGS)
    write(ARRAYS["images"])
    tiny_run("run", "arrays.py", **SETTINGS)
    # Served models are compared on the images as they were given.
    run = str(tmp_path / "run")
    paths = export(ExportConfig(run=run, extension=EXAMPLE, format="saved_model"))
    assert os.path.isdir(paths["saved_model"])
