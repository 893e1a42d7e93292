"""What the code must not do with things from strangers, and which artefacts it must refuse."""

import os
import re

import pytest

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
    # TF_CONFIG; what decides how libraries compute; what Keras and matplotlib read when imported;
    # what the terminal can show
    r"os\.environ\b(?!\.setdefault)": {
        "tl_research/workers.py",
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


@pytest.mark.parametrize("kind", ["checkpoint", "flagfile", "run"])
def test_hostile_artefacts_are_refused(tmp_path, kind):
    import fault_inputs

    from tl_research import flagfile
    from tl_research.config import Config
    from tl_research.errors import UserError
    from tl_research.run import checkpoints
    from tl_research.run.directory import RunDirectory

    use = {
        "checkpoint": lambda path: checkpoints.load_newest(path, 1 << 26),
        "flagfile": lambda path: flagfile.expand([f"--flagfile={path}"], {"seed"}),
        "run": lambda path: RunDirectory(
            Config(dataset="directory", data_dir="photos", workdir=path)
        ),
    }[kind]
    secret = tmp_path / "secret"
    secret.write_text(fault_inputs.SECRET)
    artefacts = {
        name: make
        for name, (of, make) in fault_inputs.artefacts(
            str(secret), f"touch {tmp_path}/canary"
        ).items()
        if of == kind
    }
    for number, (name, make) in enumerate(artefacts.items()):
        path = str(tmp_path / "place" / str(number))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        make(path)
        with pytest.raises(UserError) as error:
            use(path)
        assert fault_inputs.SECRET not in str(error.value), name
    assert (
        len(artefacts) >= 3
        and sorted(os.listdir(tmp_path)) == ["place", "secret"]
        and secret.read_text() == fault_inputs.SECRET
    )
