"""A checkpoint is whole or not there, and one that is damaged is never loaded."""

import os
import shutil
import tracemalloc

import numpy as np
import pytest

from tl_research.errors import CheckpointError, StorageError
from tl_research.run import checkpoints


def _arrays(step):
    random = np.random.RandomState(step)
    return {
        "variables/b": random.randn(3, 5).astype(np.float32),
        "variables/a": np.float32(step),
        "optimizer/count": np.int64(step),
        "best/flag": np.array([True, False]),
        "best/empty": np.zeros((0, 4), np.float32),
    }


def _save(directory, *steps):
    for step in steps:
        checkpoints.save(
            str(directory), {"global_step": step, "history": [0.1 + 0.2, None]}, _arrays(step)
        )


def _assert_is(loaded, step):
    state, arrays = loaded
    assert state == {"global_step": step, "history": [0.1 + 0.2, None]}
    assert arrays.keys() == _arrays(step).keys()
    for name, array in _arrays(step).items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)


def test_what_was_saved_is_loaded(tmp_path):
    _save(tmp_path / "new", 7)
    _assert_is(checkpoints.load_newest(str(tmp_path / "new")), 7)


def test_none_where_there_never_was_one(tmp_path):
    assert checkpoints.load_newest(str(tmp_path / "nowhere")) is None
    assert checkpoints.load_newest(str(tmp_path)) is None


def test_newest_is_by_step_and_two_are_kept(tmp_path):
    _save(tmp_path, 2, 99999999, 100000000)
    assert sorted(os.listdir(tmp_path)) == ["step-100000000", "step-99999999"]
    _assert_is(checkpoints.load_newest(str(tmp_path)), 100000000)


def test_same_step_is_replaced(tmp_path):
    _save(tmp_path, 1)
    checkpoints.save(str(tmp_path), {"global_step": 1}, {"x": np.ones(2)})
    state, arrays = checkpoints.load_newest(str(tmp_path))
    assert (
        state == {"global_step": 1}
        and list(arrays) == ["x"]
        and os.listdir(tmp_path) == ["step-00000001"]
    )


def test_arrays_are_copies_of_that_moment_and_big_endian_ones_are_read_back(tmp_path):
    array = np.arange(4, dtype=">f4")
    checkpoints.save(str(tmp_path), {"global_step": 0}, {"x": array, "y": array.reshape(2, 2).T})
    array[:] = 0
    _, arrays = checkpoints.load_newest(str(tmp_path))
    assert arrays["x"].tolist() == [0, 1, 2, 3] and arrays["y"].tolist() == [[0, 2], [1, 3]]


def _damage(path, random):
    """Changes one thing about a checkpoint; returns what."""
    name = random.choice(["arrays.bin", "state.json", "manifest.json"])
    file = path / name
    content = bytearray(file.read_bytes())
    kind = random.choice(["bit", "zero", "cut", "delete", "empty", "append", "swap", "mix", "more"])
    if kind == "bit":
        place = random.randint(len(content))
        content[place] ^= 1 << random.randint(8)
    elif kind == "zero":
        place = random.randint(len(content))
        content[place : place + 64] = bytes(len(content[place : place + 64]))
        if content == file.read_bytes():  # there were zeros already
            content[:64] = bytes(64)
    elif kind == "cut":
        del content[random.randint(len(content)) :]
    elif kind == "empty":
        content = b""
    elif kind == "append":
        content += b"0"
    elif kind == "swap":
        other = path / ("state.json" if name != "state.json" else "arrays.bin")
        content, swapped = other.read_bytes(), bytes(content)
        other.write_bytes(swapped)
    elif kind == "mix":  # a whole file of another step
        content = (path.with_name("step-00000005") / name).read_bytes()
    if kind == "delete":
        file.unlink()
    elif kind == "more":
        (path / f"{name}.1").write_bytes(content)
    else:
        file.write_bytes(content)
    return f"{kind} {name}"


