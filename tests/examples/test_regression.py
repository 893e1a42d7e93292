"""examples/regression.py: a run on one number for each image, and what the tools make of it."""

import csv
import io
import os

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tl_research.errors import UserError
from tl_research.evaluate import EvaluateConfig, evaluate
from tl_research.export import ExportConfig, export

PATH = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "regression.py")


@pytest.fixture
def numbers(write_images, tmp_path, monkeypatch):
    """Writes images and labels.csv, and returns {path from there: number}."""
    photos = write_images(tmp_path / "many", count=15, size=16)
    names = [f"{name}/{i:02d}.png" for name in ("ant", "bee", "cat") for i in range(15)]
    pixels = [np.asarray(PIL.Image.open(os.path.join(photos, name))) for name in names]
    found = {name: float(of[..., 0].mean()) / 100 for name, of in zip(names, pixels)}  # redness
    with open(os.path.join(photos, "labels.csv"), "w", newline="") as file:
        csv.writer(file).writerows(found.items())
    monkeypatch.setenv("LABELS", os.path.join(photos, "labels.csv"))
    return found


def test_run_and_tools_answer_with_numbers(tiny_run, run_program, numbers, tmp_path, read_json):
    place = tmp_path / "run"
    results, rows = tiny_run(
        "run", "regression.py", split=(0.5, 0.3, 0.2), select_by="val_mean_absolute_error"
    )
    assert read_json(place / "run.json")["answer"] == "number"
    test = results["test"]
    assert list(test) == ["accuracy", "loss", "mean_absolute_error", "n", "ci95", "reads"]
    assert test["accuracy"] is None and test["ci95"] is None and test["mean_absolute_error"] > 0
    assert {"train_mean_absolute_error", "val_mean_absolute_error"} <= set(rows[0])

    split = read_json(place / "split.json")["files"]
    paths = [file["path"] for file in split if file["side"] == "validation"]
    model = keras.saving.load_model(place / "export" / "model.keras", compile=False)
    images = np.stack([np.asarray(PIL.Image.open(tmp_path / "many" / path)) for path in paths])
    said = model.predict(images.astype(np.float32), verbose=0)[:, 0]
    errors = said - np.array([numbers[path] for path in paths])
    (phase,) = [one for one in results["phases"] if one["name"] == results["selected_phase"]]
    assert phase["val_mean_absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert phase["val_loss"] == pytest.approx((errors**2).mean(), rel=1e-4)

    assert results["calibration"] is None and not (place / "export" / "calibration.json").exists()

    assert "On 9 test images: " in (place / "report" / "index.html").read_text()

    report = evaluate(EvaluateConfig(run=str(place), extension=PATH))
    assert report["mean_absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    with open(place / "report" / "validation" / "mistakes.csv") as file:
        worst = next(csv.DictReader(file))
    assert worst["path"] == paths[np.abs(errors).argmax()]
    assert abs(float(worst["error"])) == pytest.approx(np.abs(errors).max(), rel=1e-4)

    arguments = [f"--run={place}", *paths[:2]]
    _, stdout, stderr = run_program("tl_research.predict", *arguments, cwd=tmp_path / "many")
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert [list(row) for row in rows] == [["path", "number"]] * 2, stderr
    np.testing.assert_allclose([float(row["number"]) for row in rows], said[:2], atol=1e-4)

    files = export(ExportConfig(run=str(place), extension=PATH))
    serve = tf.saved_model.load(files["saved_model"]).signatures["serving_default"]
    light = Interpreter(files["litert"]).get_signature_runner()
    for answer in (serve(images=tf.constant(images[:1])), light(images=images[:1])):
        assert list(answer) == ["number"]
        np.testing.assert_allclose(answer["number"], said[:1], rtol=1e-2)


def test_run_goes_on_with_it(assert_resumes, numbers):
    assert_resumes("regression.py", epochs=(0, 2), crashes=(3,), precision="mixed_float16")


def test_gate_that_no_number_passes_is_refused(tiny_run, numbers):
    with pytest.raises(UserError, match="--min_test_accuracy=0.5 with SquaredError"):
        tiny_run("run", "regression.py", min_test_accuracy=0.5)
