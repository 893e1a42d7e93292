"""The directory of one run: found or made, locked, and checked against the flags.

Imports no TensorFlow.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from tl_research import __version__
from tl_research.config import LATEST, Config
from tl_research.errors import CheckpointError, RunDirectoryError, UserError, to_stderr
from tl_research.extension import Extension, package_sha256
from tl_research.files import (
    Json,
    make_folders,
    read_text,
    rename,
    set_aside,
    storage_errors,
    sync,
    sync_all,
    write_atomically,
)
from tl_research.locks import Held, Lock
from tl_research.run.recorded import read_json, read_results

_LOCK = ".lock"
# Files that may be in a directory before a run: our own and those of operating systems.
_NOBODYS = re.compile(
    r"\.lock(\.held)?|flags\.txt\.tmp-[\da-f-]+|lost\+found|\.DS_Store|Thumbs\.db|desktop\.ini"
    r"|\.ipynb_checkpoints"
)
# Files left by a run that fails before training.
_OF_A_START = {".lock", ".lock.held", "flags.txt", "bad_images.csv", "duplicates.csv", "split.json"}


class Directory:
    """A directory whose files are written atomically.

    Args:
        path: Its path.
    """

    def __init__(self, path: str):
        self.path = path

    def file(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def write_text(self, name: str, text: str) -> None:
        write_atomically(self.file(name), text)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")


class RunDirectory(Directory):
    """An open, locked run directory.

    Args:
        config: The settings; `config.workdir` is the directory, or a new one in `runs/` is made.
        extension: The parts that replace the package's own. A resumed run must have the same ones,
            and the same sources of the package. None for tools on a finished run.

    Attributes:
        path: The directory.
        results: The contents of `results.json` if the run is finished, else None.

    Raises:
        RunDirectoryError: If another process uses it, or it has files but is not a run.
        CheckpointError: If it has a run with other settings that may not change.
        StorageError: If it cannot be made or written.
    """

    def __init__(self, config: Config, extension: Extension | None = None):
        self._extension = extension
        self.path = config.workdir or "runs"
        there = bool(config.workdir) and os.path.isdir(self.path)
        self._may_rename = not (config.workdir or config.name)
        with storage_errors(self.path):
            try:
                self._set_old_run_aside(config)
                self._is_new = not (config.workdir and os.path.isdir(self.path))
                self.path = config.workdir or make_new(config)
                make_folders(self.path)
                there = True
                self._check_entries()
                self._lock = self._locked()
                self._lock.remove_leftovers(paths_below(self.path))
            except FileNotFoundError as error:
                if not there:
                    raise
                raise RunDirectoryError(
                    f"run directory {self.path} was renamed by another process meanwhile; "
                    "expected one run in a directory; wait for it or choose another --workdir"
                ) from error
        try:
            self.results = self._check_contents(config)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        # an interrupted start is resumed with its flags
        if kind and issubclass(kind, Exception) and self._is_new:
            self._remove_start()
        self._lock.close()

    def _remove_start(self):
        """Removes the directory of a run that has not begun, unless it lists bad images."""
        bad_images = self.file("bad_images.csv")
        if self._has_begun():
            return
        if os.path.exists(bad_images) and read_text(bad_images).count("\n") > 1:
            return
        with contextlib.suppress(OSError):
            for name in _OF_A_START & set(os.listdir(self.path)):
                os.remove(self.file(name))
            os.rmdir(self.path)
            if self._may_rename:
                os.rmdir(os.path.dirname(self.path))

    def _check_entries(self):
        """Raises RunDirectoryError if the directory has files that are not a run's."""
        if not self._is_run() and not all(map(_NOBODYS.fullmatch, os.listdir(self.path))):
            raise RunDirectoryError(
                f"--workdir={self.path} holds files but no run; expected an empty directory or a "
                "run of this program; choose another"
            )
        check_kinds("workdir", self.path)

    def _is_run(self):
        """Returns whether the directory is a run, or an attempt that failed before training."""
        if not os.path.isfile(self.file("flags.txt")):
            return False
        is_empty = not os.path.getsize(self.file("flags.txt"))  # after a power loss
        is_attempt = os.path.exists(self.file(_LOCK)) and _config_of(self.file("flags.txt"))
        return bool(self._has_begun() or is_empty or is_attempt)

    def _has_begun(self):
        return any(map(os.path.exists, map(self.file, ("run.json", "checkpoints"))))

    def _check_contents(self, config):
        """Returns the results of a finished run, or None; writes the flags of a new one."""
        if self._is_run() and self._has_begun():
            self._update_flags(config)
            return read_results(self.file("results.json"))
        # Flags and split of an attempt that failed before training are not binding.
        if os.path.exists(self.file("split.json")):
            os.remove(self.file("split.json"))
        self.write_text("flags.txt", self._flags(config))
        return None

    def _flags(self, config):
        """Returns the text of `flags.txt`: hashes of the code as comments, then the settings."""
        if self._extension is None:
            return config.to_flags()
        lines = [f"# package {__version__} of SHA-256 {package_sha256()}"]
        if self._extension.sha256:
            lines.append(f"# extension {self._extension.file} of SHA-256 {self._extension.sha256}")
        return "\n".join([*lines, config.to_flags()])

    def name_after(self, config: Config, images: str | None, backbone: str) -> None:
        """Renames a directory, unless the user named it, after the images and backbone in effect,
        and writes its name to `runs/latest`.

        Args:
            config: The settings that were asked for.
            images: What replaces the images, if anything does.
            backbone: The backbone in effect.
        """
        name = _described(config, images, backbone)
        with storage_errors(self.path):
            if self._may_rename and name not in self.path:
                paths = _numbered(f"{os.path.basename(self.path)[:15]}-{name}")  # same start time
                path = next(path for path in paths if not os.path.exists(path))
                rename(self.path, path)
                self.path = path
            is_beside = os.path.dirname(os.path.abspath(self.path)) == os.path.abspath("runs")
            if is_beside and not (os.path.isdir(LATEST) or os.path.islink(LATEST)):
                write_atomically(LATEST, f"{os.path.basename(self.path)}\n")

    def finish(self, summary: Json) -> None:
        """Writes `results.json` after everything else is on the disk: a run with it is complete."""
        with storage_errors(self.path):
            sync_all(self.path)
        self.write_json("results.json", summary)

    def read_json(self, name: str) -> Any:
        """Returns the contents of a JSON file, or None if there is none.

        Raises:
            CheckpointError: If it is damaged.
        """
        return read_json(self.file(name))

    def identity(self, config: Config) -> list[str]:
        """Returns lines that a checkpoint and its run must share: the settings that may not change,
        and the SHA-256 of the split.
        """
        lines = _fixed(self._flags(config).split("\n"))  # with the empty line that older code wrote
        with contextlib.suppress(FileNotFoundError), open(self.file("split.json"), "rb") as file:
            lines.append(f"split.json of SHA-256 {hashlib.sha256(file.read()).hexdigest()}")
        return lines

    def with_defaults(self, lines: Iterable[str]) -> list[str]:
        """Adds to the lines of an `identity` what an earlier version did not record: defaults of
        new settings, and the package's sources.
        """
        known = {re.split("[= ]", line)[0] for line in lines}
        defaults = _fixed(self._flags(Config()).splitlines())
        return sorted([*lines, *(d for d in defaults if re.split("[= ]", d)[0] not in known)])

    def _set_old_run_aside(self, config):
        if not config.workdir or config.resume != "never" or not self._is_run():
            return
        lock = self._locked()  # no other process is writing to it
        aside = set_aside(self.path.rstrip("/"), "old")
        lock.close()
        to_stderr(f"the previous run in {self.path} was renamed to {aside}")

    def _locked(self):
        try:
            return Lock(self.file(_LOCK))
        except Held as error:
            raise RunDirectoryError(
                f"run directory {self.path} is used by {error}; expected one run in a directory; "
                "wait for it or choose another --workdir"
            ) from None

    def _update_flags(self, config):
        """Checks the settings that may not change; records and prints changes of the others."""
        text, wanted = read_text(self.file("flags.txt")), self._flags(config)
        recorded = text.splitlines()
        if self._extension is None:  # the code that runs does not matter
            recorded = [line for line in recorded if not line.startswith("#")]
        self._check_fixed(self.with_defaults(_fixed(recorded)), _fixed(wanted.splitlines()))
        if self._extension is None or text == wanted:
            return
        before, after = _only_in(recorded, wanted.splitlines())
        if before or after:  # not only another order
            to_stderr(
                f"note: {self.path} continues with {after or 'no such setting'} instead of "
                f"{before or 'no such setting'}"
            )
        self.write_text("flags.txt", wanted)

    def _check_fixed(self, recorded, wanted):
        """Raises CheckpointError if lines of flags that may not change differ."""
        before, after = _only_in(recorded, wanted)
        if not (before or after):
            return
        ways = "use another --workdir or --resume=never"
        if os.path.exists(self.file("results.json")):
            ways += f"; to train on from its result, --weights={os.path.abspath(self.path)}"
        raise CheckpointError(
            f"the run in {self.path} was made with {before or 'no such setting'}, this command has "
            f"{after or 'no such setting'}; expected the same settings; {ways}"
        )


