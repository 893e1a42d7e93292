"""What the code must not do with things from strangers, and which artefacts it must refuse."""

import functools
import hashlib
import json
import os
import pickle
import re

import pytest

from tl_research import flagfile
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.run import checkpoints
from tl_research.run.directory import RunDirectory

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FORBIDDEN = {
    r"saving\.load_model\(": {"tl_research/artefacts.py", "tl_research/trained.py"},
    r"pickle": {"tl_research/models/efficientnet_lite.py"},
    (
        r"custom_objects|safe_mode|enable_unsafe_deserialization|layers\.Lambda|allow_pickle"
        r"|np\.load\("
    ): set(),
    r"\beval\(|\bexec\(|os\.system|shell=True|__import__|yaml|marshal|shelve": set(),
    r"extractall|extract_archive|unpack_archive": set(),
    r"0\.0\.0\.0|bind_all|verify=False|CERT_NONE|_create_unverified_context": set(),
    # what describes a cluster; what decides how libraries compute; what Keras and matplotlib read
    # when imported; what the terminal can show
    r"os\.environ\b(?!\.setdefault)": {
        "tl_research/cluster.py",
        "tl_research/run/environment.py",
        "tl_research/quiet.py",
        "tl_research/cli.py",
        "tl_research/progress_bar.py",
        "tl_research/reporting/terminal.py",
    },
    # a clock that jumps, and times of files, decide nothing
    r"time\.time\(|getmtime|st_mtime|st_ctime": set(),
    r"\.cache\(": set(),  # a data set's file cache locks the next run out after a kill
}


@pytest.mark.parametrize("pattern", _FORBIDDEN)
def test_names_that_open_a_door_stand_nowhere_else(pattern):
    files = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.join(_ROOT, "tl_research"))
        for name in names
        if name.endswith(".py")
    ] + [os.path.join(_ROOT, "train.py")]
    found = set()
    for path in files:
        with open(path) as file:
            if re.search(pattern, file.read()):
                found.add(os.path.relpath(path, _ROOT))
    assert found <= _FORBIDDEN[pattern]
    assert len(files) > 30


def test_tensorboard_is_never_told_to_listen_to_the_network():
    for name in (
        "README.md",
        *(
            os.path.join("benchmarks", name)
            for name in os.listdir(os.path.join(_ROOT, "benchmarks"))
        ),
    ):
        if name.endswith((".md", ".py")):
            with open(os.path.join(_ROOT, name)) as file:
                assert not re.search(r"--bind_all|--host[ =]0\.0\.0\.0", file.read())


# Hostile artefacts that no other test has: weights are in models/, archives in data/.

_SECRET = "the-secret-of-another-file"  # stands in a file that nothing may read


class _Payload:
    """Pickles to a call of `os.system`."""

    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


def _flag_files(secret, folder):
    return {
        "flag file with a profile": f"--run_with_profiling\n--profile_file={folder}/canary\n",
        "flag file that names another": f"--flagfile={secret}\n",
        "flag file that is a FIFO": os.mkfifo,
        "flag file that is a link to a device": functools.partial(os.symlink, "/dev/zero"),
    }


def _runs(secret, folder):
    link = functools.partial(functools.partial, os.symlink)
    return {
        "run with its lock linked outside": {".lock": link(secret)},
        "run with its checkpoints linked outside": {"checkpoints": link(folder)},
        "run with a link in its export": {"run.json": "{}", "export": {"a": link(secret)}},
        "run whose results are a pipe": {"run.json": "{}", "results.json": os.mkfifo},
        "run with results of no run": {"run.json": "{}", "results.json": '{"test": 5}'},
        "run with nested results": {"run.json": "{}", "results.json": "[" * 100_000},
    }


def _make(what, path):
    """Makes a file of a text or of bytes, a folder of a dict, or whatever a function makes."""
    if callable(what):
        what(path)
    elif isinstance(what, dict):
        os.makedirs(path)
        for name, part in what.items():
            _make(part, f"{path}/{name}")
    else:
        with open(path, "wb") as file:
            file.write(what if isinstance(what, bytes) else what.encode())


