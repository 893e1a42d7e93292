"""Files that are whole or not there, also after a crash."""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tl_research.errors import StorageError

_RANDOM = secrets.token_hex(8)  # of this process and its forks
# What file systems answer that do not have what was asked for; EACCES: a folder that cannot be read
_NOT_THERE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EISDIR, errno.EACCES}
# What a disk answers that takes no more, as libraries that are not Python's put it into their text
_REFUSALS = [
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
]


@contextlib.contextmanager
def storage_errors(path: str, choice: str = "--workdir") -> Iterator[None]:
    """Turns an error of the operating system while `path` is written into a StorageError, which
    tells the user to give another `choice`.
    """
    try:
        yield
    except Exception as error:
        if reason := storage_reason(error):
            raise StorageError(
                f"could not write {path}: {reason}; expected a writable place with room; free some "
                f"or choose another {choice}"
            ) from error
        raise


def storage_reason(error: Exception) -> str | None:
    """Returns what the system said where an error is one of storage, also one that TensorFlow or
    HDF5 report; None of other errors.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    of_library = isinstance(error, RuntimeError) or hasattr(error, "error_code")
    text = str(error) if of_library else ""
    return next((refusal for refusal in _REFUSALS if refusal in text), None)


@functools.cache
def say_once(text: str) -> None:
    """Prints a warning, unless this process did."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def sync(path: str) -> None:
    """Waits until a file, or the names in a directory, are on the disk, where that can be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _unless_not_there(error)


def sync_all(path: str) -> None:
    """Waits until a file, or everything in a directory and below it, is on the disk."""
    if os.path.isfile(path):
        sync(path)
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)


def _unless_not_there(error):
    if error.errno not in _NOT_THERE:
        raise error
    say_once(
        f"the file system does not say when files are on the disk ({error.strerror}); a power loss "
        "may take the newest"
    )


def read_text(path: str, max_bytes: int = 1 << 28) -> str:
    """Returns a text file's content; bytes that are not UTF-8 stand as in names of files.

    Raises:
        ValueError: If it is larger than any that we write.
    """
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes:,} bytes")
    return content.decode(errors="surrogateescape")


def make_folders(path: str) -> None:
    """Makes a directory and those that it lies in, where there is none, for good."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    if not os.path.exists(os.path.dirname(path)):
        make_folders(os.path.dirname(path))
    try:
        os.mkdir(path)
    except FileExistsError:  # made by another process meanwhile, or no directory
        if not os.path.isdir(path):
            raise
    sync(os.path.dirname(path))


def write_synced(path: str, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes byte strings to a new file, syncs it and returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            _unless_not_there(error)
    return {"size": size, "sha256": digest.hexdigest()}


def owner() -> str:
    """Returns how names of temporary files of this process end, and those of no other."""
    return f"{os.getpid()}-{_RANDOM}"


def temporary_name(path: str, kind: str = "tmp") -> str:
    """Returns a name beside `path` that is this process's own, see `locks.Lock`."""
    folder, name = os.path.split(path)
    short = os.fsdecode(os.fsencode(name)[:100])  # some file systems end names at 143 bytes
    return os.path.join(folder, f"{short}.{kind}-{owner()}")


def remove(path: str) -> None:
    """Removes a file or a directory, if there is one; a link itself."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def remove_own_leftovers(folder: str) -> None:
    """Removes what failing operations of this process left of its temporary files in a folder."""
    for name in os.listdir(folder):
        if name.endswith(f"-{owner()}"):
            remove(os.path.join(folder, name))


def rename(folder: str, name: str) -> None:
    """Renames a directory; copies it where it cannot be, as what is in a lower layer of a container
    cannot.
    """
    try:
        os.replace(folder, name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(folder, name, symlinks=True)
        shutil.rmtree(folder)


@contextlib.contextmanager
def replacing(path: str, **of_open: Any) -> Iterator[Any]:
    """Yields a text file that takes the place of `path` once it is whole and on the disk.

    Of a link, what it leads to is replaced; what is no regular file, such as a pipe, is written
    into.

    Args:
        path: Of the file.
        of_open: More arguments of `open`.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage_errors(path):
        if _is_stream(path):
            with open(path, "a", **of_open) as file:
                yield file
            return
        path = os.path.realpath(path)
        temporary = temporary_name(path)
        with open(temporary, "x", **of_open) as file:
            try:
                yield file
                file.close()
                sync(temporary)
                _give_name(temporary, path)
            except BaseException:
                os.remove(temporary)
                raise
        sync(os.path.dirname(path))


def _give_name(temporary, path):
    """Lets a file take the place of `path`, whose mode it keeps."""
    if os.path.exists(path):
        with contextlib.suppress(OSError):
            shutil.copymode(path, temporary)
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(temporary, path)  # a file that is mounted there stays there
        sync(path)
        os.remove(temporary)


def _is_stream(path):
    """Returns whether a path leads to what is written into: no regular file, or an open one."""
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        return True
    while os.path.islink(path):
        folder = os.path.realpath(os.path.dirname(path))
        if folder.startswith("/proc/"):  # /dev/stdout leads there
            return True
        path = os.path.join(folder, os.readlink(path))
    return False


def write_atomically(path: str, text: str | Iterable[str]) -> None:
    """Replaces a text file as a whole: readers see the old or the new one.

    Args:
        path: The file.
        text: What it is to hold, or an iterator of its parts.

    Raises:
        StorageError: If the file cannot be written.
    """
    with replacing(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        for part in [text] if isinstance(text, str) else text:
            file.write(part)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Returns a CSV file's text from dicts, `escaped`, with a line of the columns or without."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return escaped(text.getvalue())


def escaped(text: str) -> str:
    """Returns a text in which bytes of a file name that are not UTF-8 stand as `\\xNN`."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