def paths_below(directory: str) -> Iterator[str]:
    """Yields the paths of everything below a directory, folders before their contents."""
    for folder, folders, names in os.walk(directory):
        yield from (f"{folder}/{name}" for name in [*folders, *names])


def check_kinds(flag: str, directory: str) -> None:
    """Raises RunDirectoryError if a directory given by a flag contains anything but files and
    folders: links lead elsewhere, pipes block.
    """
    for path in paths_below(directory):
        is_link, is_ours = os.path.islink(path), os.path.isfile(path) or os.path.isdir(path)
        if is_link or not is_ours and os.path.exists(path):  # a process may have removed it
            kind = "link" if is_link else "pipe, socket or device"
            raise RunDirectoryError(
                f"--{flag}={directory} holds the {kind} {os.path.relpath(path, directory)!a}; "
                "expected a run's own files; remove it or choose another"
            )


def _only_in(old, new):
    """Returns (lines that only `old` has, lines that only `new` has), as texts."""
    return tuple(
        " ".join(line for line in lines if line not in others)
        for lines, others in ((old, new), (new, old))
    )


def _fixed(lines):
    """Returns the lines of `flags.txt` that a resumed run must share, sorted; comments name code by
    its hash only.
    """
    fields, fixed = Config.__dataclass_fields__, []
    for line in lines:
        if line.startswith("# "):
            fixed.append(f"{line[2:].split()[0]} of SHA-256 {line.rpartition(' ')[2]}")
        elif not ((field := fields.get(line[2:].split("=")[0])) and field.metadata["may_change"]):
            fixed.append(line)
    return sorted(fixed)


