"""A run directory belongs to one run and one process; whatever is no run of ours is left alone."""

import dataclasses
import errno
import fcntl
import glob
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tl_research import files
from tl_research.config import Config, run_called
from tl_research.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    RunDirectoryError,
    StorageError,
    UserError,
)
from tl_research.run.directory import RunDirectory, check_place
from tl_research.run.recorded import read_record


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


def test_directory_is_named_after_the_images_and_the_backbone_that_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    time = r"runs/\d{8}-\d{6}-"
    config = Config(data_dir="my photos (2)", backbone="VGG16")
    with RunDirectory(config) as directory:
        assert re.fullmatch(f"{time}my_photos_2_-VGG16", directory.path)
        assert os.listdir("runs") == [os.path.basename(directory.path)]
        directory.name_after(config, None, "EfficientNetLite0")
        assert re.fullmatch(f"{time}my_photos_2_-EfficientNetLite0", directory.path)
        with pytest.raises(RunDirectoryError, match="used by"):  # the lock went with it
            RunDirectory(dataclasses.replace(config, workdir=directory.path))
        name = os.path.basename(directory.path)
        assert sorted(os.listdir("runs")) == [name, "latest"]
        assert run_called("latest") == directory.path and run_called("else") == "else"
    sides = {"data_dir": "set/train", "validation_dir": "set/val"}
    with RunDirectory(Config(dataset="directory", backbone="VGG16", **sides)) as directory:
        assert re.fullmatch(f"{time}set-VGG16", directory.path)
        directory.name_after(config, "drawn_flowers", "VGG16")
        assert re.fullmatch(f"{time}drawn_flowers-VGG16", directory.path)
    for path in ("runs/mine", "runs/mine-2"):
        with RunDirectory(Config(name="mine")) as directory:
            directory.name_after(Config(name="mine"), None, "VGG16")
            assert directory.path == run_called("latest") == path
    with _open("elsewhere") as directory:
        directory.name_after(config, None, "VGG16")
        assert directory.path == "elsewhere" and run_called("latest") == "runs/mine-2"
    os.remove("runs/latest")
    os.symlink("../elsewhere/flags.txt", "runs/latest")  # nothing is written through it
    before = (tmp_path / "elsewhere" / "flags.txt").read_text()
    with _open("runs/other") as directory:
        directory.name_after(config, None, "VGG16")
    assert (tmp_path / "elsewhere" / "flags.txt").read_text() == before
    os.remove("runs/latest")
    with _open("runs/latest") as directory:  # of somebody who calls one so
        directory.name_after(config, None, "VGG16")
    assert run_called("latest") == "runs/latest"
    (tmp_path / "latest").mkdir()
    assert run_called("latest") == "latest"


@pytest.mark.parametrize("workdir", [None, "mine"])
def test_failed_start_leaves_no_directory(tmp_path, monkeypatch, workdir):
    monkeypatch.chdir(tmp_path)
    config, header = Config(dataset="drawn_flowers", workdir=workdir), "path,reason\n"

    def fail(error, **texts):
        with pytest.raises(type(error)), RunDirectory(config) as directory:
            for name, text in texts.items():
                directory.write_text(name.replace("_csv", ".csv").replace("_json", ".json"), text)
            raise error
        return directory.path

    fail(DataError("no images"), bad_images_csv=header, duplicates_csv="", split_json="{}")
    assert os.listdir(".") == []
    # what is worth keeping, or what the message that ends it needs, stays
    begun = fail(DataError("broken"), run_json="{}")
    assert sorted(os.listdir(begun)) == [".lock", "flags.txt", "run.json"]
    shutil.rmtree(begun)
    assert "flags.txt" in os.listdir(path := fail(Interrupted("stopped", 2)))
    shutil.rmtree(path)
    path = fail(DataError("one is broken"), bad_images_csv=f"{header}a.jpg,broken\n")
    assert "bad_images.csv" in os.listdir(path)
    if workdir:  # made before
        fail(DataError("again"), bad_images_csv=header)
        assert "flags.txt" in os.listdir(path)
    shutil.rmtree(path)
    fail(DataError("no images"), notes_txt="precious")
    assert len(glob.glob("**/notes_txt", recursive=True)) == 1


