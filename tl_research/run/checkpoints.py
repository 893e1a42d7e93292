"""Checkpoints that are data only and are either whole or not there.

A checkpoint is a directory `step-<global step>`: `arrays.bin` (raw little-endian arrays, one after
the other, in name order), `state.json`, and, written last, `manifest.json`: a line with the SHA-256
of the rest, then each array's place and the size and SHA-256 of both files. It is written under a
temporary name beside its place, synced and renamed, so that a crash leaves the old or the new one.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from tl_research.errors import CheckpointError, StorageError
from tl_research.files import (
    make_folders,
    remove_own_leftovers,
    rename,
    storage_errors,
    sync,
    temporary_name,
    write_synced,
)

_ALIGNMENT = 64
_KEPT = 2  # the newest, and the one before in case the newest is damaged
_FILES = ["arrays.bin", "manifest.json", "state.json"]


def step_name(step: int) -> str:
    """Returns the name of the checkpoint of a global step."""
    return f"step-{step:08d}"


def check_room(directory: str, num_bytes: int) -> None:
    """Raises StorageError if checkpoints of this size, of which there may be one more than are
    kept, do not fit on the disk.
    """
    free, needed = shutil.disk_usage(directory).free, (_KEPT + 1) * num_bytes
    if free < needed:
        raise StorageError(
            f"{directory} has {free / 1e6:.0f} MB free; expected room for {_KEPT + 1} checkpoints "
            f"of {num_bytes / 1e6:.0f} MB; free some or choose another --workdir"
        )


def save(directory: str, state: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Commits a checkpoint and then removes the ones that are no longer needed.

    Args:
        directory: Where the checkpoints of the run are.
        state: A JSON-serializable dict with the int `global_step`.
        arrays: {name: NumPy array}.

    Raises:
        StorageError: If it cannot be written; the checkpoints before it are untouched.
    """
    final = os.path.join(directory, step_name(state["global_step"]))
    temporary, trash = temporary_name(final), temporary_name(final, "trash")
    try:
        make_folders(directory)
        os.mkdir(temporary)
        entries, chunks = _laid_out(arrays)
        files = {
            "arrays.bin": write_synced(os.path.join(temporary, "arrays.bin"), chunks),
            "state.json": write_synced(
                os.path.join(temporary, "state.json"), [json.dumps(state).encode()]
            ),
        }
        manifest = json.dumps({"arrays": entries, "files": files}).encode()
        write_synced(
            os.path.join(temporary, "manifest.json"),
            [hashlib.sha256(manifest).hexdigest().encode(), b"\n", manifest],
        )
        sync(temporary)
        if os.path.exists(final):  # a phase that starts where another ended has the same step
            rename(final, trash)
        os.replace(temporary, final)
        sync(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.exists(trash) and not os.path.exists(final):
            with contextlib.suppress(OSError):
                rename(trash, final)
        size = sum(array.nbytes for array in arrays.values())
        raise StorageError(
            f"could not save step {state['global_step']} in {directory}: {error.strerror}; "
            f"expected a writable place with room for {size / 1e6:.0f} MB; free some and start "
            "again, the checkpoint before it is whole"
        ) from error
    with storage_errors(directory):
        remove_own_leftovers(directory)
        for name in step_names(directory)[:-_KEPT]:
            _remove(os.path.join(directory, name))


def _laid_out(arrays):
    """Returns (what `manifest.json` has of each array, the chunks of `arrays.bin`)."""
    entries, offset = {}, 0
    chunks: list[bytes | memoryview] = []
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        padding = -offset % _ALIGNMENT
        # not copied: all of the state is in memory once more already
        chunks += [bytes(padding), array.reshape(-1).view(np.uint8).data]
        offset += padding
        entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    return entries, chunks


def _remove(path):
    """Removes a checkpoint, if it is one, so that an interruption leaves nothing like it."""
    if sorted(os.listdir(path)) == _FILES:
        trash = temporary_name(path, "trash")
        rename(path, trash)
        shutil.rmtree(trash, ignore_errors=True)


def step_names(directory: str) -> list[str]:
    """Returns the names of the checkpoints, oldest first."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(
        (name for name in names if re.fullmatch(r"step-\d{8,}", name)),
        key=lambda name: int(name[5:]),
    )


def _read(path, max_bytes):
    """Returns (state, arrays) of one checkpoint, which may come from anyone: nothing in it is run,
    or read outside it.

    Raises:
        ValueError: If anything about it is not as its manifest says.
    """
    contents = _contents(path, max_bytes)
    digest, _, text = contents["manifest.json"].partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("manifest.json: checksum differs")
    manifest = json.loads(text)
    for name in ("arrays.bin", "state.json"):
        expected = manifest["files"][name]
        if len(contents[name]) != expected["size"]:
            raise ValueError(f"{name}: size differs")
        if hashlib.sha256(contents[name]).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name}: checksum differs")
    arrays = {}
    for name, entry in manifest["arrays"].items():
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        arrays[name] = np.frombuffer(contents["arrays.bin"], dtype, count, entry["offset"]).reshape(
            entry["shape"]
        )
    return json.loads(contents["state.json"]), arrays


def _contents(path, max_bytes):
    """Returns {name: bytes} of the files of a checkpoint; raises ValueError if it has others."""
    files = sorted(os.scandir(path), key=lambda entry: entry.name)
    if [entry.name for entry in files] != _FILES or not all(
        entry.is_file(follow_symlinks=False) for entry in files
    ):
        raise ValueError(f"expected the files {', '.join(_FILES)} and no others")
    if sum(entry.stat().st_size for entry in files) > max_bytes:
        raise ValueError(f"larger than the {max_bytes:,} bytes that this run can need")
    contents = {}
    for entry in files:
        with open(entry.path, "rb") as file:
            contents[entry.name] = file.read()
    return contents


def load_newest(
    directory: str, max_bytes: int = 1 << 40
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns (state, arrays) of the newest usable checkpoint, or None if there never was one.

    A damaged one is named on stderr, set aside as `<name>.corrupt-N`, and the one before it is
    used.

    Args:
        directory: Where the checkpoints of the run are.
        max_bytes: What a checkpoint of this run can have; a larger one is not read.

    Raises:
        CheckpointError: If there are checkpoints and none can be used.
    """
    names, reasons = step_names(directory), []
    for index, name in reversed(list(enumerate(names))):
        path = os.path.join(directory, name)
        try:
            state, arrays = _read(path, max_bytes)
            if name != step_name(state["global_step"]):
                raise ValueError("state.json: of another step")
            return state, arrays
        except Exception as error:  # a file from anyone can be wrong in every way
            reasons.append(f"{name} ({error})")
            before = f"; using {names[index - 1]}" if index else ""
            print(f"warning: checkpoint {name} unusable ({error}){before}", file=sys.stderr)
            _set_aside(path)
    there = os.listdir(directory) if os.path.isdir(directory) else []
    if damaged := sorted(name for name in there if ".corrupt-" in name):
        raise CheckpointError(
            f"no usable checkpoint in {directory}: {', '.join(reasons or damaged)}; "
            "expected at least one; --resume=never starts anew and keeps the old run"
        )
    return None


def _set_aside(path):
    """Gives a damaged checkpoint a name that no other has."""
    number = 1
    while os.path.exists(f"{path}.corrupt-{number}"):
        number += 1
    rename(path, f"{path}.corrupt-{number}")
