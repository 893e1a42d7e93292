"""Locks that end with their process, and what processes that had one left behind."""

import datetime
import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterable

from tl_research.files import owner, remove, say_once, temporary_name

# What file systems answer that have no locks; 524 is the kernel's own, without a name here.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, 524}
_OWNER = r"(\d+-[0-9a-f]{16})"


class Held(Exception):
    """Another process has the lock; the text says which."""


class Lock:
    """A lock that the kernel gives back when the process ends, however it ends.

    Where the file system has none, a second file, `<path>.held`, names host and process. The lock's
    own file lists the processes that had it since `remove_leftovers`: their temporary files are
    known by that, not by their names alone.

    Args:
        path: Of its file, which stays there.

    Raises:
        Held: If another process has it.
    """

    def __init__(self, path: str):
        self._held, self._path = None, path
        self._file = open(  # noqa: SIM115 (open as long as the lock is held)
            path,
            "a+",
            encoding="utf-8",
            errors="replace",
            opener=lambda path, mode: os.open(path, mode | os.O_NOFOLLOW, 0o644),
        )
        try:
            self._take()
        except BaseException:
            self.close()
            raise
        self._owners = set(re.findall(f"files of {_OWNER}$", self._read(), re.M))
        self._file.write(f"{_line()}, files of {owner()}\n")
        self._file.flush()

    def _read(self):
        self._file.seek(0)
        return self._file.read()

    def _take(self):
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            last = self._read().strip().rpartition("\n")[2]
            raise Held(last.partition(",")[0] or "another process") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say_once(
                f"the file system of {self._path} has no locks ({error.strerror}); "
                f"{self._path}.held names the host and process that use it instead"
            )
            self._held = f"{self._path}.held"
            _claim(self._held)
        if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
            # it was renamed with its directory after it was opened
            raise FileNotFoundError(self._path)

    def remove_leftovers(self, paths: Iterable[str]) -> None:
        """Removes those of `paths` that are temporary files of processes that had the lock."""
        for path in paths:
            match = re.search(rf"\.(?:tmp|trash|part)-{_OWNER}(\.\w+)?$", path)
            if match and match[1] in self._owners:
                remove(path)
        own = self._read().strip().rpartition("\n")[2]
        self._file.truncate(0)
        self._file.write(f"{own}\n")
        self._file.flush()

    def close(self) -> None:
        """Gives the lock back."""
        if self._held:
            remove(self._held)
            self._held = None
        self._file.close()


def _line():
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"pid {os.getpid()} on host {socket.gethostname()} since {now}"


def _claim(path):
    """Makes the file that names this process, in place of one whose process has ended.

    Raises:
        Held: If that may live.
    """
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{_line()}, born {_birth(os.getpid())}\n")
            return
        except FileExistsError:
            said = _content(path)
        if _may_live(said):
            raise Held(
                f"{said.partition(',')[0] or 'another process'} (if that has ended, remove {path})"
            )
        aside = temporary_name(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            continue  # another process was quicker
        if _content(aside) != said:  # and claimed it meanwhile
            os.rename(aside, path)
        else:
            os.remove(aside)


def _content(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def _may_live(said):
    """Returns whether the process that a `.held` file names may live."""
    match = re.fullmatch(r"pid (\d+) on host (.*) since \S+, born (.*)", said)
    if not match or match[2] != socket.gethostname():
        return True
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _birth(int(match[1])) == match[3]


def _birth(pid):
    """Returns what a process has in common with no other that had its number, where it is known."""
    try:
        with (
            open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot,
            open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as status,
        ):
            return f"{boot.read().strip()} {status.read().rpartition(')')[2].split()[19]}"
    except OSError:
        return "unknown"
