"""Checkpoints that are data only and are either whole or not there.

A checkpoint is a directory `step-<global step>`: `arrays.bin` (raw little-endian arrays, one after the other, in name
order), `state.json`, and, written last, `manifest.json` with each array's place, the size and SHA-256 of both files, and its own
SHA-256. It is written under a temporary name beside its place, synced and renamed, so that a crash leaves the old or the
new one.
"""

import hashlib
import json
import os
import re
import shutil
import sys

import numpy as np

from tl_research.errors import CheckpointError
from tl_research.errors import StorageError
from tl_research.files import sync
from tl_research.files import write_synced

_ALIGNMENT = 64
_KEPT = 2  # the newest, and the one before in case the newest is damaged


def save(directory, state, arrays):
    """Commits a checkpoint and then removes the ones that are no longer needed.

    Args:
        directory: Where the checkpoints of the run are.
        state: A JSON-serializable dict with the int `global_step`.
        arrays: {name: NumPy array}.

    Raises:
        StorageError: If it cannot be written; the checkpoints before it are untouched.
    """
    final = os.path.join(directory, f"step-{state['global_step']:08d}")
    temporary = f"{final}.tmp-{os.getpid()}"
    try:
        os.makedirs(directory, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        os.mkdir(temporary)
        entries, chunks, offset = {}, [], 0
        for name in sorted(arrays):
            array = np.asarray(arrays[name], order="C")
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            padding = -offset % _ALIGNMENT
            chunks += [bytes(padding), array.tobytes()]
            offset += padding
            entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
            offset += array.nbytes
        files = {"arrays.bin": write_synced(os.path.join(temporary, "arrays.bin"), chunks),
                 "state.json": write_synced(os.path.join(temporary, "state.json"), [json.dumps(state).encode()])}
        manifest = {"arrays": entries, "files": files}
        manifest["sha256"] = _manifest_sha256(manifest)
        write_synced(os.path.join(temporary, "manifest.json"), [json.dumps(manifest, indent=1).encode()])
        sync(temporary)
        if os.path.exists(final):  # a phase that starts where another ended has the same step
            os.replace(final, f"{final}.trash-{os.getpid()}")
        os.replace(temporary, final)
        sync(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(array.nbytes for array in arrays.values())
        raise StorageError(f"could not save step {state['global_step']} in {directory}: {error.strerror}; expected room "
                           f"for {size / 1e6:.0f} MB; free some and start again, the checkpoint before it is whole") from error
    clean(directory)
    for name in _complete(directory)[:-_KEPT]:
        _remove(os.path.join(directory, name))


def _remove(path):
    """Removes a checkpoint so that an interruption leaves nothing that looks like one."""
    trash = f"{path}.trash-{os.getpid()}"
    os.replace(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def clean(directory):
    """Removes what an interrupted save or removal left behind."""
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        if ".tmp-" in name or ".trash-" in name:
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def _complete(directory):
    """Returns the names of the checkpoints, oldest first."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted((name for name in names if re.fullmatch(r"step-\d+", name)), key=lambda name: int(name[5:]))


def _manifest_sha256(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read(path):
    """Returns (state, arrays) of one checkpoint.

    Raises:
        ValueError: If anything about it is not as its manifest says.
    """
    with open(os.path.join(path, "manifest.json"), "rb") as file:
        manifest = json.loads(file.read())
    if manifest.pop("sha256") != _manifest_sha256(manifest):  # a wrong offset or dtype would load other numbers
        raise ValueError("manifest.json: checksum differs")
    contents = {}
    for name in ("arrays.bin", "state.json"):
        expected = manifest["files"][name]
        if os.path.getsize(os.path.join(path, name)) != expected["size"]:
            raise ValueError(f"{name}: size differs")
        with open(os.path.join(path, name), "rb") as file:
            contents[name] = file.read()
        if hashlib.sha256(contents[name]).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name}: checksum differs")
    arrays = {}
    for name, entry in manifest["arrays"].items():
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        arrays[name] = np.frombuffer(contents["arrays.bin"], dtype, count, entry["offset"]).reshape(entry["shape"])
    return json.loads(contents["state.json"]), arrays


def load_newest(directory):
    """Returns (state, arrays) of the newest usable checkpoint, or None if there never was one.

    A damaged one is named on stderr, set aside as `<name>.corrupt-N`, and the one before it is used.

    Raises:
        CheckpointError: If there are checkpoints and none can be used.
    """
    clean(directory)
    names, reasons = _complete(directory), []
    for index, name in reversed(list(enumerate(names))):
        path = os.path.join(directory, name)
        try:
            state, arrays = _read(path)
            if name != f"step-{state['global_step']:08d}":
                raise ValueError("state.json: of another step")
            return state, arrays
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reasons.append(f"{name} ({error})")
            before = f"; using {names[index - 1]}" if index else ""
            print(f"warning: checkpoint {name} unusable ({error}){before}", file=sys.stderr)
            number = 1
            while os.path.exists(f"{path}.corrupt-{number}"):
                number += 1
            os.replace(path, f"{path}.corrupt-{number}")
    set_aside = [name for name in (os.listdir(directory) if os.path.isdir(directory) else []) if ".corrupt-" in name]
    if set_aside:
        raise CheckpointError(f"no usable checkpoint in {directory}: {', '.join(reasons or sorted(set_aside))}; expected "
                              "at least one; --resume=never starts anew and keeps the old run")
    return None
