"""Downloads and unpacks archives: verified, atomic, cached, and safe.

A file or folder gets its final name by a rename, once it is complete. Two runs that need the same
one wait for each other.
"""

import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import queue
import re
import shutil
import stat
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from tl_research.errors import DataError, StorageError, UnreachableError, UserError
from tl_research.files import say_once, storage_errors, sync, temporary_name
from tl_research.locks import Held, Lock

_BLOCK = 1 << 16
_ATTEMPTS = 3
_CHOICE = "--download_dir, for ImageNet weights KERAS_HOME"
_storage = functools.partial(storage_errors, choice=_CHOICE)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Names in archives that are absolute, hold a backslash, NUL, `..` or drive, or are too long.
_UNSAFE_NAME = re.compile(rb"^/|[\\\0]|(^|/)\.\.(/|$)|^[^/]*:|[^/]{256}")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,  # an encrypted member, or a method we cannot decompress
    FileExistsError,  # the same name twice, or a file used as a folder
    NotADirectoryError,
    IsADirectoryError,
)


def fetch(
    url: str,
    directory: str,
    filename: str,
    *,
    size: int | None = None,
    sha256: str | None = None,
    deadline_seconds: float = 20.0,
) -> str:
    """Returns the path of `directory/filename`, verified, which is downloaded if it is not there.

    A file that is there, perhaps put there by hand, is verified too.

    Args:
        url: https, or http on a loopback address.
        directory: Where the file is kept.
        filename: Its name there.
        size: Expected size in bytes, or None if it is not known.
        sha256: Expected SHA-256, hexadecimal, or None if it is not known.
        deadline_seconds: Total time allowed for waiting for responses and for stalled transfers. A
            transfer that makes progress may take longer.

    Raises:
        UnreachableError: Name lookup, connection, TLS or proxy failed, HTTP 4xx or 5xx, or the
            transfer broke three times.
        DataError: A complete file has the wrong size or hash (it is kept as `.bad`), or a redirect
            leads to another scheme.
        StorageError: The directory cannot be written.
        UserError: The URL is neither https nor loopback.
    """
    _check_url(url, UserError)
    expected = {key: value for key, value in (("size", size), ("sha256", sha256)) if value}
    target = f"{os.path.abspath(directory)}/{filename}"
    with locked(target):
        if os.path.exists(target):
            return _verify(target, target, expected)
        part = temporary_name(target, "part")
        try:
            _transfer(url, target, part, size, deadline_seconds)
            return _verify(part, target, expected)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)


def unpack(archive: str, directory: str, *, max_files: int, max_bytes: int) -> str:
    """Returns `directory`, which is unpacked from a tar or zip archive if it is not there.

    Only regular files and directories with relative names are written, without their owners.

    Args:
        archive: Path of the archive.
        directory: The folder to make.
        max_files: Largest allowed number of members.
        max_bytes: Largest allowed size of all members together.

    Raises:
        DataError: The archive is damaged or too large, or holds a link, device, absolute name, `..`
            or the same name twice. Nothing is left behind.
        StorageError: The directory cannot be written.
    """

    def write(temporary: str) -> None:
        bytes_left = max_bytes
        try:
            for count, (name, is_plain, size, extract) in enumerate(_members(archive), 1):
                bytes_left -= size
                if min(size, bytes_left, max_files - count) < 0:
                    raise DataError(
                        f"{archive} holds more than {max_files} members or {max_bytes} bytes; "
                        "refused"
                    )
                if not is_plain or _UNSAFE_NAME.search(os.fsencode(name)):
                    raise DataError(
                        f"{archive} holds {name!r}, which is not a regular file or directory with "
                        "a safe relative name; refused"
                    )
                path = f"{temporary}/{name}"
                if os.path.isfile(path):
                    raise FileExistsError(f"{name!r} twice")
                extract(path=temporary)
                if os.path.isfile(path) and os.path.getsize(path) != size:
                    raise EOFError(f"{name!r} is not as long as it says")
        except _DAMAGE as error:
            raise DataError(
                f"{archive} is damaged or unsafe ({error}); delete it, or put a good one there"
            ) from error

    return make_folder(directory, write)


def make_folder(directory: str, write: Callable[[str], None]) -> str:
    """Returns `directory`, which `write(temporary_folder)` fills if it is not there.

    Nobody sees it half filled.
    """
    directory = os.path.abspath(directory)
    temporary = temporary_name(directory, "part")
    with locked(directory), _storage(directory):
        if not os.path.isdir(directory):
            try:
                os.mkdir(temporary)
                write(temporary)
                os.sync()  # once, instead of for each of thousands of files
                os.rename(temporary, directory)
                sync(os.path.dirname(directory))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return directory


@contextlib.contextmanager
def locked(target: str) -> Iterator[None]:
    """Holds the lock of `target` after creating its directory, and removes what a killed run left
    there.
    """
    directory, name = os.path.split(target)
    with _storage(target):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.stat(directory)
        if status.st_uid != os.getuid() and status.st_mode & stat.S_IWOTH:
            raise StorageError(
                f"{directory} belongs to another user and is world-writable; choose another "
                f"directory ({_CHOICE})"
            )
        lock = _waited_for(directory, name)
    with contextlib.closing(lock):
        with _storage(target), os.scandir(directory) as entries:
            lock.remove_leftovers(e.path for e in entries if e.name.startswith(f"{name}."))
        yield


