"""Archives from the network to folders on disk: verified, atomic, cached, and safe to unpack.

A file or folder stands under its final name only when it is complete, because it gets that name by
a rename. Two runs that want the same one wait for each other.
"""

import contextlib
import functools
import gzip
import hashlib
import json
import lzma
import os
import queue
import re
import shutil
import stat
import sys
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
from tl_research.files import storage_errors, sync, temporary_name, write_atomically
from tl_research.locks import Held, Lock

_BLOCK = 1 << 16
_ATTEMPTS = 3
_CHOICE = "--download_dir, for ImageNet weights KERAS_HOME"
_storage = functools.partial(storage_errors, choice=_CHOICE)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Names in archives: absolute, with a backslash or NUL, leading upwards, with a drive, or too long.
_UNSAFE_NAME = re.compile(rb"^/|[\\\0]|(^|/)\.\.(/|$)|^[^/]*:|[^/]{256}")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,  # an encrypted member, or a method we cannot decompress
    FileExistsError,  # one name twice, or a file as a folder
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
    """Returns the path of `directory/filename`, downloaded unless it is there already, and
    verified.

    A file somebody put there by hand is verified in full once; after that a marker beside it says
    what it is.

    Args:
        url: https, or http on a loopback address.
        size, sha256: What the file must be, where that is known; else nothing is verified.
        deadline_seconds: What may be spent in all on waiting for answers and on transfers that
            stand still. A transfer that runs may take longer.

    Raises:
        UnreachableError: Name lookup, connection, TLS, proxy, HTTP 4xx or 5xx, or three broken
            transfers.
        DataError: A complete file of the wrong size or hash (kept as `.bad`), or a redirect to
            another scheme.
        StorageError: The directory cannot be written.
        UserError: A URL that is neither https nor loopback.
    """
    _check_url(url, UserError)
    expected = {key: value for key, value in (("size", size), ("sha256", sha256)) if value}
    target = os.path.join(os.path.abspath(directory), filename)
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
    """Returns `directory`, unpacked from a tar or zip archive unless it is there already.

    Only regular files and directories with relative names are written, without their owners.

    Raises:
        DataError: A damaged archive, a link, device, absolute name or `..`, the same name twice,
            more than `max_files` members or `max_bytes` unpacked. Nothing is left behind.
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
                        f"{archive} holds {name!r}, which is no regular file or directory with a "
                        "safe relative name; refused"
                    )
                path = os.path.join(temporary, name)
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
    """Returns `directory`, filled by `write(temporary_folder)` unless it is there.

    It is never seen half filled.
    """
    directory = os.path.abspath(directory)
    temporary = temporary_name(directory, "part")
    with locked(directory), _storage(directory):
        if not os.path.isdir(directory):
            try:
                os.mkdir(temporary)
                write(temporary)
                os.sync()  # once, instead of thousands of files
                os.rename(temporary, directory)
                sync(os.path.dirname(directory))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return directory


@contextlib.contextmanager
def locked(target: str) -> Iterator[None]:
    """Holds the lock of `target`, whose directory is made first, and removes what a killed run left
    of it.
    """
    directory, name = os.path.split(target)
    with contextlib.ExitStack() as stack:
        with _storage(target):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            status = os.stat(directory)
            if status.st_uid != os.getuid() and status.st_mode & stat.S_IWOTH:
                raise StorageError(
                    f"{directory} is somebody else's and everybody may write there; choose another "
                    f"directory ({_CHOICE})"
                )
            lock = stack.enter_context(contextlib.closing(_waited_for(directory, name)))
            lock.remove_leftovers(
                entry.path for entry in os.scandir(directory) if entry.name.startswith(f"{name}.")
            )
        yield


def _waited_for(directory, name):
    """Returns the `Lock` of a target, as soon as no other process has it."""
    is_said = False
    while True:
        try:
            return Lock(os.path.join(directory, f".{name}.lock"))
        except Held as error:
            if not is_said:
                print(
                    f"waiting for another run that prepares {os.path.join(directory, name)}, "
                    f"{error}",
                    file=sys.stderr,
                    flush=True,
                )
            is_said = True
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
    """An answer that did not come, ended early or stood still."""


def _ask(url, timeout, answers):
    """Puts the length that an answer promises into a queue, its blocks, and an empty one or what
    went wrong.
    """
    # A proxy of the environment cannot reach this machine's own loopback address.
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
        # below 400: urllib's own refusal to follow a redirect to file: and its like
        refused = DataError(f"{url}: redirect refused ({error.reason.strip()})")
        answers.put(refused if error.code < 400 else _Broken(f"HTTP {error.code}"))
    except Exception as error:
        answers.put(_Broken(getattr(error, "reason", None) or error))


def _answers(url, wait, patience):
    """Yields the length of an answer, which must begin within `wait` seconds, and its blocks, each
    of which must come within `patience`.
    """
    answers = queue.Queue(16)  # no more in memory when the network is faster than the disk
    # In a thread, since a name lookup knows no timeout.
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
    """Writes the answer of `url` to `part`, or decides within the deadline that it cannot be
    reached.
    """
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
    limit = 2 * size + (1 << 20) if size else 1 << 32  # an endless answer must not fill the disk
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
                    f"more than {limit} bytes came for {target}; expected {size or 'fewer'}"
                )
        if received < length:
            raise _Broken(f"it ended after {received} of {length} bytes")
        file.flush()
        os.fsync(file.fileno())


def _verify(path, target, expected):
    """Returns `target`, renamed from `path` with its marker once it is what it must be."""
    marker = f"{target}.complete.json"
    with _storage(target):
        if path == target and _is_marked(path, marker, expected):
            return target
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
        if expected:
            write_atomically(marker, json.dumps(found))
    return target


def _is_marked(path, marker, expected):
    """Returns whether an earlier run saw that this file is what it must be."""
    try:
        with open(marker, encoding="utf-8") as file:
            known = json.load(file)
        return known["size"] == os.path.getsize(path) and expected.items() <= known.items()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _members(archive):
    """Yields of each member its name, whether it is a regular file or a directory, its size, and
    the function that writes it below a `path`.
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
