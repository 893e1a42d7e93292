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
from tl_research.config import Config
from tl_research.errors import CheckpointError, RunDirectoryError
from tl_research.run import directory
from tl_research.run.directory import command, quoted, resume_command, with_flags_of_run

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NAME = "a  run [1]*? $HOME 'of' \"\u00fc\" & ~"


@pytest.fixture
def moved_run(tiny_finished_run, tmp_path):
    """The directory of a finished run whose name a shell and a pattern would read."""
    return shutil.move(tiny_finished_run, tmp_path / _NAME)


def _in_a_shell(line, place):
    """Runs a command as somebody pastes it elsewhere: another directory, another environment."""
    return subprocess.run(
        ["bash", "-c", line],
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
    found = _in_a_shell(resume_command(moved_run, "lr_find"), tmp_path)
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: --workdir={moved_run} is a finished run; ")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_finished_run_on_a_terminal_ends_with_what_to_do_with_it(moved_run, on_terminal, tmp_path):
    train = [sys.executable, os.path.join(_ROOT, "train.py"), f"--workdir={moved_run}"]
    test = trained.TrainedRun(moved_run).results["test"]
    said = on_terminal(train, COLUMNS="120", NO_COLOR="1")
    right = f"{round(test['accuracy'] * test['n'])} of {test['n']} images"
    assert f"test accuracy {100 * test['accuracy']:.1f} % ({right}), 95 % interval " in said
    assert "RESULT" not in said
    lines = said.splitlines()
    predict = lines[lines.index("to predict:") + 1].strip()
    photo = os.path.join(os.path.dirname(moved_run), "trained", "photos", "ant", "00.png")
    done = _in_a_shell(predict.replace("PHOTO.jpg", quoted(photo)), tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[1].startswith(f"{photo},"), done.stderr
    with_json = on_terminal([*train, "--json"]).splitlines()
    assert with_json[-1].startswith("RESULT {")


def test_command_names_absolute_places_and_the_extension(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/opt/the env/python")
    assert resume_command("runs/x", extension="mine.py") == (
        f"'/opt/the env/python' {_ROOT}/train.py --workdir={tmp_path}/runs/x "
        f"--extension={tmp_path}/mine.py"
    )
    assert command("predict", "--run=my run") == (
        f"env PYTHONPATH={_ROOT} '/opt/the env/python' -P -m tl_research.predict '--run=my run'"
    )


def test_program_that_began_as_tl_research_is_named_so(monkeypatch, tmp_path):
    script = tmp_path / "bin" / "tl-research"
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs=1"])
    monkeypatch.setenv("PATH", "/usr/bin")  # where it is not
    assert command("lr_find", "--workdir=x") == f"{script} lr-find --workdir=x"
    monkeypatch.setenv("PATH", f"/usr/bin:{script.parent}")
    assert resume_command("/runs/x") == "tl-research train --workdir=/runs/x"


def test_directory_alone_brings_the_flags_of_its_run(finished_run, tmp_path):
    default = vars(Config())
    values = {**default, "workdir": finished_run, "json": True, "data_dir": "/moved"}
    found = with_flags_of_run(values, ["workdir", "json", "data_dir"])
    of_run = trained.TrainedRun(finished_run).config
    expected = {**vars(of_run), "workdir": finished_run, "json": True, "data_dir": "/moved"}
    assert found == expected and found["epochs"] == (2, 0) != default["epochs"]
    assert with_flags_of_run(values, ["workdir", "epochs"]) == values  # what may not change
    other = {**values, "workdir": str(tmp_path)}
    assert with_flags_of_run(other, ["workdir"]) == other  # no run is there
    (tmp_path / "flags.txt").write_text("--not_ours=1\n")
    assert with_flags_of_run(other, ["workdir"]) == other


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
    resume = resume_command(finished_run, extension="/some where/mine.py")
    assert str(error.value).endswith(f"; continue it with {resume}")


def test_directory_of_seeds_is_named_as_that(finished_run, tmp_path):
    shutil.move(finished_run, tmp_path / "several" / "seed3")
    with pytest.raises(RunDirectoryError, match="several seeds, such as --run=.*/several/seed3; "):
        trained.TrainedRun(str(tmp_path / "several"))


def test_saved_model_is_exported_where_a_pattern_would_not_match(moved_run):
    paths = export.export(export.ExportConfig(run=moved_run, format=("saved_model",)))
    assert paths["saved_model"] == os.path.join(moved_run, "export", "saved_model", "1")
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
    assert f"--weights={finished_run}: its head is used too, " in capsys.readouterr().out
    config = dataclasses.replace(trained.TrainedRun(finished_run).config, epochs=(5, 5))
    with pytest.raises(CheckpointError, match=f"; to train on .*, --weights={finished_run}$"):
        directory.RunDirectory(config)


def test_of_other_classes_the_head_is_new(finished_run, tmp_path, capsys):
    photos = os.path.join(os.path.dirname(finished_run), "photos")
    shutil.rmtree(os.path.join(photos, "cat"))
    model = os.path.join(finished_run, "export", "model.keras")
    _again(finished_run, tmp_path, weights=model, data_dir=photos)
    assert "with its head" not in capsys.readouterr().out
    old, new = (trained.TrainedRun(run).load_model() for run in (finished_run, tmp_path / "next"))
    pairs = zip(old.get_layer("backbone").weights, new.get_layer("backbone").weights, strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_exported_model_is_saved_as_hdf5_too(finished_run, tmp_path):
    model = trained.TrainedRun(finished_run).load_model()
    model.save(tmp_path / "model.h5")
    again = tf.keras.models.load_model(tmp_path / "model.h5", compile=False)
    images = np.random.RandomState(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(images), again(images))
