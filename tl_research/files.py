"""Files that are whole or not there, also after a crash."""

import contextlib
import csv
import hashlib
import io
import os
import shutil

from tl_research.errors import StorageError


@contextlib.contextmanager
def storage_errors(path):
    """Turns an error of the operating system while `path` is written into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"could not write {path}: {error.strerror or error}; expected a writable place with "
            "room; free some or choose another --workdir"
        ) from error


def sync(path):
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path, chunks):
    """Writes byte strings to a new file, syncs it and returns its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def remove_leftovers(directory):
    """Removes what an interrupted writing or removal left in a directory, if there is one."""
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        if (
            (".tmp-" in name or ".trash-" in name)
            and os.path.isdir(path)
            and not os.path.islink(path)
        ):
            shutil.rmtree(path, ignore_errors=True)
        elif ".tmp-" in name or ".trash-" in name:
            os.remove(path)


def write_atomically(path, text):
    """Replaces a text file as a whole: readers see the old or the new one.

    Args:
        path: The file.
        text: What it is to hold, or an iterator of its parts.

    Raises:
        StorageError: If the file cannot be written.
    """
    temporary = f"{path}.tmp-{os.getpid()}"
    with storage_errors(path):
        if os.path.exists(temporary):
            os.remove(temporary)
        parts = [text] if isinstance(text, str) else text
        write_synced(temporary, (part.encode(errors="surrogateescape") for part in parts))
        os.replace(temporary, path)
        sync(os.path.dirname(path) or ".")


def csv_text(columns, rows, header=True):
    """Returns a CSV file's text from dicts, `escaped`, with a line of the columns or without."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return escaped(text.getvalue())


def escaped(text):
    """Returns a text in which bytes of a file name that are not UTF-8 stand as `\\xNN`."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
