"""Runs of `train.py` that are really killed, and a writer that ends or fails at each of its file
operations.
"""

import contextlib
import functools
import itertools
import json
import os
import types

import fault_forks
import numpy as np
import pytest

from tl_research import files
from tl_research.errors import StorageError
from tl_research.locks import Lock
from tl_research.run import checkpoints
from tl_research.run.directory import paths_below

_KILLS = r"""
import json, signal, sys
import fault_injection, fault_lab

# as the program has them when it forks
fault_injection.program.cli.define_flags(fault_injection.Settings)
flags = ["--epochs=1,2", "--deterministic"]
lab, run = fault_injection.Lab(fault_injection.Settings(), sys.argv[1], flags), f"{sys.argv[1]}/run"
cases = []
for point in [("save", 7, 0.0), ("export", 1, 0.0)]:  # in the second phase, and after the last step
    cases.append(lab.interrupted(run, "live", signal.SIGKILL, point))
    cases[-1]["reached"] = fault_lab.newest_step(run)
cases[-1] = lab.resumed(run, "live", cases[-1])
print(json.dumps(cases))
"""


def test_deterministic_run_that_is_killed_twice_ends_as_the_unbroken_one(run_script, tmp_path):
    killed = json.loads(run_script(_KILLS, tmp_path).splitlines()[-1])
    assert [case["code"] for case in killed] == [-9] * 2
    assert not [case for case in killed if "failed" in case]
    places = [case["sent in"].split("/") for case in killed]
    assert places == [["run", "finetune", "save"], ["run", "export"]]
    assert 5 < killed[0]["reached"] < killed[1]["reached"] == 15  # 3 epochs of 5 steps
    assert killed[1]["resumed from"] == 15


# The writer alone.

_OPERATIONS = "mkdir open close fsync replace unlink rmdir remove listdir scandir"


class _Operations:
    """Counts the file operations of one save; at one of them calls `act` instead of going on.

    Args:
        save: The number of the save, from 1; None counts those of none.
        operation: The number of the operation in it, from 0.
        act: Called with the operation's name.

    Attributes:
        names: Of the operations so far.
    """

    def __init__(self, save, operation=None, act=None):
        self.names, self._active = [], False
        self._operation, self._act = operation, act
        for name in _OPERATIONS.split():
            setattr(os, name, self._counted(name, getattr(os, name)))
        files.open, saves = self._open, itertools.count(1)

        @contextlib.contextmanager
        def counting(*_):
            self._active = next(saves) == save
            try:
                yield
            finally:
                self._active = False

        fault_forks.around(checkpoints, "save", counting)

    def _counted(self, name, function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            if self._active:
                self.names.append(name)
                if len(self.names) - 1 == self._operation:
                    self._act(name)
            return function(*args, **kwargs)

        return counted

    @contextlib.contextmanager
    def _open(self, *args, **kwargs):
        with self._counted("create", open)(*args, **kwargs) as file:
            yield (
                types.SimpleNamespace(
                    write=self._counted("write", file.write),
                    flush=self._counted("flush", file.flush),
                    fileno=file.fileno,
                    close=file.close,
                )
                if self._active
                else file
            )


def _save(directory, step):
    checkpoints.save(
        directory, {"global_step": step}, {"x": np.full(1000, step, np.float32), "y": np.zeros(3)}
    )


def _in_operations(directory, operation, act):
    """Saves step 3, with `act` at one of its file operations, in a fork.

    Returns (exit code, names of the operations).
    """
    log = f"{directory}.log"

    def body():
        Lock(f"{directory}.lock")  # notes whose files are left, as that of a run does
        operations = _Operations(1, operation, act)
        try:
            checkpoints.save(
                directory, {"global_step": 3}, {"x": np.full(1000, 3, np.float32), "y": np.zeros(3)}
            )
        except StorageError:
            return 9
        finally:
            os.write(1, "\n".join(operations.names).encode())  # print goes where pytest wants it

    code = fault_forks.in_fork(body, log)
    with open(log) as file:
        return code, file.read().split()


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("count") / "checkpoints")
    _save(directory, 1)
    _save(directory, 2)
    code, names = _in_operations(directory, None, None)
    assert (
        code == 0
        and {"mkdir", "create", "write", "fsync", "replace", "unlink", "rmdir"} <= set(names)
        and len(names) > 25
    )
    return names


@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_every_file_operation_of_a_save_may_be_the_last(tmp_path, operations, mode, capsys):
    found = []
    for number, name in enumerate(operations):
        directory = str(tmp_path / str(number))
        _save(directory, 1)
        _save(directory, 2)

        def act(name):
            if mode == "kill":
                os.kill(os.getpid(), 9)
            raise OSError(28, "No space left on device")

        code, _ = _in_operations(directory, number, act)
        assert code == -9 if mode == "kill" else code in (0, 9), (number, name)
        with contextlib.closing(Lock(f"{directory}.lock")) as lock:
            lock.remove_leftovers(paths_below(directory))
        state, arrays = checkpoints.load_newest(directory)
        # the one before, or the new one
        assert capsys.readouterr().err == "" and (arrays["x"] == state["global_step"]).all()
        found.append(state["global_step"])
        assert not [
            entry
            for entry in os.listdir(directory)
            if not entry.startswith("step-") or len(entry) != 13
        ]
        _save(directory, 4)
        assert checkpoints.load_newest(directory)[0] == {"global_step": 4}
    assert (
        set(found) == {2, 3} and found == sorted(found) if mode == "kill" else set(found) <= {2, 3}
    )
