"""A run directory from somebody else: the tools take nothing in it on trust."""

import json
import os
import resource
import zipfile

import keras
import numpy as np
import pytest

from tl_research import trained
from tl_research.data import catalog
from tl_research.errors import DataError, RunDirectoryError, UnreachableError, UserError
from tl_research.models.classifier import folded_logits


def _edited(run, name, change):
    path = os.path.join(run, name)
    with open(path) as file:
        value = json.load(file)
    change(value)
    with open(path, "w") as file:
        json.dump(value, file)


@pytest.mark.parametrize(
    "name, change",
    [
        ("results.json", lambda value: value.update(classes="abc")),
        ("results.json", lambda value: value.update(classes=[1, 2, 3])),
        ("results.json", lambda value: value.update(substitutions=[5])),
        ("results.json", lambda value: value.pop("classes")),
        ("run.json", lambda value: value.update(answer=["class"])),
        ("export/calibration.json", lambda value: value.update(temperature=-1)),
    ],
)
def test_contents_that_are_no_runs_are_refused(tiny_finished_run, name, change):
    _edited(tiny_finished_run, name, change)
    with pytest.raises(RunDirectoryError, match="cannot be read") as error:
        trained.TrainedRun(tiny_finished_run)
    assert error.value.exit_code == 8


@pytest.mark.parametrize(
    "line", ["--workdir=/elsewhere", "--extension=/evil.py", "--data_dir=gs://bucket/photos"]
)
def test_flags_that_no_run_writes_are_refused(tiny_finished_run, line):
    with open(os.path.join(tiny_finished_run, "flags.txt"), "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        trained.TrainedRun(tiny_finished_run)


@pytest.mark.parametrize(
    "name, make",
    [
        ("results.json", os.mkfifo),
        ("run.json", lambda path: os.symlink("/dev/zero", path)),
        ("export/model.keras", lambda path: os.symlink(__file__, path)),
        ("split.json", lambda path: open(path, "w").truncate(1 << 40)),
        ("run.json", lambda path: open(path, "w").truncate(1 << 40)),
    ],
)
def test_links_pipes_and_endless_files_are_refused(tiny_finished_run, name, make):
    path = os.path.join(tiny_finished_run, name)
    os.remove(path)
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        trained.TrainedRun(tiny_finished_run).load_data()
    assert error.value.exit_code in (2, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10


def test_nothing_is_fetched_from_where_the_run_says_or_put_there(
    tiny_finished_run, tmp_path, monkeypatch
):
    asked = []

    def fetch(url, directory, filename, **_):
        asked.append((url, directory))
        raise UnreachableError("not now")

    monkeypatch.setattr(catalog.download, "fetch", fetch)
    path = os.path.join(tiny_finished_run, "flags.txt")
    with open(path) as file:
        lines = [line for line in file if not line.startswith(("--dataset=", "--data_dir="))]
    lines = [line for line in lines if not line.startswith("--download_dir=")]
    lines += ["--dataset=tf_flowers\n", f"--download_dir={tmp_path}/victim\n"]
    with open(path, "w") as file:
        file.writelines([*lines, "--download_base_url=https://evil.example\n"])
    with pytest.raises(DataError, match="not now"):
        trained.TrainedRun(tiny_finished_run).load_data()
    home = os.path.expanduser("~/.cache/tl_research")
    assert asked == [(catalog.ARCHIVES["tf_flowers"].url, home)]
    assert not (tmp_path / "victim").exists()
    # what the user's own run has there is read
    (tmp_path / "victim" / "tf_flowers").mkdir(parents=True)
    with pytest.raises(UserError):
        trained.TrainedRun(tiny_finished_run).load_data()
    assert len(asked) == 1


def _rewritten(path, change):
    """Writes a model file again whose config `change` has changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    layers = []

    def collect(value):
        if isinstance(value, dict):
            layers.extend([value] if "class_name" in value and "config" in value else [])
            value = list(value.values())
        for each in value if isinstance(value, list) else ():
            collect(each)

    collect(config)
    change(parts, layers)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def _units(parts, layers):
    next(layer for layer in layers if layer["class_name"] == "Dense")["config"]["units"] = 10**7


def _member(parts, layers):
    parts["assets/../../canary"] = b"x"


def _compressed(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content + b" " * (1 << 26) * (name == "config.json"))


def _of_another_run(path, padding=1):
    inputs = keras.Input((32, 32, 3))
    padded = keras.layers.ZeroPadding2D(padding)(inputs)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(padded))
    keras.Model(inputs, outputs).save(path)


_MODELS = {
    "a layer of 10^7 units": (lambda path: _rewritten(path, _units), "its layers claim 1"),
    "a tensor of 60,032^2": (lambda path: _of_another_run(path, 30_000), "computes a tensor of"),
    "another member": (lambda path: _rewritten(path, _member), "other files than"),
    "a member that unpacks to 64 MiB": (_compressed, "unpacks to more than its size"),
    "another run's": (_of_another_run, "No such layer: preprocessing"),
    "nothing": (lambda path: open(path, "w").close(), "not a zip file"),
}


@pytest.mark.parametrize("what", _MODELS)
def test_model_file_that_claims_more_than_it_holds_is_refused(tiny_finished_run, what):
    make, reason = _MODELS[what]
    make(os.path.join(tiny_finished_run, "export", "model.keras"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunDirectoryError, match=f"cannot be loaded.*{reason}"):
        trained.TrainedRun(tiny_finished_run).load_model()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10


def test_results_and_flags_of_another_run_are_refused(tiny_finished_run):
    path = os.path.join(tiny_finished_run, "flags.txt")
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("--image_size=32", "--image_size=64"))
    with pytest.raises(RunDirectoryError, match="those of another run"):
        trained.TrainedRun(tiny_finished_run).load_model()
    with open(path, "w") as file:
        file.write(text)
    _edited(tiny_finished_run, "results.json", lambda value: value["classes"].append("dog"))
    with pytest.raises(RunDirectoryError, match="those of another run"):
        trained.TrainedRun(tiny_finished_run).load_model()


def test_model_that_is_whole_is_the_one_that_keras_loads(tiny_finished_run):
    run = trained.TrainedRun(tiny_finished_run)
    path = os.path.join(tiny_finished_run, "export", "model.keras")
    images = np.random.RandomState(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = folded_logits(keras.saving.load_model(path, compile=False))(images).numpy()
    np.testing.assert_array_equal(folded_logits(run.load_model())(images).numpy(), expected)