def test_damaged_checkpoint_is_never_loaded(tmp_path, capsys, times):
    random = np.random.RandomState(0)
    for trial in range(150 * times):
        directory = tmp_path / str(trial)
        _save(directory, 5, 9)
        what = _damage(directory / "step-00000009", random)
        loaded = checkpoints.load_newest(str(directory))
        error = capsys.readouterr().err
        # a change of the manifest's white space changes nothing that it says
        if loaded[0]["global_step"] == 9:
            assert what == "bit manifest.json" and not error
            _assert_is(loaded, 9)
        else:
            _assert_is(loaded, 5)
            assert (
                error.startswith("warning: checkpoint step-00000009 is unusable (")
                and "using step-00000005" in error
            ), what
            assert sorted(os.listdir(directory)) == ["step-00000005", "step-00000009.corrupt-1"]


def test_wrong_offset_in_the_manifest_is_noticed(tmp_path, capsys):
    _save(tmp_path, 5, 9)
    manifest = tmp_path / "step-00000009" / "manifest.json"
    text = manifest.read_text()
    assert '"offset": 128' in text
    manifest.write_text(text.replace('"offset": 128', '"offset": 132'))
    _assert_is(checkpoints.load_newest(str(tmp_path)), 5)
    assert "manifest.json: checksum differs" in capsys.readouterr().err


def test_all_damaged_is_an_error_that_stays_one(tmp_path, capsys):
    _save(tmp_path, 5, 9)
    for name in os.listdir(tmp_path):
        (tmp_path / name / "state.json").write_text("")
    for _ in range(2):  # the second start must not begin at step 0 either
        with pytest.raises(
            CheckpointError,
            match="no usable checkpoint.*step-0000000.*step-0000000.*--resume=never",
        ) as error:
            checkpoints.load_newest(str(tmp_path))
        assert error.value.exit_code == 7
    assert len(os.listdir(tmp_path)) == 2


def test_checkpoint_under_another_steps_name_is_not_used(tmp_path, capsys):
    _save(tmp_path, 5)
    os.rename(tmp_path / "step-00000005", tmp_path / "step-00000006")
    with pytest.raises(CheckpointError, match="of another step"):
        checkpoints.load_newest(str(tmp_path))


def test_what_is_no_checkpoint_of_ours_is_never_removed(tmp_path):
    mine = ("step-00000009.tmp-1", "step-00000002", "step-1", "notes")
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("mine")
    _save(tmp_path, 5, 6, 7)
    _assert_is(checkpoints.load_newest(str(tmp_path)), 7)
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "step-00000006", "step-00000007"])


@pytest.mark.parametrize("operation", ["mkdir", "replace", "fsync"])
def test_failing_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, operation):
    _save(tmp_path, 5)
    real = getattr(os, operation)
    for failing_call in range(20):
        calls = []

        def fail(*args, **kwargs):
            calls.append(args)
            if len(calls) - 1 == failing_call:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, fail)
            try:
                _save(tmp_path, 9)
                if len(calls) <= failing_call:
                    break
            except StorageError as error:
                assert "could not save step 9" in str(error) and "No space left on device" in str(
                    error
                )
                assert error.exit_code == 9
        state, _ = checkpoints.load_newest(str(tmp_path))
        assert state["global_step"] in (5, 9)
        assert not [name for name in os.listdir(tmp_path) if "tmp" in name]
    assert 0 < failing_call < 19  # it failed, and then came through
    _assert_is(checkpoints.load_newest(str(tmp_path)), 9)


def test_too_little_room_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    little = type(usage)(usage.total, usage.used, 29_000_000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: little)
    checkpoints.check_room(tmp_path, 9_600_000)
    with pytest.raises(
        StorageError, match="has 29 MB free; expected room for 3 checkpoints of 10 MB"
    ) as error:
        checkpoints.check_room(tmp_path, 10_000_000)
    assert error.value.exit_code == 9


def test_saving_takes_no_second_copy_of_the_arrays(tmp_path):
    arrays = {"a": np.ones((1 << 20, 4), np.float32), "b": np.float32(2.0), "c": np.zeros((0, 3))}
    tracemalloc.start()
    checkpoints.save(str(tmp_path), {"global_step": 1}, arrays)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < arrays["a"].nbytes / 8
    _, loaded = checkpoints.load_newest(str(tmp_path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
