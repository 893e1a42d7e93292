"""`python -m tl_research.evaluate`: its numbers are those of the run, its files agree, and a
reading of the test images counts.
"""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tl_research.errors import DataError, RunDirectoryError, StorageError, UserError
from tl_research.evaluate import EvaluateConfig, evaluate
from tl_research.run.directory import RunDirectory
from tl_research.trained import TrainedRun

_CLASSES = ["ant", "bee", "cat"]


def _rows(run, side, name):
    with open(os.path.join(run, "report", side, name)) as file:
        return list(csv.DictReader(file))


def _results(run):
    with open(os.path.join(run, "results.json")) as file:
        return json.load(file)


def test_validation_report_repeats_what_selected_the_weights(tiny_finished_run, capsys):
    before = _results(tiny_finished_run)
    os.remove(
        os.path.join(tiny_finished_run, "export", "calibration.json")
    )  # as of an older version
    report = evaluate(EvaluateConfig(run=tiny_finished_run))
    (phase,) = before["phases"]
    assert report["temperature"] == 1.0
    assert report["accuracy"] == phase["val_accuracy"] and report["log_loss"] == pytest.approx(
        phase["val_loss"], rel=1e-5
    )
    # nothing was read that counts
    assert _results(tiny_finished_run) == before and "test_reads" not in report
    with open(os.path.join(tiny_finished_run, "report", "validation", "report.json")) as file:
        assert json.load(file) == report
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1].removeprefix("RESULT ")) == report
    assert f"validation: accuracy {report['accuracy']:.4f}" in out


def test_files_agree_with_each_other_and_with_the_split(tiny_finished_run, monkeypatch):
    monkeypatch.setattr("tl_research.evaluate._TOGETHER", 5)  # rows are made in parts
    report = evaluate(EvaluateConfig(run=tiny_finished_run, batch_size=7))
    predictions, mistakes = (
        _rows(tiny_finished_run, "validation", name) for name in ("predictions.csv", "mistakes.csv")
    )
    with open(os.path.join(tiny_finished_run, "split.json")) as file:
        split = {
            file["path"]: file["class"]
            for file in json.load(file)["files"]
            if file["side"] == "validation"
        }
    assert {row["path"]: row["true"] for row in predictions} == split and report["n"] == len(split)
    wrong = [row for row in predictions if row["true"] != row["predicted"]]
    assert wrong and len(mistakes) == len(wrong) == round((1 - report["accuracy"]) * len(split))
    losses = [float(row["loss"]) for row in mistakes]
    assert losses == sorted(losses, reverse=True) and {row["path"] for row in mistakes} == {
        row["path"] for row in wrong
    }
    for row in predictions:
        probabilities = {name: float(row[f"probability {name}"]) for name in _CLASSES}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["predicted"] == max(probabilities, key=probabilities.get)
        assert float(row["probability"]) == probabilities[row["predicted"]]
        assert (
            float(row["true_probability"])
            == probabilities[row["true"]]
            == pytest.approx(np.exp(-float(row["loss"])))
        )
    for row in _rows(tiny_finished_run, "validation", "confusion.csv"):
        for name in _CLASSES:
            count = sum(p["true"] == row["true"] and p["predicted"] == name for p in predictions)
            assert int(row[f"predicted {name}"]) == count
    for row in _rows(tiny_finished_run, "validation", "per_class.csv"):
        hits = sum(p["true"] == p["predicted"] == row["class"] for p in predictions)
        assert (
            float(row["recall"])
            == hits / int(row["support"])
            == report["per_class"][row["class"]]["recall"]
        )


def test_every_reading_of_the_test_images_is_counted_and_said(tiny_finished_run, capsys):
    before = _results(tiny_finished_run)
    for reads in (2, 3):
        report = evaluate(EvaluateConfig(run=tiny_finished_run, side="test"))
        assert (
            report["test_reads"] == reads
            and f"the test images have now been read {reads} times" in capsys.readouterr().out
        )
    assert (
        report["accuracy"] == before["test"]["accuracy"]
        and report["ci95"] == before["test"]["ci95"]
    )
    calibration = before["calibration"]
    assert report["temperature"] == calibration["temperature"] != 1.0
    after = [calibration[name] for name in ("ece_after", "log_loss_after")]
    found = [report[name] for name in ("expected_calibration_error", "log_loss")]
    assert found == pytest.approx(after, rel=1e-4)
    assert _results(tiny_finished_run) == {**before, "test": {**before["test"], "reads": 3}}


@pytest.mark.parametrize("wrong", ['{"temperature": 0}', '{"temperature": "1"}', "[]", "{}"])
def test_temperature_that_is_none_is_exit_8(tiny_finished_run, wrong):
    with open(os.path.join(tiny_finished_run, "export", "calibration.json"), "w") as file:
        file.write(wrong)
    with pytest.raises(RunDirectoryError, match="cannot be read") as error:
        TrainedRun(tiny_finished_run)
    assert error.value.exit_code == 8


