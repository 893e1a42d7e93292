"""Locks that end with their process, and removal of files left by earlier owners."""

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterable

from tl_research import machine
from tl_research.files import owner, remove, say_once, temporary_name

# Errors of file systems without locks; 524 is internal to the kernel and has no name in errno.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, 524}
_OWNER = r"(\d+-[0-9a-f]{16})"


class Held(Exception):
    """Another process has the lock; the text names it."""


class Lock:
    """A lock that the kernel releases when the process ends in any way.

    On file systems without locks, a second file, `<path>.held`, names host and process. The lock's
    file lists the processes that had it since `remove_leftovers`, by which their temporary files
    are recognized.

    Args:
        path: Path of its file, which is not removed.

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
        """Removes the temporary files of earlier owners of the lock among `paths`."""
        for path in paths:
            match = re.search(rf"\.(?:tmp|trash|part)-{_OWNER}(\.\w+)?$", path)
            if match and match[1] in self._owners:
                remove(path)
        own = self._read().strip().rpartition("\n")[2]
        self._file.truncate(0)
        self._file.write(f"{own}\n")
        self._file.flush()

    def close(self) -> None:
        """Releases the lock."""
        if self._held:
            remove(self._held)
            self._held = None
        self._file.close()


def _line():
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"pid {os.getpid()} on host {socket.gethostname()} since {now}"


def _claim(path):
    """Makes the file that names this process, or replaces it if its process has ended.

    Raises:
        Held: If its process may be alive.
    """
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{_line()}, born {_birth(os.getpid())}\n")
            return
        except FileExistsError:
            said = machine.read(path).strip()
        if _may_live(said):
            raise Held(
                f"{said.partition(',')[0] or 'another process'} (if that has ended, remove {path})"
            )
        aside = temporary_name(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            continue  # another process was faster
        if machine.read(aside).strip() != said:  # another process claimed it meanwhile
            os.rename(aside, path)
        else:
            os.remove(aside)


def _may_live(said):
    """Returns whether the process named in a `.held` file may be alive."""
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
    """Returns what distinguishes a process from others with the same number, if it is known."""
    boot = machine.read("/proc/sys/kernel/random/boot_id").strip()
    fields = machine.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return f"{boot} {fields[19]}" if boot and fields else "unknown"
