"""A run directory belongs to one run and one process; whatever is no run of ours is left alone."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from tl_research.config import Config
from tl_research.errors import CheckpointError, RunDirectoryError, StorageError
from tl_research.run.directory import RunDirectory


def _open(path, **settings):
    return RunDirectory(Config(**{"dataset": "drawn_flowers", "workdir": str(path), **settings}))


def _begin(path, **settings):
    """Leaves an unfinished run that has begun."""
    with _open(path, **settings) as directory:
        directory.write_json("run.json", {"substitutions": []})


def test_imports_no_tensorflow():
    code = "import sys, tl_research.run.directory; print('tensorflow' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_new_directory_holds_its_flags_and_no_results(tmp_path):
    with _open(tmp_path / "a" / "b", seed=3) as directory:
        assert directory.results is None
        assert (tmp_path / "a" / "b" / "flags.txt").read_text() == Config(
            dataset="drawn_flowers", seed=3
        ).to_flags()


def test_without_workdir_every_run_gets_a_new_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(dataset="drawn_flowers", backbone="EfficientNetLite0")
    with (
        RunDirectory(config) as first,
        RunDirectory(config) as second,
        RunDirectory(config) as third,
    ):
        paths = [first.path, second.path, third.path]
    assert len(set(paths)) == 3 and sorted(os.listdir("runs")) == sorted(
        map(os.path.basename, paths)
    )
    assert all("-drawn_flowers-EfficientNetLite0" in path for path in paths)


def test_second_process_is_refused_and_told_who_has_it(tmp_path):
    code = (
        "import sys; from tl_research.config import Config; from "
        "tl_research.run.directory import RunDirectory\ndirectory = "
        f"RunDirectory(Config(dataset='drawn_flowers', workdir={str(tmp_path)!r}))\nprint('open', "
        "flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "open\n"
        for resume in ("auto", "never"):
            with pytest.raises(
                RunDirectoryError, match=f"used by pid {owner.pid} on host .* since 20"
            ) as error:
                _open(tmp_path, resume=resume)
            assert error.value.exit_code == 8
        owner.kill()
    with _open(tmp_path):  # a killed owner leaves no lock
        pass
    assert "flags.txt" in os.listdir(tmp_path)


def test_closing_gives_the_lock_back(tmp_path):
    with _open(tmp_path), pytest.raises(RunDirectoryError, match="used by"):
        _open(tmp_path)
    with _open(tmp_path):
        pass


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_directory_of_something_else_is_left_alone(tmp_path, resume):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    with pytest.raises(RunDirectoryError, match="holds files but no run"):
        _open(tmp_path / "photos", resume=resume)
    assert os.listdir(tmp_path) == ["photos"] and os.listdir(tmp_path / "photos") == ["cat.jpg"]
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "precious"


def test_lock_and_temporary_files_alone_count_as_empty(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / "flags.txt.tmp-99").write_text("--see")
    with _open(tmp_path):
        assert os.path.exists(tmp_path / "flags.txt")


def test_path_under_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (
        tmp_path / "file",
        tmp_path / "file" / "run",
        tmp_path / ("x" * 300),
        "/proc/no_such_directory",
    ):
        with pytest.raises(
            StorageError, match="could not write .* choose another --workdir"
        ) as error:
            _open(path)
        assert error.value.exit_code == 9


# Every flag stands in one of these two: another value at a resume is accepted, or refused.
_MAY_CHANGE = {
    "data_dir": "/elsewhere",
    "validation_dir": "/elsewhere",
    "test_dir": "/elsewhere",
    "download_dir": "/elsewhere",
    "download_base_url": "https://mirror",
    "cache_pixels": 1,
    "steps_per_call": 2,
    "checkpoint_every_steps": 3,
    "checkpoint_every_seconds": 4.0,
    "min_test_accuracy": 0.5,
    "resume": "auto",
    "workdir": None,
    "extension": "own.py",  # its contents may not, see tests/training/test_resume.py
    "profile_steps": "2:3",
    "data_audit": "off",
    "seeds": (1, 2),
    "seeds_split": "same",
    "distribute": "mirrored",
}
_MAY_NOT_CHANGE = {
    "time_limit": 60.0,
    "dataset": "tf_flowers",
    "if_offline": "embedded",
    "on_bad_image": "skip",
    "leave_out": "/doubtful.csv",
    "split": (0.6, 0.2, 0.2),
    "split_seed": 1,
    "image_size": 64,
    "max_image_pixels": 100,
    "augment": "none",
    "augment_views": 3,
    "feature_cache": "off",
    "cache_bytes": 1,
    "cache_dtype": "float16",
    "backbone": "VGG16",
    "weights": "none",
    "dropout": 0.1,
    "batchnorm": "training",
    "fold_batchnorm": "off",
    "phases": ("a", "b"),
    "epochs": (8, 11),
    "unfreeze": ("0%", "20%"),
    "learning_rate": (1e-3, 1e-4),
    "patience": (0, 4),
    "select_by": "val_accuracy",
    "backbone_lr_multiplier": 0.5,
    "layer_decay": 0.5,
    "lr_multiplier": ("a=2",),
    "optimizer": "sgd",
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "label_smoothing": 0.2,
    "lr_schedule": ("cosine",),
    "warmup": (0.1,),
    "batch_size": 64,
    "seed": 1,
    "precision": "float32",
    "xla": "on",
    "deterministic": True,
    "preprocessing": "caffe",
    "head_init": "lda",
    "mixup": 0.2,
    "class_share": ("a=0.5",),
    "class_weights": "balanced",
    "ema_decay": 0.9,
}
_TOGETHER = {
    "nesterov": {"optimizer": "sgd"},
    "weight_decay": {"optimizer": "adamw"},
    "validation_dir": {"data_dir": "/d"},
    "test_dir": {"data_dir": "/d"},
}


@pytest.mark.parametrize("name", Config.__dataclass_fields__)
def test_every_flag_is_known_to_be_safe_or_unsafe_at_a_resume(tmp_path, name):
    _begin(tmp_path, **_TOGETHER.get(name, {}))
    assert (name in _MAY_CHANGE) != (name in _MAY_NOT_CHANGE)
    if name in ("workdir", "resume"):
        return
    changed = {**_TOGETHER.get(name, {}), name: {**_MAY_CHANGE, **_MAY_NOT_CHANGE}[name]}
    if name in _MAY_CHANGE:
        with _open(tmp_path, **changed):
            return
    with pytest.raises(CheckpointError, match=f"--{name}=") as error:
        _open(tmp_path, **changed)
    assert error.value.exit_code == 7


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"batch_size": 64}, "--batch_size=32, flags now say --batch_size=64"),
        ({"lr_multiplier": ("a=2",)}, "fewer flags, flags now say --lr_multiplier=a=2"),
        ({"epochs": (8, 11)}, "--epochs=8,10, flags now say --epochs=8,11"),
    ],
)
def test_flags_that_may_not_change_are_named(tmp_path, settings, named):
    _begin(tmp_path)
    with pytest.raises(CheckpointError) as error:
        _open(tmp_path, **settings)
    assert named in str(error.value) and error.value.exit_code == 7
    with _open(tmp_path) as directory:  # it is free again, and still that run
        assert directory.read_json("run.json") == {"substitutions": []}


def test_a_setting_that_an_earlier_version_did_not_have_was_as_by_default(tmp_path):
    _begin(tmp_path)
    flags = (tmp_path / "flags.txt").read_text().splitlines()
    (tmp_path / "flags.txt").write_text(
        "\n".join(line for line in flags if not line.startswith("--clip_norm=")) + "\n"
    )
    with _open(tmp_path):
        pass
    with pytest.raises(CheckpointError, match="--clip_norm=0.0, flags now say --clip_norm=1.0"):
        _open(tmp_path, clip_norm=1.0)


@pytest.mark.parametrize("name", ["results.json", "run.json"])
@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000])
def test_damaged_json_is_one_line(tmp_path, name, text):
    _begin(tmp_path)
    (tmp_path / name).write_text(text)
    with (
        pytest.raises(CheckpointError, match=f"{name} is damaged"),
        _open(tmp_path) as directory,
    ):
        directory.read_json(name)


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "outside").write_text("precious")
    for number, name in enumerate((".lock", "checkpoints", "train", "flags.txt")):
        _begin(tmp_path / str(number))
        if (tmp_path / str(number) / name).exists():
            (tmp_path / str(number) / name).unlink()
        (tmp_path / str(number) / name).symlink_to(tmp_path / "outside")
        with pytest.raises(RunDirectoryError, match="holds the link"):
            _open(tmp_path / str(number))
    assert (tmp_path / "outside").read_text() == "precious"


def test_what_a_killed_process_left_is_removed(tmp_path):
    _begin(tmp_path)
    (tmp_path / "export").mkdir()
    for name in ("results.json.tmp-1", "export/model.tmp-1.keras", "metrics.csv.tmp-77"):
        (tmp_path / name).write_text("half")
    with _open(tmp_path):
        assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


def test_directory_that_is_set_aside_meanwhile_is_refused(tmp_path, monkeypatch):
    _begin(tmp_path / "run")
    flock = fcntl.flock

    def late(file, operation):
        os.rename(tmp_path / "run", tmp_path / "moved")
        os.mkdir(tmp_path / "run")
        (tmp_path / "run" / ".lock").touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunDirectoryError, match="set aside by another process"):
        _open(tmp_path / "run")


def test_attempt_that_never_began_binds_nobody(tmp_path):
    """The message about a bad image says to add --on_bad_image=skip: then that must be possible."""
    with _open(tmp_path) as directory:
        directory.write_text("split.json", "{}")
        directory.write_text("bad_images.csv", "path,reason\n")
    with _open(tmp_path, on_bad_image="skip"):
        assert "--on_bad_image=skip\n" in (tmp_path / "flags.txt").read_text()
        assert not os.path.exists(tmp_path / "split.json")  # of other settings, perhaps


def test_finished_run_brings_its_results(tmp_path):
    _begin(tmp_path)
    (tmp_path / "results.json").write_text('{"test": {"accuracy": 0.5}}')
    with _open(tmp_path) as directory:
        assert directory.results == {"test": {"accuracy": 0.5}}


def test_never_sets_the_old_run_aside(tmp_path, capsys):
    _begin(tmp_path / "run", seed=1)
    _begin(tmp_path / "run", seed=2, resume="never")
    with _open(f"{tmp_path}/run/", seed=3, resume="never") as directory:
        assert directory.read_json("run.json") is None
    assert sorted(os.listdir(tmp_path)) == ["run", "run.old-1", "run.old-2"]
    for name, seed in (("run.old-1", 1), ("run.old-2", 2), ("run", 3)):
        assert f"--seed={seed}\n" in (tmp_path / name / "flags.txt").read_text()
    assert "is now" in capsys.readouterr().err


def test_json_is_written_whole_and_without_nan(tmp_path):
    with _open(tmp_path) as directory:
        directory.write_json("x.json", {"a": [1, None]})
        assert (
            json.loads((tmp_path / "x.json").read_text())
            == {"a": [1, None]}
            == directory.read_json("x.json")
        )
        with pytest.raises(ValueError):
            directory.write_json("x.json", {"a": float("nan")})
        assert (
            directory.read_json("x.json") == {"a": [1, None]}
            and directory.read_json("y.json") is None
        )
    assert not [name for name in os.listdir(tmp_path) if ".tmp-" in name]


def test_full_disk_is_a_storage_error_that_leaves_the_old_file(tmp_path, monkeypatch):
    with _open(tmp_path) as directory:
        directory.write_text("x.txt", "old")

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="could not write .*x.txt: No space left on device"):
            directory.write_text("x.txt", "new")
        assert (tmp_path / "x.txt").read_text() == "old"
