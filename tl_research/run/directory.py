"""The directory of one run: found or made, locked, and checked against the flags.

Imports no TensorFlow.
"""

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import stat
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tl_research import __version__
from tl_research.config import LATEST, Config
from tl_research.errors import CheckpointError, RunDirectoryError, UserError
from tl_research.extension import package_sha256
from tl_research.files import (
    make_folders,
    read_text,
    rename,
    storage_errors,
    sync,
    sync_all,
    write_atomically,
)
from tl_research.locks import Held, Lock
from tl_research.run.recorded import read_json, read_results

if TYPE_CHECKING:  # it imports this module
    from tl_research.extension import Extension

_LOCK = ".lock"
# What does not make a directory somebody's: of ours before there is a run, and of systems.
_NOBODYS = re.compile(
    r"\.lock(\.held)?|flags\.txt\.tmp-[\da-f-]+|lost\+found|\.DS_Store|Thumbs\.db|desktop\.ini"
    r"|\.ipynb_checkpoints"
)
# What a run leaves that ends before it begins.
_OF_A_START = {".lock", ".lock.held", "flags.txt", "bad_images.csv", "duplicates.csv", "split.json"}


class Directory:
    """A directory whose files are written whole.

    Args:
        path: Where it is.
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
        config: The settings; `config.workdir` names the directory, or one is made in `runs/`.
        extension: The parts that replace the package's own: they and the package's sources are
            part of what a resumed run has to share. None for what only works on a finished run.

    Attributes:
        path: The directory.
        results: The contents of `results.json` if the run is finished, else None.

    Raises:
        RunDirectoryError: If another process uses it, or it holds files and is not a run.
        CheckpointError: If it holds a run with other settings that may not change.
        StorageError: If it cannot be made or written.
    """

    def __init__(self, config: Config, extension: "Extension | None" = None):
        self._extension = extension
        self.path = config.workdir or "runs"
        there = bool(config.workdir) and os.path.isdir(self.path)
        self._may_rename = not (config.workdir or config.name)
        with storage_errors(self.path):
            try:
                if config.workdir and config.resume == "never":
                    self._set_old_run_aside()
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
                    f"run directory {self.path} was set aside by another process meanwhile; "
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
        # an interrupted start goes on with the flags in it
        if kind and issubclass(kind, Exception) and self._is_new:
            self._remove_start()
        self._lock.close()

    def _remove_start(self):
        """Removes the directory of a run that has not begun, unless it lists bad images."""
        bad_images = self.file("bad_images.csv")
        if (
            self._has_begun()
            or os.path.exists(bad_images)
            and read_text(bad_images).count("\n") > 1
        ):
            return
        with contextlib.suppress(OSError):
            for name in _OF_A_START & set(os.listdir(self.path)):
                os.remove(self.file(name))
            os.rmdir(self.path)
            if self._may_rename:
                os.rmdir(os.path.dirname(self.path))

    def _check_entries(self):
        """Raises RunDirectoryError if the directory holds what no run of ours put there."""
        if not self._is_run() and not all(map(_NOBODYS.fullmatch, os.listdir(self.path))):
            raise RunDirectoryError(
                f"--workdir={self.path} holds files but no run; expected an empty directory or a "
                "run of this program; choose another"
            )
        check_kinds("workdir", self.path)

    def _is_run(self):
        """Returns whether the directory is a run, or an attempt that ended before the plan."""
        if not os.path.isfile(self.file("flags.txt")):
            return False
        is_empty = not os.path.getsize(self.file("flags.txt"))  # what a power loss makes of one
        is_attempt = os.path.exists(self.file(_LOCK)) and self._has_our_flags()
        return self._has_begun() or is_empty or is_attempt

    def _has_begun(self):
        return any(map(os.path.exists, map(self.file, ("run.json", "checkpoints"))))

    def _has_our_flags(self):
        try:
            Config.from_flags(read_text(self.file("flags.txt")))
        except ValueError:  # a UserError too
            return False
        return True

    def _check_contents(self, config):
        """Returns the results of a finished run, or None; writes the flags of a new one."""
        if self._is_run() and self._has_begun():
            self._update_flags(config)
            return read_results(self.file("results.json"))
        # An attempt that ended before the plan, at a bad image or a misspelt layer, binds nobody to
        # its flags or split.
        if os.path.exists(self.file("split.json")):
            os.remove(self.file("split.json"))
        self.write_text("flags.txt", self._flags(config))
        return None

    def _flags(self, config):
        """Returns the text of `flags.txt`: the code that runs, in comments, and the settings."""
        if self._extension is None:
            return config.to_flags()
        lines = [f"# package {__version__} of SHA-256 {package_sha256()}"]
        if self._extension.sha256:
            lines.append(f"# extension {self._extension.file} of SHA-256 {self._extension.sha256}")
        return "\n".join([*lines, config.to_flags()])

    def name_after(self, config: Config, images: str | None, backbone: str) -> None:
        """Gives a directory that was named here, and not by the user, the name of what runs, and
        says in `runs/latest` which one is the newest.

        Args:
            config: What was asked for.
            images: What is used instead of them, if anything is.
            backbone: The one that is used.
        """
        name = _described(config, images, backbone)
        with storage_errors(self.path):
            if self._may_rename and name not in self.path:
                paths = _numbered(f"{os.path.basename(self.path)[:15]}-{name}")  # of the same time
                path = next(path for path in paths if not os.path.exists(path))
                rename(self.path, path)
                self.path = path
            is_beside = os.path.dirname(os.path.abspath(self.path)) == os.path.abspath("runs")
            if is_beside and not (os.path.isdir(LATEST) or os.path.islink(LATEST)):
                write_atomically(LATEST, f"{os.path.basename(self.path)}\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes `results.json`, whose name says that all the rest is whole, and on the disk."""
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
        """Returns lines that a checkpoint must share with its run: the settings that may not
        change, and the split's SHA-256.
        """
        lines = _fixed(self._flags(config))
        with contextlib.suppress(FileNotFoundError), open(self.file("split.json"), "rb") as file:
            lines.append(f"split.json of SHA-256 {hashlib.sha256(file.read()).hexdigest()}")
        return lines

    def with_defaults(self, lines: Iterable[str]) -> list[str]:
        """Returns lines of an `identity` with what the version that wrote them did not record:
        defaults of settings, and the sources of the package.
        """
        known = {re.split("[= ]", line)[0] for line in lines}
        defaults = _fixed(self._flags(Config()))
        return sorted([*lines, *(d for d in defaults if re.split("[= ]", d)[0] not in known)])

    def _set_old_run_aside(self):
        if not self._is_run():
            return  # no run of ours: whatever it is stays where it is
        lock = self._locked()  # not under a process that is still writing
        number = 1
        while os.path.exists(f"{self.path.rstrip('/')}.old-{number}"):
            number += 1
        rename(self.path, f"{self.path.rstrip('/')}.old-{number}")
        lock.close()
        print(
            f"the run in {self.path} is now {self.path.rstrip('/')}.old-{number}", file=sys.stderr
        )

    def _locked(self):
        try:
            return Lock(self.file(_LOCK))
        except Held as error:
            raise RunDirectoryError(
                f"run directory {self.path} is used by {error}; expected one run in a directory; "
                "wait for it or choose another --workdir"
            ) from None

    def _update_flags(self, config):
        """Checks the settings that may not change, says which others did, and keeps those."""
        text = read_text(self.file("flags.txt"))
        if self._extension is None:
            text = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
        before, after = _only_in(self.with_defaults(_fixed(text)), _fixed(self._flags(config)))
        if before or after:
            ways = "use another --workdir or --resume=never"
            if os.path.exists(self.file("results.json")):
                ways += (
                    f"; to train on from what it reached, --weights={os.path.abspath(self.path)}"
                )
            raise CheckpointError(
                f"the run in {self.path} was made with {before or 'fewer flags'}, flags now say "
                f"{after or 'nothing there'}; expected the same; {ways}"
            )
        if self._extension is not None and text != self._flags(config):
            before, after = _only_in(text.splitlines(), self._flags(config).splitlines())
            if before or after:  # more than their order
                print(
                    f"note: {self.path} goes on with {after or 'fewer flags'} instead of "
                    f"{before or 'nothing there'}",
                    file=sys.stderr,
                    flush=True,
                )
            self.write_text("flags.txt", self._flags(config))


def paths_below(directory: str) -> Iterator[str]:
    """Yields the paths of everything in a directory and below it, folders before what they hold."""
    for folder, folders, names in os.walk(directory):
        yield from (os.path.join(folder, name) for name in [*folders, *names])


def check_kinds(flag: str, directory: str) -> None:
    """Raises RunDirectoryError if a directory, named by a flag, holds other things than files and
    folders at any depth: a link leads elsewhere, a pipe is waited for.
    """
    for path in paths_below(directory):
        with contextlib.suppress(FileNotFoundError):  # of a process that is still writing
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "link" if stat.S_ISLNK(mode) else "pipe, socket or device"
                raise RunDirectoryError(
                    f"--{flag}={directory} holds the {kind} {os.path.relpath(path, directory)!a}; "
                    "expected a run's own files; remove it or choose another"
                )


def _only_in(old, new):
    """Returns (the lines that only `old` has, those that only `new` has), as texts."""
    return tuple(
        " ".join(line for line in lines if line not in others)
        for lines, others in ((old, new), (new, old))
    )


def _fixed(text):
    """Returns those lines of `flags.txt`, sorted, that a resume must find as they were."""
    fields = Config.__dataclass_fields__
    lines = [_without_place(line) for line in text.split("\n")]
    return sorted(
        line
        for line in lines
        if (name := line[2:].split("=")[0]) not in fields or not fields[name].metadata["may_change"]
    )


def _without_place(line):
    """Returns a comment that names code by what it is, not by where it lies or its version."""
    if not line.startswith("# "):
        return line
    return f"{line[2:].split()[0]} of SHA-256 {line.rpartition(' ')[2]}"


def check_place(config: Config) -> None:
    """Raises UserError if the run would lie among its images, which its pictures would join."""
    place = os.path.realpath(config.workdir or "runs")
    for flag in ("data_dir", "validation_dir", "test_dir"):
        folder = getattr(config, flag) and os.path.realpath(getattr(config, flag))
        if folder and os.path.commonpath([folder, place]) == folder:
            raise UserError(
                f"--workdir={config.workdir or 'runs (the default)'} lies in --{flag}={folder}; "
                "expected a run outside of its images, whose classes its pictures would join; add "
                f"--workdir={quoted(os.path.join(os.path.dirname(folder), 'run'))}",
                "workdir",
            )


def command(program: str, *arguments: str) -> str:
    """Returns a command that works from any place, begun the way this program was.

    Args:
        program: `train`, or the module of a tool.
        arguments: What follows it.
    """
    home = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    script, begun = os.path.join(home, "train.py"), os.path.abspath(sys.argv[0])
    words = [sys.executable or "python", "-m", f"tl_research.{program}"]
    if os.path.basename(begun) == "tl-research":
        found = shutil.which("tl-research") or ""
        is_found = os.path.realpath(found) == os.path.realpath(begun)
        words = ["tl-research" if is_found else begun, program.replace("_", "-")]
    elif program == "train" and os.path.isfile(script):
        words = [words[0], script]
    elif home != sysconfig.get_path("purelib"):  # where `-m` would not find it from elsewhere
        words = ["env", f"PYTHONPATH={home}", *words]
    return " ".join(map(quoted, [*words, *arguments]))


def resume_command(path: str, program: str = "train", extension: str | None = None) -> str:
    """Returns the command with which a program goes on with an unfinished run, from any place.

    Args:
        path: The run directory.
        program: As of `command`.
        extension: The run's `--extension`.
    """
    more = [f"--extension={os.path.abspath(extension)}"] if extension else []
    return command(program, f"--workdir={os.path.abspath(path)}", *more)


def with_flags_of_run(values: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Returns settings as they are, or those of the run in their `workdir` where nothing else is
    given but what a resumed run may change.

    Args:
        values: {name: value} of all settings of `Config`.
        given: Names of those that are no defaults.
    """
    fields, path = Config.__dataclass_fields__, os.path.join(values["workdir"] or "", "flags.txt")
    is_alone = all(fields[name].metadata["may_change"] for name in given)
    if not (values["workdir"] and is_alone and os.path.isfile(path)):
        return values
    try:
        of_run = vars(Config.from_flags(read_text(path)))
    except ValueError:  # of another version, or none of ours: said where the directory is opened
        return values
    kept = [name for name in fields if name in given or not fields[name].metadata["recorded"]]
    return of_run | {name: values[name] for name in kept}


def quoted(text: str) -> str:
    """Returns a text as a shell reads it, what cannot be printed by its bytes."""
    if text.isprintable():
        return shlex.quote(text)
    is_plain = {byte: 32 <= byte < 127 and byte not in b"'\\" for byte in range(256)}
    written = (chr(b) if is_plain[b] else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{''.join(written)}'"


def make_new(config: Config) -> str:
    """Makes a directory in `runs/` that no other run has, also one that starts in the same second,
    and returns it.
    """
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    make_folders("runs")
    for path in _numbered(config.name or f"{now}-{_described(config)}"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            sync("runs")
            break
    return path


def _numbered(name):
    """Yields paths in `runs/`, the first without a number."""
    for number in itertools.count(1):
        yield os.path.join("runs", name if number == 1 else f"{name}-{number}")


def images_of(config: Config) -> str:
    """Returns what the images of a run are called: the folder of all of them, or their data set."""
    places = [config.data_dir, config.validation_dir, config.test_dir]
    common = os.path.commonpath(list(filter(None, places)) or ["/"])
    own = config.dataset == "directory" and os.path.basename(common)
    return own or str(config.dataset)


def _described(config, images=None, backbone=None):
    """Returns what a run is named after: its images and its backbone, or what is used instead."""
    images = (images or images_of(config))[:80]
    return re.sub(r"[^\w.+-]+", "_", f"{images}-{backbone or config.backbone}")
