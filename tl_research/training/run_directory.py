"""The directory of one run: found or made, locked, and checked against the flags. Imports no TensorFlow."""

import datetime
import fcntl
import json
import os
import socket
import sys

from tl_research.config import Config
from tl_research.errors import CheckpointError
from tl_research.errors import RunDirectoryError
from tl_research.errors import StorageError
from tl_research.files import write_atomically

_LOCK = ".lock"


class RunDirectory:
    """An open, locked run directory.

    Args:
        config: The settings; `config.workdir` names the directory, or one is made in `runs/`.

    Attributes:
        path: The directory.
        results: The contents of `results.json` if the run is finished, else None.

    Raises:
        RunDirectoryError: If another process uses it, or it holds files and is not a run.
        CheckpointError: If it holds a run with other settings that may not change.
        StorageError: If it cannot be made or written.
    """

    def __init__(self, config):
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
        self.path = config.workdir or os.path.join("runs", f"{now}-{config.dataset}-{config.backbone}")
        try:
            if config.resume == "never":
                self._set_old_run_aside()
            os.makedirs(self.path, exist_ok=True)
            self._lock()
        except OSError as error:
            raise StorageError(f"cannot use --workdir={self.path}: {error.strerror}; expected a directory that can be "
                               "written; choose another") from error
        self.results = None
        if os.path.exists(self.file("flags.txt")):
            self._check_flags(config)
            if os.path.exists(self.file("results.json")):
                with open(self.file("results.json")) as file:
                    self.results = json.load(file)
        elif set(os.listdir(self.path)) - {_LOCK} - {name for name in os.listdir(self.path) if ".tmp-" in name}:
            raise RunDirectoryError(f"--workdir={self.path} holds files but no run; expected an empty directory or a run "
                                    "of this program; choose another")
        else:
            write_atomically(self.file("flags.txt"), config.to_flags())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._lock_file.close()

    def file(self, *names):
        return os.path.join(self.path, *names)

    def write_text(self, name, text):
        write_atomically(self.file(name), text)

    def write_json(self, name, value):
        write_atomically(self.file(name), json.dumps(value, indent=1, allow_nan=False) + "\n")

    def read_json(self, name):
        """Returns the contents of a JSON file, or None if there is none."""
        if not os.path.exists(self.file(name)):
            return None
        with open(self.file(name)) as file:
            return json.load(file)

    def _set_old_run_aside(self):
        if not os.path.isdir(self.path) or not os.listdir(self.path):
            return
        self._lock()  # not under a process that is still writing
        self._lock_file.close()
        number = 1
        while os.path.exists(f"{self.path.rstrip('/')}.old-{number}"):
            number += 1
        os.rename(self.path, f"{self.path.rstrip('/')}.old-{number}")
        print(f"the run in {self.path} is now {self.path.rstrip('/')}.old-{number}", file=sys.stderr)

    def _lock(self):
        """Takes the lock that the kernel gives back when the process ends, however it ends."""
        self._lock_file = open(self.file(_LOCK), "a+")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.seek(0)
            raise RunDirectoryError(f"run directory {self.path} is used by {self._lock_file.read().strip() or 'another process'}"
                                    "; expected one run in a directory; wait for it or choose another --workdir") from None
        self._lock_file.truncate(0)
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._lock_file.write(f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n")
        self._lock_file.flush()

    def _check_flags(self, config):
        with open(self.file("flags.txt")) as file:
            old = [line.rstrip("\n") for line in file]
        new = config.to_flags().splitlines()
        fields = Config.__dataclass_fields__

        def fixed(lines):
            """Returns the lines of settings that a resume must find as they were."""
            return {line for line in lines
                    if (name := line[2:].split("=")[0]) not in fields or not fields[name].metadata["may_change"]}

        before, after = sorted(fixed(old) - fixed(new)), sorted(fixed(new) - fixed(old))
        if before or after:
            raise CheckpointError(f"the run in {self.path} was made with {' '.join(before) or 'fewer flags'}, flags now say "
                                  f"{' '.join(after) or 'nothing there'}; expected the same; use another --workdir or "
                                  "--resume=never")