def _checkpoints(secret, pickled):
    secrets = {"../secret": {"size": 1, "sha256": ""}}
    made = {
        "that names ../secret": _checkpoint(files=secrets, offset=64),
        "with objects": _checkpoint(arrays=pickled, dtype="|O"),
        "with a pickle as state": _checkpoint(state=pickled),
        "of 100,000 nested lists": _checkpoint(manifest=b"[" * 100_000),
        "with a number of 100,000 digits": _checkpoint(
            state=b'{"global_step": ' + b"9" * 100_000 + b"}"
        ),
        "with a negative offset": _checkpoint(offset=-64),
        "with a shape of 2^62": _checkpoint(shape=[1 << 31, 1 << 31]),
        "that is a link to a secret": _checkpoint()
        | {"state.json": functools.partial(os.symlink, secret)},
        "with a FIFO": _checkpoint() | {"state.json": os.mkfifo},
        "of 4 TB": _checkpoint()
        | {"arrays.bin": lambda path: (_make(b"", path), os.truncate(path, 1 << 42))},
    }
    return {f"checkpoint {what}": {"step-00000009": of} for what, of in made.items()}


def _checkpoint(arrays=bytes(64), state=b'{"global_step": 9}', manifest=None, files=None, **entry):
    """Returns a checkpoint of step 9 for `_make`, whole but for what is given.

    Args:
        arrays, state, manifest: Contents of these files.
        files: More files in the manifest.
        entry: Changes of the manifest's entry of its one array.
    """
    contents = {"arrays.bin": arrays, "state.json": state}
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    array = {"dtype": "<f4", "shape": [4], "offset": 0, **entry}
    said = {"arrays": {"variables/x": array}, "files": {**listed, **(files or {})}}
    manifest = manifest or json.dumps(said).encode()
    contents["manifest.json"] = hashlib.sha256(manifest).hexdigest().encode() + b"\n" + manifest
    return contents


@pytest.mark.parametrize("kind", ["checkpoint", "flagfile", "run"])
def test_hostile_artefacts_are_refused(tmp_path, kind):
    folder, secret = str(tmp_path), tmp_path / "secret"
    secret.write_text(_SECRET)
    artefacts, use = {
        "checkpoint": (
            _checkpoints(str(secret), pickle.dumps(_Payload(f"touch {tmp_path}/canary"))),
            lambda path: checkpoints.load_newest(path, 1 << 26),
        ),
        "flagfile": (
            _flag_files(str(secret), folder),
            lambda path: flagfile.expand([f"--flagfile={path}"], {"seed"}),
        ),
        "run": (
            _runs(str(secret), folder),
            lambda path: RunDirectory(Config(dataset="directory", data_dir="photos", workdir=path)),
        ),
    }[kind]
    flags = Config(dataset="directory", data_dir="photos").to_flags()
    for number, (name, what) in enumerate(artefacts.items()):
        path = str(tmp_path / "place" / str(number))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _make({"flags.txt": flags, **what} if kind == "run" else what, path)
        with pytest.raises(UserError) as error:
            use(path)
        assert _SECRET not in str(error.value), name
    assert len(artefacts) >= 4 and sorted(os.listdir(tmp_path)) == ["place", "secret"]
    assert secret.read_text() == _SECRET


@pytest.mark.parametrize("name", ["; touch canary #", "$(touch canary)", "a\n\x1b[2J=\u202e"])
def test_name_of_a_class_is_nothing_but_a_name(tmp_path, monkeypatch, write_images, name):
    from tl_research.data import dataset

    photos = write_images(tmp_path / "photos", classes=(name, "other"), count=6, size=8)
    monkeypatch.chdir(tmp_path)
    config = Config(dataset="directory", data_dir=photos, workdir="run", image_size=16)
    with RunDirectory(config) as directory:
        data = dataset.load(config, directory)
    assert set(data.classes) == {name, "other"} and len(data.train) == 8
    assert sorted(os.listdir(tmp_path)) == ["photos", "run"]
