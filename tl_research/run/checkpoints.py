"""Checkpoints: data only, and either complete or absent.

A checkpoint is a directory `step-<global step>` with `arrays.bin` (raw little-endian arrays in name
order), `state.json` and, written last, `manifest.json`: a line with the SHA-256 of the rest, then
the offset of each array and the size and SHA-256 of both files. It is written under a temporary
name, synced and renamed, so that a crash leaves the old or the new one.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping

import numpy as np

from tl_research.errors import CheckpointError, StorageError, to_stderr
from tl_research.files import (
    Json,
    make_folders,
    remove_own_leftovers,
    rename,
    set_aside,
    storage_errors,
    sync,
    temporary_name,
    write_synced,
)

_ALIGNMENT = 64
_KEPT = 2  # the newest, and the previous one in case the newest is damaged
_FILES = ["arrays.bin", "manifest.json", "state.json"]


def step_name(step: int) -> str:
    """Returns the name of the checkpoint at a global step."""
    return f"step-{step:08d}"


def check_room(directory: str, num_bytes: int) -> None:
    """Raises StorageError if the disk has no room for the checkpoints that are kept, and one more.

    Args:
        directory: Where they are written.
        num_bytes: The size of one.
    """
    free, needed = shutil.disk_usage(directory).free, (_KEPT + 1) * num_bytes
    if free < needed:
        raise StorageError(
            f"{directory} has {free / 1e6:.0f} MB free; expected room for {_KEPT + 1} checkpoints "
            f"of {num_bytes / 1e6:.0f} MB; free some or choose another --workdir"
        )


def save(directory: str, state: Json, arrays: Mapping[str, np.ndarray]) -> None:
    """Commits a checkpoint and then removes old ones.

    Args:
        directory: The directory of the run's checkpoints.
        state: A JSON-serializable dict with the int `global_step`.
        arrays: {name: NumPy array}.

    Raises:
        StorageError: If it cannot be written; earlier checkpoints are unchanged.
    """
    final = f"{directory}/{step_name(state['global_step'])}"
    temporary, trash = temporary_name(final), temporary_name(final, "trash")
    try:
        make_folders(directory)
        os.mkdir(temporary)
        entries, chunks = _laid_out(arrays)
        files = {
            "arrays.bin": write_synced(f"{temporary}/arrays.bin", chunks),
            "state.json": write_synced(f"{temporary}/state.json", [json.dumps(state).encode()]),
        }
        manifest = json.dumps({"arrays": entries, "files": files}).encode()
        write_synced(
            f"{temporary}/manifest.json",
            [hashlib.sha256(manifest).hexdigest().encode(), b"\n", manifest],
        )
        sync(temporary)
        if os.path.exists(
            final
        ):  # the start of a phase has the same step as the end of the previous one
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
            "again, the previous checkpoint is complete"
        ) from error
    with storage_errors(directory):
        remove_own_leftovers(directory)
        for name in step_names(directory)[:-_KEPT]:
            _remove(f"{directory}/{name}")


def _laid_out(arrays):
    """Returns (the entries of `manifest.json` for the arrays, the chunks of `arrays.bin`)."""
    entries, offset = {}, 0
    chunks: list[bytes | memoryview] = []
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        padding = -offset % _ALIGNMENT
        # not copied, since these arrays are already a second copy of the state
        chunks += [bytes(padding), array.reshape(-1).view(np.uint8).data]
        offset += padding
        entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    return entries, chunks


def _remove(path):
    """Removes a checkpoint; an interruption leaves nothing that looks like one."""
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
    """Returns (state, arrays) of a checkpoint, which is not trusted: no code in it is run, no other
    file is read.

    Raises:
        ValueError: If anything differs from its manifest.
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
        dtype, count = np.dtype(entry["dtype"]), math.prod(entry["shape"])
        values = np.frombuffer(contents["arrays.bin"], dtype, count, entry["offset"])
        arrays[name] = values.reshape(entry["shape"])
    return json.loads(contents["state.json"]), arrays


def _contents(path, max_bytes):
    """Returns {name: bytes} of the files of a checkpoint; raises ValueError if there are others."""
    files = sorted(os.scandir(path), key=lambda entry: entry.name)
    if [entry.name for entry in files] != _FILES or not all(
        entry.is_file(follow_symlinks=False) for entry in files
    ):
        raise ValueError(f"expected the files {', '.join(_FILES)} and no others")
    if sum(entry.stat().st_size for entry in files) > max_bytes:
        raise ValueError(f"larger than the {max_bytes:,} bytes that this run can need")
    return {entry.name: pathlib.Path(entry).read_bytes() for entry in files}


def load_newest(
    directory: str, max_bytes: int = 1 << 40
) -> tuple[Json, dict[str, np.ndarray]] | None:
    """Returns (state, arrays) of the newest usable checkpoint, or None if there never was one.

    A damaged one is reported on stderr and renamed to `<name>.corrupt-N`, and the previous one is
    used.

    Args:
        directory: The directory of the run's checkpoints.
        max_bytes: The largest size of a checkpoint of this run; larger ones are not read.

    Raises:
        CheckpointError: If there are checkpoints and none can be used.
    """
    names, reasons = step_names(directory), []
    while names:
        name = names.pop()
        path = f"{directory}/{name}"
        try:
            state, arrays = _read(path, max_bytes)
            if name != step_name(state["global_step"]):
                raise ValueError("state.json: of another step")
            return state, arrays
        except Exception as error:  # it can be wrong in every way
            reasons.append(f"{name} ({error})")
            before = f"; using {names[-1]}" if names else ""
            to_stderr(f"warning: checkpoint {name} is unusable ({error}){before}")
            set_aside(path, "corrupt")
    there = os.listdir(directory) if os.path.isdir(directory) else []
    if damaged := sorted(name for name in there if ".corrupt-" in name):
        raise CheckpointError(
            f"no usable checkpoint in {directory}: {', '.join(reasons or damaged)}; "
            "expected at least one; --resume=never starts over and keeps the old run"
        )
    return None