def _photos(run):
    return os.path.join(os.path.dirname(run), "photos")


def _split_of(run, side):
    with open(os.path.join(run, "split.json")) as file:
        return [entry["path"] for entry in json.load(file)["files"] if entry["side"] == side]


def test_images_of_other_sides_may_be_gone_and_others_be_there(tiny_finished_run):
    whole = evaluate(EvaluateConfig(run=tiny_finished_run))
    for name in _split_of(tiny_finished_run, "train"):
        os.remove(os.path.join(_photos(tiny_finished_run), name))
    (added, *_) = _split_of(tiny_finished_run, "validation")
    for folder in ("ant", "aardvark"):  # a class before the others
        os.makedirs(os.path.join(_photos(tiny_finished_run), folder), exist_ok=True)
        shutil.copy(
            os.path.join(_photos(tiny_finished_run), added),
            os.path.join(_photos(tiny_finished_run), folder, "added.png"),
        )
    assert evaluate(EvaluateConfig(run=tiny_finished_run)) == whole
    os.rename(_photos(tiny_finished_run), f"{_photos(tiny_finished_run)}-moved")
    with pytest.raises(DataError, match="if the images were moved, add --data_dir=DIR, or say"):
        evaluate(EvaluateConfig(run=tiny_finished_run))
    moved = EvaluateConfig(run=tiny_finished_run, data_dir=f"{_photos(tiny_finished_run)}-moved")
    assert evaluate(moved) == whole


def test_any_folder_of_the_classes_is_evaluated_whole(
    tiny_finished_run, write_images, tmp_path, capsys
):
    folder = write_images(tmp_path / "mine", ("bee", "cat"), count=4, size=48)
    first = _split_of(tiny_finished_run, "train")[0]
    shutil.copy(
        os.path.join(_photos(tiny_finished_run), first), os.path.join(folder, "bee", "old.png")
    )
    with open(os.path.join(folder, "cat", "bad.png"), "w") as file:
        file.write("no image")
    report = evaluate(EvaluateConfig(run=tiny_finished_run, data_dir=folder))
    said = capsys.readouterr()
    assert report["n"] == 9 and report["data_dir"] == folder and report["side"] == "folder"
    assert report["of_run"] == {"train": 1, "validation": 0, "test": 0}
    assert [row["support"] for row in report["per_class"].values()] == [0, 5, 4]
    assert f"warning: 1 of the 9 images in {folder} were used in training\n" in said.err
    assert "warning: 1 image is left out: cat/bad.png\n" in said.err
    assert json.loads(said.out.splitlines()[-1].removeprefix("RESULT ")) == report
    rows = _rows(tiny_finished_run, "folder-mine", "predictions.csv")
    assert {row["path"].split("/")[0] for row in rows} == {"bee", "cat"} and len(rows) == 9
    place = os.path.join(tiny_finished_run, "report", "folder-mine")
    with open(os.path.join(place, "index.html")) as file:
        assert f"{round(9 * report['accuracy'])} of 9 images are classified" in file.read()
    assert {"confusion.png", "worst_mistakes.png"} <= set(os.listdir(place))


def test_classes_that_the_run_does_not_know_are_exit_2(tiny_finished_run, write_images, tmp_path):
    folder = write_images(tmp_path / "mine", ("bee", "dog", "emu"), count=1)
    with pytest.raises(
        DataError, match=r"has 2 classes that .* know \(dog, emu\); expected some of ant, bee, cat"
    ) as error:
        evaluate(EvaluateConfig(run=tiny_finished_run, data_dir=folder))
    assert error.value.exit_code == 2


def test_training_images_are_a_side(tiny_finished_run):
    report = evaluate(EvaluateConfig(run=tiny_finished_run, side="train"))
    assert report["n"] == len(_split_of(tiny_finished_run, "train")) and "test_reads" not in report


def test_several_runs_stand_side_by_side(tiny_finished_run, tmp_path, capsys):
    other = str(tmp_path / "trained" / "other")
    shutil.copytree(tiny_finished_run, other)
    with open(os.path.join(other, "export", "calibration.json"), "w") as file:
        json.dump({"temperature": 1.0}, file)
    found = evaluate(EvaluateConfig(run=[tiny_finished_run, other]))["runs"]
    assert list(found) == [tiny_finished_run, other]
    *_, first, _, second, third, result = capsys.readouterr().out.splitlines()
    assert first == "| run | images | accuracy | log_loss | 95 % interval |"
    assert json.loads(result.removeprefix("RESULT "))["runs"] == found
    for line, name, path in ((second, "run", tiny_finished_run), (third, "other", other)):
        report = found[path]
        low, high = (f"{bound:.3f}" for bound in report["ci95"])
        numbers = [f"{report[key]:.4f}" for key in ("accuracy", "log_loss")]
        assert line == f"| {' | '.join([name, str(report['n']), *numbers, f'{low}-{high}'])} |"
    with pytest.raises(UserError, match="with 2 runs, which would write the same files"):
        evaluate(EvaluateConfig(run=[tiny_finished_run, other], output_dir=str(tmp_path / "out")))


