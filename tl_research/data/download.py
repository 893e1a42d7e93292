"""Archives from the network to folders on disk: verified, atomic, cached, and safe to unpack.

A file or folder stands under its final name only when it is complete, because it gets that name by
a rename. Two runs that want the same one wait for each other.
"""

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import lzma
import os
import queue
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

import tqdm

from tl_research.errors import DataError, StorageError, UnreachableError, UserError

_BLOCK = 1 << 16
_ATTEMPTS = 3
_CHOICE = "--download_dir; for ImageNet weights KERAS_HOME"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def fetch(url, directory, filename, *, size=None, sha256=None, deadline_seconds=20.0):
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
    target = os.path.join(os.path.abspath(directory), filename)
    with locked(target):
        if os.path.exists(target):
            return _verify(target, target, size, sha256)
        part = f"{target}.part-{os.getpid()}"
        try:
            _transfer(url, target, part, size, deadline_seconds)
            return _verify(part, target, size, sha256)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)


def unpack(archive, directory, *, max_files, max_bytes):
    """Returns `directory`, unpacked from a tar or zip archive unless it is there already.

    Only regular files and directories with relative names are written, by our own code;
    permissions, owners and times of the archive are not kept.

    Raises:
        DataError: A damaged archive, a link, device, absolute name or `..`, the same name twice,
            more than `max_files` members or `max_bytes` unpacked. Nothing is left behind.
        StorageError: The directory cannot be written.
    """

    def write(temporary):
        members = _zip_members(archive) if archive.endswith(".zip") else _tar_members(archive)
        bytes_left = max_bytes
        try:
            for count, (name, is_directory, size, stream) in enumerate(members, 1):
                bytes_left -= size
                if size < 0 or count > max_files or bytes_left < 0:
                    raise DataError(
                        f"{archive} holds more than {max_files} members or {max_bytes} bytes; "
                        "refused"
                    )
                _write_member(_safe_path(archive, name, temporary), is_directory, size, stream)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(f"{archive} uses one name twice ({name!r}); refused") from error
        except (
            tarfile.TarError,
            zipfile.BadZipFile,
            gzip.BadGzipFile,
            lzma.LZMAError,
            zlib.error,
            EOFError,
            # RuntimeError: an encrypted member, or a method we cannot decompress
            RuntimeError,
        ) as error:
            raise DataError(
                f"{archive} is damaged or unsafe ({error}); delete it, or put a good one there"
            ) from error

    return make_folder(directory, write)


def make_folder(directory, write):
    """Returns `directory`, filled by `write(temporary_folder)` unless it is there.

    It is never seen half filled.
    """
    directory = os.path.abspath(directory)
    temporary = f"{directory}.part-{os.getpid()}"
    with locked(directory), _storage(directory):
        if not os.path.isdir(directory):
            try:
                os.mkdir(temporary)
                write(temporary)
                os.rename(temporary, directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return directory


@contextlib.contextmanager
def locked(target):
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
            lock = stack.enter_context(open(os.path.join(directory, f".{name}.lock"), "w"))
            try:  # flock ends with its process, so a killed run leaves no stale lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"waiting for another run that prepares {target}", file=sys.stderr, flush=True
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            for entry in os.scandir(directory):
                if entry.name.startswith(f"{name}.part-"):
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.remove(
                        entry.path
                    )
        yield


@contextlib.contextmanager
def _storage(target):
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {target} ({error}); free some space or choose another directory "
            f"({_CHOICE})"
        ) from error


def _check_url(url, error_class):
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise error_class(
            f"will not download from {url}; expected https, or http on a loopback address"
        )


class _SameSchemeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, new_url):
        if urllib.parse.urlsplit(new_url).scheme != urllib.parse.urlsplit(request.full_url).scheme:
            raise DataError(f"{request.full_url} redirects to {new_url}, another scheme; refused")
        _check_url(new_url, DataError)
        return super().redirect_request(request, file, code, message, headers, new_url)


