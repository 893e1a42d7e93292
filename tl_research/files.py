"""Files that are complete or absent, even after a crash."""

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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from tl_research.errors import StorageError, to_stderr

Json = dict[str, Any]  # a JSON object

_MAX_BYTES = 1 << 28  # of a text file
_RANDOM = secrets.token_hex(8)  # of this process and its forks
# Errors of file systems that cannot sync; EACCES: of a folder that cannot be read
_NOT_THERE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EISDIR, errno.EACCES}
# Errors of a disk that cannot be written, as they appear in the messages of other libraries
_REFUSALS = [
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
]


@contextlib.contextmanager
def storage_errors(path: str, choice: str = "--workdir") -> Iterator[None]:
    """Turns an error of the operating system into a StorageError.

    Args:
        path: What is written.
        choice: The flag that sets another place.
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
    """Returns the system's message if an error is one of storage, also if TensorFlow or HDF5 report
    it; None for other errors.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    of_library = isinstance(error, RuntimeError) or hasattr(error, "error_code")
    text = str(error) if of_library else ""
    return next((refusal for refusal in _REFUSALS if refusal in text), None)


@functools.cache
def say_once(text: str) -> None:
    """Prints a warning, once per process."""
    to_stderr(f"warning: {text}")


def sync(path: str) -> None:
    """Waits until a file, or the names in a directory, are on the disk, if the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        say_once(
            f"the file system does not say when files are on the disk ({error.strerror}); a power "
            "loss may take the newest"
        )


def sync_all(path: str) -> None:
    """Waits until a file, or everything in a directory and below it, is on the disk."""
    if os.path.isfile(path):
        sync(path)
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            sync(f"{folder}/{name}")
        sync(folder)


def read_text(path: str) -> str:
    """Returns the contents of a text file; bytes that are not UTF-8 are decoded as in file names.

    Raises:
        ValueError: If it is larger than any file that we write.
    """
    with open(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES:,} bytes")
    return content.decode(errors="surrogateescape")


def make_folders(path: str) -> None:
    """Makes a directory and its parents, if they do not exist, and syncs them."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return
    if not os.path.exists(os.path.dirname(path)):
        make_folders(os.path.dirname(path))
    try:
        os.mkdir(path)
    except FileExistsError:  # made by another process meanwhile, or a file
        if not os.path.isdir(path):
            raise
    sync(os.path.dirname(path))


def write_synced(path: str, chunks: Iterable[bytes | memoryview]) -> Json:
    """Writes byte strings to a new file, syncs it and returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    sync(path)
    return {"size": size, "sha256": digest.hexdigest()}


def owner() -> str:
    """Returns the ending of names of temporary files that only this process uses."""
    return f"{os.getpid()}-{_RANDOM}"


def temporary_name(path: str, kind: str = "tmp") -> str:
    """Returns a name beside `path` that only this process uses, see `locks.Lock`."""
    folder, name = os.path.split(path)
    short = os.fsdecode(os.fsencode(name)[:100])  # some file systems allow 143 bytes
    return os.path.join(folder, f"{short}.{kind}-{owner()}")


def remove(path: str) -> None:
    """Removes a file, link or directory, if there is one."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def remove_own_leftovers(folder: str) -> None:
    """Removes temporary files that failed operations of this process left in a folder."""
    for name in os.listdir(folder):
        if name.endswith(f"-{owner()}"):
            remove(f"{folder}/{name}")


def rename(folder: str, name: str) -> None:
    """Renames a directory, or copies it if it cannot be renamed, as in a lower layer of a
    container.
    """
    try:
        os.replace(folder, name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(folder, name, symlinks=True)
        shutil.rmtree(folder)


def set_aside(path: str, kind: str) -> str:
    """Renames a directory to `<path>.<kind>-<the first free number>`; returns that path."""
    number = 1
    while os.path.exists(aside := f"{path}.{kind}-{number}"):
        number += 1
    rename(path, aside)
    return aside


@contextlib.contextmanager
def replacing(path: str) -> Iterator[TextIO]:
    """Yields a text file that replaces `path` once it is complete and on the disk.

    For a link, its target is replaced. Anything but a regular file, such as a pipe, is written to
    directly.

    Raises:
        StorageError: If it cannot be written.
    """
    with storage_errors(path):
        if _is_stream(path):
            with _opened(path, "a") as file:
                yield file
            return
        path = os.path.realpath(path)
        temporary = temporary_name(path)
        with _opened(temporary, "x") as file:
            try:
                yield file
                file.close()
                sync(temporary)
                _give_name(temporary, path)
            except BaseException:
                os.remove(temporary)
                raise
        sync(os.path.dirname(path))


# in which names of files that are not UTF-8 keep their bytes
_opened = functools.partial(open, encoding="utf-8", errors="surrogateescape", newline="")


def _give_name(temporary, path):
    """Renames a file to `path` and keeps the mode of the file that was there."""
    if os.path.exists(path):
        with contextlib.suppress(OSError):
            shutil.copymode(path, temporary)
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(temporary, path)  # a mounted file cannot be replaced
        sync(path)
        os.remove(temporary)


def _is_stream(path):
    """Returns whether a path is written to directly: not a regular file, or one that is open."""
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        return True
    while os.path.islink(path):
        folder = os.path.realpath(os.path.dirname(path))
        if folder.startswith("/proc/"):  # as for /dev/stdout
            return True
        path = os.path.join(folder, os.readlink(path))
    return False


def write_atomically(path: str, text: str | Iterable[str]) -> None:
    """Replaces a text file atomically: readers see the old or the new contents.

    Args:
        path: The file.
        text: The new contents, or an iterator of their parts.

    Raises:
        StorageError: If the file cannot be written.
    """
    with replacing(path) as file:
        for part in [text] if isinstance(text, str) else text:
            file.write(part)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Returns the text of a CSV file, `escaped`.

    Args:
        columns: Names of the columns.
        rows: Dicts of values by column; other keys are ignored, missing ones left empty.
        header: Whether the first line has the names of the columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return escaped(text.getvalue())


def escaped(text: str) -> str:
    """Returns a text in which bytes of file names that are not UTF-8 are escaped as `\\xNN`."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