def _waited_for(directory, name):
    """Returns the `Lock` of a target once no other process has it."""
    while True:
        try:
            return Lock(f"{directory}/.{name}.lock")
        except Held as error:
            say_once(f"waiting for another run that prepares {directory}/{name}, {error}")
            time.sleep(0.1)


def _check_url(url, error_class):
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise error_class(
            f"will not download from {url}; expected https, or http on a loopback address"
        )


class _SameSchemeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, request: Any, file: Any, code: int, message: str, headers: Any, new_url: str
    ) -> Any:
        if urllib.parse.urlsplit(new_url).scheme != request.type:
            raise DataError(f"{request.full_url} redirects to {new_url}, another scheme; refused")
        _check_url(new_url, DataError)
        return super().redirect_request(request, file, code, message, headers, new_url)


class _Broken(Exception):
    """A response that did not arrive, ended early or stalled."""


def _ask(url, timeout, answers):
    """Puts into a queue the promised length of a response, its blocks, and at the end an empty
    block or an exception.
    """
    # A proxy from the environment cannot reach this machine's loopback address.
    handlers = [urllib.request.ProxyHandler({})] if url.startswith("http:") else []
    opener = urllib.request.build_opener(_SameSchemeRedirects, *handlers)
    try:
        with opener.open(url, timeout=timeout) as response:
            answers.put(int(response.headers.get("Content-Length") or 0))
            while block := response.read(_BLOCK):
                answers.put(block)
        answers.put(b"")
    except UserError as error:
        answers.put(error)
    except urllib.error.HTTPError as error:
        # below 400: urllib refused to follow a redirect, to file: for example
        refused = DataError(f"{url}: redirect refused ({error.reason.strip()})")
        answers.put(refused if error.code < 400 else _Broken(f"HTTP {error.code}"))
    except Exception as error:
        answers.put(_Broken(getattr(error, "reason", None) or error))


def _answers(url, wait, patience):
    """Yields the length of a response, which must begin within `wait` seconds, and its blocks, each
    of which must arrive within `patience` seconds.
    """
    answers = queue.Queue(16)  # limits memory when the network is faster than the disk
    # In a thread, because a name lookup has no timeout.
    threading.Thread(target=_ask, args=(url, min(patience, wait), answers), daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=wait)
        except queue.Empty:
            raise _Broken(f"no answer in {wait:.1f} s") from None
        if isinstance(answer, Exception):
            raise answer
        yield answer
        wait = patience


def _transfer(url, target, part, size, deadline_seconds):
    """Writes the response of `url` to `part`; raises UnreachableError within the deadline."""
    patience, left = deadline_seconds / 6, deadline_seconds
    for _ in range(_ATTEMPTS):
        began, length = time.monotonic(), None
        answers = _answers(url, min(2 * patience, left - patience), patience)
        try:
            length = next(answers)
            left -= time.monotonic() - began + patience
            return _copy(answers, length, target, part, size)
        except _Broken as error:
            reason = error if length is None else f"the transfer broke: {error}"
        if length is None or left <= patience:
            break
    raise UnreachableError(
        f"cannot reach {url} ({reason}); download it elsewhere and put it at {target}"
    )


def _copy(blocks, length, target, part, size):
    """Writes `blocks`, together at least `length` bytes, to `part`."""
    limit = 2 * size + (1 << 20) if size else 1 << 32  # an endless response must not fill the disk
    received = 0
    with (
        _storage(target),
        open(part, "wb") as file,
        tqdm.tqdm.wrapattr(
            file, "write", size or length or None, desc=os.path.basename(target), disable=None
        ) as counted,
    ):
        while block := next(blocks):
            counted.write(block)
            received += len(block)
            if received > limit:
                raise DataError(
                    f"received more than {limit} bytes for {target}; expected {size or 'fewer'}"
                )
        if received < length:
            raise _Broken(f"it ended after {received} of {length} bytes")
        file.flush()
        os.fsync(file.fileno())


def _verify(path, target, expected):
    """Returns `target` once `path` has the expected size and hash and is renamed to it."""
    with _storage(target):
        if expected:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, hashlib.sha256).hexdigest()
            found = {"size": os.path.getsize(path), "sha256": digest}
            if not expected.items() <= found.items():
                os.replace(path, f"{target}.bad")
                raise DataError(
                    f"{target} has {found['size']} bytes and SHA-256 {digest}; expected "
                    f"{expected.get('size', 'any number of')} bytes and SHA-256 "
                    f"{expected.get('sha256', 'any')}; "
                    f"kept as {target}.bad, run again or put a good file there"
                )
        os.replace(path, target)
        sync(os.path.dirname(target))
    return target


def _members(archive):
    """Yields for each member (name, whether it is a regular file or directory, size, function that
    writes it below a `path`).
    """
    if archive.endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                extract = functools.partial(file.extract, member)
                is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                yield member.filename, is_plain, member.file_size, extract
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            is_plain = member.isdir() or member.isreg() and not member.issparse()
            extract = functools.partial(tar.extract, member, filter="data")
            yield member.name, is_plain, member.size, extract