def _open(url, socket_seconds, answer_seconds):
    """Returns the open response; in a thread, since a name lookup knows no timeout."""
    # A proxy of the environment cannot reach this machine's own loopback address.
    handlers = [urllib.request.ProxyHandler({})] if url.startswith("http:") else []
    opener = urllib.request.build_opener(_SameSchemeRedirects, *handlers)
    answers = queue.SimpleQueue()

    def ask():
        try:
            answers.put((opener.open(url, timeout=socket_seconds), None))
        except Exception as error:  # handed to the caller, who sorts it
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        response, error = answers.get(timeout=answer_seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {answer_seconds:.0f} s") from None
    if error:
        raise error
    return response


def _transfer(url, target, part, size, deadline_seconds):
    """Writes the answer of `url` to `part`, or decides within the deadline that it cannot be
    reached.
    """
    patience = deadline_seconds / 6  # for one receive, and for each next block
    left = deadline_seconds
    reason = "no answer"
    for _ in range(_ATTEMPTS):
        wait = min(2 * patience, left - patience)
        if wait <= 0:
            break
        idle_since = [time.monotonic()]
        try:
            with _open(url, min(patience, wait), wait) as response:
                left -= time.monotonic() - idle_since[0]
                _copy(response, target, part, size, patience, idle_since)
            return
        except UserError:  # a ValueError too, but not the network's
            raise
        except _Broken as error:
            reason = f"the transfer broke: {error}"
            left -= time.monotonic() - idle_since[0]
        except urllib.error.HTTPError as error:
            if error.code < 400:  # urllib's own refusal to follow a redirect to file: and its like
                raise DataError(f"{url}: redirect refused ({error.reason.strip()})") from error
            reason = f"HTTP {error.code}"
            break
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            break
    raise UnreachableError(
        f"cannot reach {url} ({reason}); download it elsewhere and put it at {target}"
    )


class _Broken(Exception):
    """A transfer that ended early or stood still."""


def _copy(response, target, part, size, patience, idle_since):
    """Writes the body to `part`; `idle_since[0]` is when the last block arrived."""
    length = int(response.headers.get("Content-Length") or 0)
    limit = 2 * size + (1 << 20) if size else 1 << 32  # an endless answer must not fill the disk
    received = 0
    with (
        _storage(target),
        open(part, "wb") as file,
        tqdm.tqdm(
            total=size or length or None,
            desc=os.path.basename(target),
            unit="B",
            unit_scale=True,
            disable=None,
        ) as progress,
    ):
        idle_since[0] = time.monotonic()
        next_block = 0
        while True:
            try:
                data = response.read1(_BLOCK)  # at most one receive, so a trickle cannot hold us
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(error) from error
            if not data:
                break
            file.write(data)
            progress.update(len(data))
            received += len(data)
            if received > limit:
                raise DataError(
                    f"{response.url} sends more than {limit} bytes; expected {size or 'fewer'}"
                )
            if received >= next_block:
                next_block, idle_since[0] = received + _BLOCK, time.monotonic()
            elif time.monotonic() - idle_since[0] > patience:
                raise _Broken(f"fewer than {_BLOCK} bytes in {patience:.1f} s")
        if received < length:
            raise _Broken(f"it ended after {received} of {length} bytes")
        file.flush()
        os.fsync(file.fileno())


def _verify(path, target, size, sha256):
    """Returns `target`, renamed from `path` with its marker once it is what it must be."""
    marker = f"{target}.complete.json"
    with _storage(target):
        if not (size or sha256):
            os.replace(path, target)
            return target
        found_size = os.path.getsize(path)
        if path == target:  # cached: the marker spares us the hash
            with (
                contextlib.suppress(OSError, ValueError, KeyError, TypeError),
                open(marker) as file,
            ):
                known = json.load(file)
                if known["size"] == found_size == (size or found_size) and known["sha256"] == (
                    sha256 or known["sha256"]
                ):
                    return target
        found = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
        found = found.hexdigest()
        if found_size != (size or found_size) or found != (sha256 or found):
            os.replace(path, f"{target}.bad")
            raise DataError(
                f"{target} has {found_size} bytes and SHA-256 {found}; expected "
                f"{size or 'any number of'} bytes and SHA-256 {sha256 or 'any'}; "
                f"kept as {target}.bad, run again or put a good file there"
            )
        os.replace(path, target)
        with open(f"{marker}.part-{os.getpid()}", "w") as file:
            json.dump({"size": found_size, "sha256": found}, file)
        os.replace(file.name, marker)
    return target


def _tar_members(archive):
    """Yields (name, is a directory, bytes, function that opens it) of a tar archive's members."""
    with tarfile.open(archive) as tar:
        for member in tar:
            # Python's own rules as well as ours
            tarfile.data_filter(member, os.path.abspath(os.sep + "nowhere"))
            if (
                not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE))
                or member.issparse()
            ):
                raise DataError(
                    f"{archive} holds {member.name!r}, which is no regular file or directory; "
                    "refused"
                )
            yield (
                member.name,
                member.isdir(),
                member.size,
                lambda member=member: tar.extractfile(member),
            )


def _zip_members(archive):
    """Yields (name, is a directory, bytes, function that opens it) of a zip archive's members."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(
                    f"{archive} holds {member.filename!r}, which is no regular file or directory; "
                    "refused"
                )
            yield (
                member.filename,
                member.is_dir(),
                member.file_size,
                lambda member=member: file.open(member),
            )


def _safe_path(archive, name, directory):
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or ".." in parts
        or ":" in name.split("/")[0]
        or any(len(os.fsencode(part)) > 255 for part in parts)
    ):
        raise DataError(f"{archive} holds {name!r}, which is no safe relative name; refused")
    return os.path.join(directory, *parts)


def _write_member(path, is_directory, size, stream):
    if is_directory:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with stream() as source, open(path, "xb") as file:
        while block := source.read(min(_BLOCK, size + 1)):  # zip: the last read checks the CRC
            size -= len(block)
            if size < 0:
                raise EOFError("a member is longer than it says")
            file.write(block)
    if size:
        raise EOFError("a member is shorter than it says")