def test_place_among_the_images_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    for settings in (
        {"data_dir": "."},
        {"data_dir": "..", "workdir": "ant/run"},
        {"data_dir": "/elsewhere", "test_dir": ".", "workdir": "../link"},
    ):
        with pytest.raises(UserError, match="lies in --(data|test)_dir=.* add --workdir="):
            check_place(Config(dataset="directory", **settings))
    for settings in ({"data_dir": "ant"}, {"data_dir": ".", "workdir": "../photos-run"}):
        check_place(Config(dataset="directory", **settings))
    assert os.listdir(".") == ["ant"] and os.listdir("ant") == []


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
    "cluster": "auto",
    "worker_timeout": 60.0,
    "json": True,
    "verbose": True,
    "download_base_url": "https://mirror",
    "cache_pixels": 1,
    "steps_per_call": 2,
    "checkpoint_every_steps": 3,
    "checkpoint_every_seconds": 4.0,
    "min_test_accuracy": 0.5,
    "resume": "auto",
    "workdir": None,
    "name": "mine",
    "extension": "own.py",  # its contents may not, see tests/training/test_resume.py
    "profile_steps": "2:3",
    "data_audit": "off",
    "seeds": (1, 2),
    "seeds_split": "same",
    "distribute": "mirrored",
}
_MAY_NOT_CHANGE = {
    "time_limit": 60.0,
    "shards": 2,
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
    "manifold_mixup": 0.2,
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
        ({"batch_size": 64}, "--batch_size=32, this command has --batch_size=64"),
        ({"lr_multiplier": ("a=2",)}, "no such setting, this command has --lr_multiplier=a=2"),
        ({"epochs": (8, 11)}, "--epochs=8,10, this command has --epochs=8,11"),
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
    with pytest.raises(CheckpointError, match="--clip_norm=0.0, this command has --clip_norm=1.0"):
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
    code = f"""
import os, signal
from tl_research.config import Config
from tl_research.files import temporary_name
from tl_research.run.directory import RunDirectory
directory = RunDirectory(Config(dataset="drawn_flowers", workdir={str(tmp_path)!r}))
os.mkdir(directory.file("export"))
folder = temporary_name(directory.file("export", "saved_model"))
os.mkdir(folder)
for path in ("metrics.csv", "results.json"):
    open(temporary_name(directory.file(path)), "w")
open(temporary_name(directory.file("export", "model")) + ".keras", "w")
open(os.path.join(folder, "half"), "w")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len([path for path in tmp_path.rglob("*") if ".tmp-" in path.name]) == 4
    with _open(tmp_path):
        assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


@pytest.mark.parametrize(
    "name, text",
    [
        ("results.json", "[]"),
        ("results.json", '{"test": 5}'),
        ("results.json", '{"test": {"accuracy": "high"}}'),
        ("results.json", '{"test":'),
        ("run.json", "[1]"),
        ("run.json", '{"precision": "float8"}'),
        ("run.json", '{"xla": "yes"}'),
        ("run.json", '{"versions": []}'),
    ],
)
def test_record_that_no_run_wrote_is_exit_7(tmp_path, name, text):
    _begin(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} is damaged") as error, _open(tmp_path):
        read_record(str(tmp_path / "run.json"))
    assert error.value.exit_code == 7


def test_run_that_cannot_be_renamed_is_set_aside_all_the_same(tmp_path, monkeypatch):
    """In a container, what is in a lower layer cannot: moby/moby#25409."""
    _begin(tmp_path / "run", seed=1)
    replace = os.replace

    def fails(source, target):
        if os.path.isdir(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    _begin(tmp_path / "run", seed=2, resume="never")
    assert sorted(os.listdir(tmp_path)) == ["run", "run.old-1"]
    assert "--seed=1\n" in (tmp_path / "run.old-1" / "flags.txt").read_text()


_MINE = (
    "letter.tmp-1",
    "mine.tmp-old/deep/results.json.tmp-77",
    "export/model.tmp-1-0123456789abcdef.keras",
    "checkpoints/step-00000001.trash-1/notes",
    "train/events.out.tfevents.1.mine.v2",
    "train/events.out.tfevents.1.mine.v2.tmp-1",
)


@pytest.mark.parametrize("kind", ["no run", "run"])
def test_what_we_did_not_write_is_never_removed(tmp_path, kind):
    if kind == "run":
        _begin(tmp_path)
    for name in _MINE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("precious")
    for _ in range(2):
        if kind == "run":
            with _open(tmp_path):
                pass
        else:
            with pytest.raises(RunDirectoryError, match="holds files but no run"):
                _open(tmp_path)
    assert [(tmp_path / name).read_text() for name in _MINE] == ["precious"] * len(_MINE)


def test_flags_and_split_of_somebody_else_stay(tmp_path):
    """A folder with a flag file of one's own is no attempt of ours, whatever that is called."""
    mine = {"flags.txt": "--seed=7\n", "split.json": "{}"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    for resume in ("auto", "never"):
        with pytest.raises(RunDirectoryError, match="holds files but no run"):
            _open(tmp_path, resume=resume)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == mine


def test_what_systems_put_into_an_empty_folder_counts_as_nothing(tmp_path):
    for name in ("lost+found", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / ".DS_Store").write_text("Finder")
    with _open(tmp_path):
        pass
    assert {".DS_Store", "lost+found", ".ipynb_checkpoints"} < set(os.listdir(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks_is_told_of_once_and_works(tmp_path, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    files.say_once.cache_clear()
    with _open(tmp_path):
        held = (tmp_path / ".lock.held").read_text()
        assert held.startswith(f"pid {os.getpid()} on host ")
        with pytest.raises(RunDirectoryError, match=f"used by pid {os.getpid()} on host") as error:
            _open(tmp_path)
        assert error.value.exit_code == 8 and ".lock.held)" in str(error.value)
    assert capsys.readouterr().err.count("has no locks") == 1
    assert not (tmp_path / ".lock.held").exists()
    # Of a process that was killed, also where another has its number now; then of another machine.
    pid, born = os.getpid(), held.rpartition("born ")[2].strip()
    for said in (held.replace(born, "earlier"), held.replace(f"pid {pid} ", "pid 4194305 ")):
        (tmp_path / ".lock.held").write_text(said)
        with _open(tmp_path):
            assert (tmp_path / ".lock.held").read_text() != said
    (tmp_path / ".lock.held").write_text(held.replace(" on host ", " on host other-"))
    with pytest.raises(RunDirectoryError, match="on host other-.*if that has ended, remove"):
        _open(tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_file_system_that_cannot_sync_is_told_of_once(tmp_path, monkeypatch, capsys, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    files.say_once.cache_clear()
    if number == errno.EIO:  # a disk that fails is no file system that cannot
        with pytest.raises(StorageError, match="Input/output error"):
            _begin(tmp_path / "a" / "run")
        return
    _begin(tmp_path / "a" / "run")
    assert capsys.readouterr().err.count("does not say when files are on the disk") == 1
    assert (tmp_path / "a" / "run" / "run.json").exists()


def test_links_pipes_and_their_like_are_refused_at_any_depth(tmp_path):
    (tmp_path / "outside").write_text("precious")
    makers = {
        "export/model.keras": lambda path: path.symlink_to(tmp_path / "outside"),
        "report/validation/report.json": lambda path: path.symlink_to("/dev/zero"),
        "results.json": os.mkfifo,
        "checkpoints/step-00000001/state.json": os.mkfifo,
        "train/plugins": lambda path: path.symlink_to(tmp_path),
        "a\n\x1b[2J": lambda path: path.symlink_to("nowhere"),
    }
    for number, (name, make) in enumerate(makers.items()):
        path = tmp_path / str(number) / name
        _begin(tmp_path / str(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        with pytest.raises(RunDirectoryError, match="holds the (link|pipe)") as error:
            _open(tmp_path / str(number))
        assert str(error.value).isprintable()
    assert (tmp_path / "outside").read_text() == "precious"


def test_directory_that_is_set_aside_meanwhile_is_refused(tmp_path, monkeypatch):
    _begin(tmp_path / "run")
    flock = fcntl.flock

    def late(file, operation):
        os.rename(tmp_path / "run", tmp_path / "moved")
        os.mkdir(tmp_path / "run")
        (tmp_path / "run" / ".lock").touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunDirectoryError, match="renamed by another process"):
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
    said = capsys.readouterr().err
    for number in (1, 2):
        assert f" was renamed to {tmp_path}/run.old-{number}\n" in said


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
