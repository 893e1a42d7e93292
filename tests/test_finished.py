"""A finished run in Python answers as the programs do."""

import os

import pytest

from tl_research import run_of
from tl_research.errors import RunDirectoryError
from tl_research.predict import PredictConfig, predict


def test_answers_are_those_of_the_program_and_errors_are_named(tiny_finished_run, tmp_path):
    folder = os.path.join(os.path.dirname(tiny_finished_run), "photos", "bee")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    run = run_of(tiny_finished_run)
    assert run.classes == ("ant", "bee", "cat") and run.results["test"]["reads"] == 1
    *answers, broken = run.predict([folder, str(tmp_path / "broken.png")])
    _, expected = predict(PredictConfig(run=tiny_finished_run), [folder])
    for answer, (path, _, outputs) in zip(answers, expected, strict=True):
        assert answer["outputs"] == pytest.approx(dict(zip(run.classes, outputs)), rel=1e-5)
        assert (answer["path"], answer["class"]) == (path, run.classes[outputs.argmax()])
        assert answer["probability"] == pytest.approx(outputs.max(), rel=1e-5)
    assert set(broken) == {"path", "error"} and broken["path"].endswith("broken.png")
    report = run.evaluate("validation", output_dir=str(tmp_path / "there"))
    assert report["side"] == "validation" and os.listdir(tmp_path / "there") == ["report"]
    with pytest.raises(RunDirectoryError, match="is not a run"):
        run_of(tmp_path)
