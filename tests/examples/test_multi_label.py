"""examples/multi_label.py: a run on sets of classes, and what the tools make of it."""

import csv
import json
import os

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research.evaluate import EvaluateConfig, evaluate
from tl_research.export import ExportConfig, export
from tl_research.predict import PredictConfig, predict

PATH = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "multi_label.py")
SETS = {"ant": "warm", "bee": "green;warm", "cat": ""}  # by the folder of the images


@pytest.fixture
def labels(write_images, tmp_path, monkeypatch):
    """Writes images and labels.csv, and returns {path from there: names}."""
    photos = write_images(tmp_path / "many", count=15, size=16, strength=100)
    found = {
        os.path.join(name, file): SETS[name]
        for name in SETS
        for file in sorted(os.listdir(os.path.join(photos, name)))
    }
    with open(os.path.join(photos, "labels.csv"), "w", newline="") as file:
        csv.writer(file).writerows(found.items())
    monkeypatch.setenv("LABELS", os.path.join(photos, "labels.csv"))
    return found


def _logits(run, photos, paths):
    model = keras.saving.load_model(run / "export" / "model.keras", compile=False)
    images = np.stack([np.asarray(PIL.Image.open(photos / path), np.float32) for path in paths])
    return model.predict(images, verbose=0)


def test_run_and_tools_answer_with_sets(tiny_run, labels, tmp_path, read_json, capsys):
    place = tmp_path / "run"
    settings = {"split": (0.5, 0.3, 0.2), "epochs": (6, 4), "learning_rate": (0.1, 1e-2)}
    results, rows = tiny_run("run", "multi_label.py", **settings)
    assert results["classes"] == ["green", "warm"]
    assert read_json(place / "run.json")["answer"] == "set"
    assert list(results["test"]) == ["accuracy", "loss", "macro_f1", "n", "ci95", "reads"]
    measured = ("train_accuracy", "val_loss", "val_accuracy", "val_macro_f1")
    assert all(np.isfinite(float(row[name])) for row in rows for name in measured)

    split = read_json(place / "split.json")["files"]
    paths = [file["path"] for file in split if file["side"] == "validation"]
    logits = _logits(place, tmp_path / "many", paths)
    truth = np.array([[name in labels[p].split(";") for name in results["classes"]] for p in paths])
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    loss = -np.log(np.where(truth, probabilities, 1 - probabilities)).mean()
    (phase,) = [one for one in results["phases"] if one["name"] == results["selected_phase"]]
    assert phase["val_loss"] == pytest.approx(loss, rel=1e-5)
    exact = ((probabilities >= 0.5) == truth).all(axis=1).mean()
    assert phase["val_accuracy"] == exact

    report = evaluate(EvaluateConfig(run=str(place), extension=PATH))
    assert report["accuracy"] == exact and report["n"] == len(paths)
    assert set(report["per_class"]) == {"green", "warm"}
    files = set(os.listdir(place / "report" / "validation"))
    assert files == {
        *("report.json", "per_class.csv", "mistakes.csv", "predictions.csv"),
        *("index.html", "worst_mistakes.png"),
    }
    page = (place / "report" / "index.html").read_text()
    assert "test images are classified correctly" in page and '<th scope="row">warm</th>' in page
    assert not (place / "report" / "confusion.png").exists()
    capsys.readouterr()

    calibration = results["calibration"]
    temperature = calibration["temperature"]
    assert calibration["reason"] is None and report["temperature"] == temperature != 1.0
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64) / temperature))
    calibrated = -np.log(np.where(truth, probabilities, 1 - probabilities)).mean()
    found = (report["loss"], report["log_loss"])
    assert found == pytest.approx((loss, calibrated), rel=1e-4) and calibrated < loss

    images = [str(tmp_path / "many" / path) for path in paths[:3]]
    run, predictions = predict(PredictConfig(run=str(place)), images)
    for (_, _, outputs), expected in zip(predictions, probabilities):
        np.testing.assert_allclose(outputs, expected, atol=1e-4)
        names = [name for name, p in zip(results["classes"], expected) if p >= 0.5]
        assert run.answer.said(outputs, run.classes)[0] == ";".join(names)

    paths = export(ExportConfig(run=str(place), extension=PATH, format="saved_model"))
    serve = tf.saved_model.load(paths["saved_model"]).signatures["serving_default"]
    answer = serve(images=tf.constant(np.asarray(PIL.Image.open(images[0]))[None]))
    assert list(answer) == ["probabilities"]
    np.testing.assert_allclose(answer["probabilities"][0], probabilities[0], atol=1e-4)
    json.dumps(results, allow_nan=False)


def test_run_goes_on_with_it(assert_resumes, labels):
    settings = {"epochs": (0, 2), "precision": "mixed_float16", "mixup": 0.4}
    assert_resumes("multi_label.py", crashes=(3,), **settings)