def test_run_that_cannot_be_written_is_evaluated_elsewhere(
    tiny_finished_run, read_only, tmp_path, capsys
):
    before = _results(tiny_finished_run)
    read_only(tiny_finished_run)
    with pytest.raises(StorageError, match="expected a writable run; add --output_dir=DIR$"):
        evaluate(EvaluateConfig(run=tiny_finished_run))
    elsewhere = str(tmp_path / "elsewhere")
    report = evaluate(EvaluateConfig(run=tiny_finished_run, side="test", output_dir=elsewhere))
    assert report["accuracy"] == before["test"]["accuracy"] and report["test_reads"] == 2
    assert "warning: this reading could not be counted in the run: " in capsys.readouterr().err
    with open(os.path.join(elsewhere, "report", "test", "report.json")) as file:
        assert json.load(file) == report
    assert _results(tiny_finished_run) == before


def test_reading_of_test_images_counts_wherever_its_report_goes(tiny_finished_run, tmp_path):
    where = {"output_dir": str(tmp_path / "elsewhere")}
    assert evaluate(EvaluateConfig(run=tiny_finished_run, side="test", **where))["test_reads"] == 2
    assert _results(tiny_finished_run)["test"]["reads"] == 2
    assert not os.path.exists(os.path.join(tiny_finished_run, "report", "test"))


def test_changed_images_are_an_error_and_count_no_reading(tiny_finished_run):
    os.remove(os.path.join(_photos(tiny_finished_run), _split_of(tiny_finished_run, "test")[0]))
    with pytest.raises(DataError, match="split.json does not match the images: 1 missing"):
        evaluate(EvaluateConfig(run=tiny_finished_run, side="test"))
    assert _results(tiny_finished_run)["test"]["reads"] == 1


@pytest.mark.parametrize(
    "file, message",
    [
        ("flags.txt", "is not a run"),
        ("results.json", "is not finished"),
        ("split.json", "has no split.json"),
        ("export/model.keras", "cannot be loaded"),
    ],
)
def test_what_is_no_finished_run_is_exit_8(tiny_finished_run, file, message):
    os.remove(os.path.join(tiny_finished_run, file))
    with pytest.raises(RunDirectoryError, match=message) as error:
        evaluate(EvaluateConfig(run=tiny_finished_run))
    assert error.value.exit_code == 8


def test_run_of_another_version_and_one_in_use_are_exit_8(tiny_finished_run):
    with (
        RunDirectory(TrainedRun(tiny_finished_run).config),
        pytest.raises(RunDirectoryError, match="is used by pid"),
    ):
        evaluate(EvaluateConfig(run=tiny_finished_run))
    with open(os.path.join(tiny_finished_run, "flags.txt"), "a") as file:
        file.write("--of_the_future=1\n")
    with pytest.raises(RunDirectoryError, match="--of_the_future=1"):
        evaluate(EvaluateConfig(run=tiny_finished_run))


@pytest.mark.parametrize(
    "tool, arguments, code, message",
    [
        ("evaluate", [], 1, "--run is missing"),
        ("evaluate", ["--run=x", "--side=all"], 1, "--side=all"),
        ("evaluate", ["--run=x", "photo.jpg"], 1, "'photo.jpg' is not a flag"),
        ("predict", ["--run=x"], 1, "no images are named"),
        ("predict", ["--run=x", "/nowhere.jpg"], 2, "1 of 1 paths do not exist (/nowhere.jpg)"),
        ("predict", ["--run=x", "--batch_size=0", "."], 1, "--batch_size=0"),
        ("evaluate", ["--helpshort"], 0, None),
        ("predict", ["--helpshort"], 0, None),
        ("export", ["--run=x", "--format=tf"], 1, "expected one of saved_model, litert, onnx"),
        ("export", ["--helpshort"], 0, None),
    ],
)
def test_command_line_answers_without_tensorflow(tool, arguments, code, message):
    program = (
        "import runpy, sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; sys.argv = "
        f"['x', *{arguments!r}]; runpy.run_module('tl_research.{tool}', run_name='__main__', "
        "alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if message is None:
        assert done.returncode == code and f"python -m tl_research.{tool}" in done.stdout
        assert "\n  --run=PATH                    directory of a finished run; " in done.stdout
    else:
        assert (
            done.returncode == code
            and done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1
        )
        assert message in done.stderr and not done.stdout