def check_place(config: Config) -> None:
    """Raises UserError if the run directory is inside a directory of its images, to which its
    pictures would be added.
    """
    place = os.path.realpath(config.workdir or "runs")
    for flag in ("data_dir", "validation_dir", "test_dir"):
        folder = getattr(config, flag) and os.path.realpath(getattr(config, flag))
        if folder and os.path.commonpath([folder, place]) == folder:
            raise UserError(
                f"--workdir={config.workdir or 'runs (the default)'} lies in --{flag}={folder}; "
                "expected a run outside of its images, to which its pictures would be added; add "
                f"--workdir={quoted(os.path.join(os.path.dirname(folder), 'run'))}",
                "workdir",
            )


def words_of(program: str) -> list[str]:
    """Returns the words of a command that works from any directory and starts a program in the way
    this one was started.

    Args:
        program: `train`, or the module of a tool.
    """
    home = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    script, begun = f"{home}/train.py", os.path.abspath(sys.argv[0])
    if os.path.basename(begun) == "tl-research":
        found = os.path.realpath(shutil.which("tl-research") or "")
        is_found = found == os.path.realpath(begun)
        return ["tl-research" if is_found else begun, program.replace("_", "-")]
    python = sys.executable or "python"
    if program == "train" and os.path.isfile(script):
        return [python, script]
    words = [python, "-P", "-m", f"tl_research.{program}"]
    is_installed = home == sysconfig.get_path("purelib")  # else `-m` finds it only here
    return words if is_installed else ["env", f"PYTHONPATH={home}", *words]


def command(program: str, *arguments: str) -> str:
    """Returns the text of a command: `words_of` a program, and its arguments."""
    return " ".join(map(quoted, [*words_of(program), *arguments]))


def resume_command(path: str, program: str = "train", extension: str | None = None) -> str:
    """Returns the command that resumes an unfinished run from any directory.

    Args:
        path: The run directory.
        program: The program that resumes it, see `words_of`.
        extension: The run's `--extension`.
    """
    more = [f"--extension={os.path.abspath(extension)}"] if extension else []
    return command(program, f"--workdir={os.path.abspath(path)}", *more)


def _config_of(path):
    """Returns the `Config` in a `flags.txt`, or None if there is none of this version."""
    try:
        return Config.from_flags(read_text(path)) if os.path.isfile(path) else None
    except ValueError:  # UserError is one
        return None


def with_flags_of_run(values: Json, given: Collection[str]) -> Json:
    """Returns the settings for a run: if only settings are given that a resumed run may change, the
    others are those of the run in `workdir`.

    Args:
        values: {name: value} of all settings of `Config`.
        given: Names of those that are not defaults.
    """
    fields, workdir = Config.__dataclass_fields__, values["workdir"]
    if not workdir or not all(fields[name].metadata["may_change"] for name in given):
        return values
    config = _config_of(f"{workdir}/flags.txt")
    if not config:  # a wrong file is reported when the directory is opened
        return values
    kept = [name for name in fields if name in given or not fields[name].metadata["recorded"]]
    return vars(config) | {name: values[name] for name in kept}


def quoted(text: str) -> str:
    """Returns a text quoted for a shell, with unprintable characters as escaped bytes."""
    if text.isprintable():
        return shlex.quote(text)
    bytes_of = os.fsencode(text)
    written = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in bytes_of)
    return f"$'{''.join(written)}'"


def make_new(config: Config) -> str:
    """Makes a new directory in `runs/`, which no other process uses, and returns its path."""
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    make_folders("runs")
    for path in _numbered(config.name or f"{now}-{_described(config)}"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            sync("runs")
            break
    return path


def _numbered(name):
    """Yields paths in `runs/` with a name: as it is, then with numbers from 2."""
    for number in itertools.count(1):
        yield f"runs/{name}" if number == 1 else f"runs/{name}-{number}"


def images_of(config: Config) -> str:
    """Returns the name of a run's images: their common folder, or their data set."""
    places = [config.data_dir, config.validation_dir, config.test_dir]
    common = os.path.commonpath(list(filter(None, places)) or ["/"])
    own = config.dataset == "directory" and os.path.basename(common)
    return own or str(config.dataset)


def _described(config, images=None, backbone=None):
    """Returns a name for a run from its images and its backbone, or their replacements."""
    images = (images or images_of(config))[:80]
    return re.sub(r"[^\w.+-]+", "_", f"{images}-{backbone or config.backbone}")
