"""A run works wherever it lies and from wherever it is called; printed commands are run as they
are printed.
"""

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tl_research import experiment, export, trained
from tl_research.errors import CheckpointError, RunDirectoryError
from tl_research.run import directory
from tl_research.run.directory import quoted, resume_command

_NAME = "a  run [1]*? $HOME 'of' \"\u00fc\" & ~"


@pytest.fixture
def moved_run(finished_run, tmp_path):
    """The directory of a finished run whose name a shell and a pattern would read."""
    return shutil.move(finished_run, tmp_path / _NAME)


def _in_a_shell(command, place):
    """Runs a command as somebody pastes it elsewhere: another directory, another environment."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_printed_command_works_from_another_place_and_environment(moved_run, tmp_path):
    os.makedirs(tmp_path / "elsewhere")
    again = _in_a_shell(resume_command(moved_run), tmp_path / "elsewhere")
    assert again.returncode == 0 and again.stdout.startswith("RESULT "), again.stderr
    assert again.stderr == f"{moved_run} is finished\n"
    # A program that is a module, from a place where the package is not.
    found = _in_a_shell(resume_command(moved_run, "-m tl_research.lr_find"), tmp_path)
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: --workdir={moved_run} is a finished run; ")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_command_names_absolute_places_and_the_extension(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/opt/the env/python")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    assert resume_command("runs/x", extension="mine.py") == (
        f"'/opt/the env/python' {root}/train.py --flagfile={tmp_path}/runs/x/flags.txt "
        f"--workdir={tmp_path}/runs/x --extension={tmp_path}/mine.py"
    )


def test_what_cannot_be_printed_is_quoted_by_its_bytes(tmp_path):
    name = "tab\there\nand 'quotes' \\ \udcff"
    done = subprocess.run(["bash", "-c", f"printf %s {quoted(name)}"], capture_output=True)
    assert done.stdout == os.fsencode(name)


def test_run_that_is_not_finished_names_the_command_with_its_extension(finished_run):
    os.remove(os.path.join(finished_run, "results.json"))
    with open(os.path.join(finished_run, "flags.txt"), encoding="utf-8") as file:
        text = file.read()
    with open(os.path.join(finished_run, "flags.txt"), "w", encoding="utf-8") as file:
        file.write(f"# extension /some where/mine.py of SHA-256 {'0' * 64}\n{text}")
    with pytest.raises(RunDirectoryError) as error:
        trained.TrainedRun(finished_run)
    command = resume_command(finished_run, extension="/some where/mine.py")
    assert str(error.value).endswith(f"; go on with {command}")


def test_directory_of_seeds_is_named_as_that(finished_run, tmp_path):
    shutil.move(finished_run, tmp_path / "several" / "seed3")
    with pytest.raises(RunDirectoryError, match="several seeds, such as --run=.*/several/seed3; "):
        trained.TrainedRun(str(tmp_path / "several"))


def test_saved_model_is_exported_where_a_pattern_would_not_match(moved_run):
    paths = export.export(export.ExportConfig(run=moved_run, format=("saved_model",)))
    assert paths["saved_model"] == os.path.join(moved_run, "export", "saved_model")
    assert os.path.isfile(os.path.join(paths["saved_model"], "saved_model.pb"))


# Training on.


def _again(run, tmp_path, **settings):
    settings = {"weights": run, "epochs": (0, 0), "workdir": str(tmp_path / "next"), **settings}
    return experiment.run(dataclasses.replace(trained.TrainedRun(run).config, **settings))


def test_run_is_trained_on_from_what_it_reached(finished_run, tmp_path, capsys):
    reached = trained.TrainedRun(finished_run).results
    results = _again(finished_run, tmp_path)
    assert results["weights_sha256"] == reached["weights_sha256"]
    assert results["test"]["loss"] == pytest.approx(reached["test"]["loss"], rel=1e-5)
    assert f"--weights={finished_run}: the head too, " in capsys.readouterr().out
    config = dataclasses.replace(trained.TrainedRun(finished_run).config, epochs=(5, 5))
    with pytest.raises(CheckpointError, match=f"; to train on .*, --weights={finished_run}$"):
        directory.RunDirectory(config)


def test_of_other_classes_the_head_is_new(finished_run, tmp_path, capsys):
    photos = os.path.join(os.path.dirname(finished_run), "photos")
    shutil.rmtree(os.path.join(photos, "cat"))
    model = os.path.join(finished_run, "export", "model.keras")
    _again(finished_run, tmp_path, weights=model, data_dir=photos)
    assert "the head too" not in capsys.readouterr().out
    old, new = (trained.TrainedRun(run).load_model() for run in (finished_run, tmp_path / "next"))
    pairs = zip(old.get_layer("backbone").weights, new.get_layer("backbone").weights, strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_exported_model_is_saved_as_hdf5_too(finished_run, tmp_path):
    model = trained.TrainedRun(finished_run).load_model()
    model.save(tmp_path / "model.h5")
    again = tf.keras.models.load_model(tmp_path / "model.h5", compile=False)
    images = np.random.RandomState(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(images), again(images))
