"""Finds the images in a folder and its subfolders, and counts the other files.

A file is an image by its suffix or, if that is unknown, by its first bytes. Hidden and system files
do not count, nor do the pictures of a run. A link to a file must stay inside the data directory,
and links to subfolders are not followed, so no walk loops.
"""

import collections
import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from tl_research.data import formats
from tl_research.data.split import printable
from tl_research.files import escaped

# besides every name that begins with a dot; the folders of network storage hold thumbnails
_SYSTEM_FILES = (
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
_HIDDEN = "hidden or system"
RUN = "run of this program"
_NUM_NAMED = 5  # kinds of other files that a message names


def images_below(
    folder: str, inside: Sequence[str], others: collections.Counter
) -> Iterator[tuple[str, str, str | None]]:
    """Yields (name relative to `folder`, path, why it must not be opened or None) for every image:
    a folder's own by name, then those of its subfolders.

    Args:
        folder: Where the walk begins.
        inside: Real paths of the folders that links to files must stay in.
        others: Counts the files that are not images, by suffix; changed in place.
    """
    pending = [(folder, "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            with os.scandir(folder) as unsorted:
                entries = sorted(unsorted, key=lambda entry: entry.name)
        except OSError as error:
            yield prefix, folder, f"unreadable folder: {error.strerror}"
            continue
        if is_of_runs(folder):
            others[RUN] += 1
            continue
        deeper = []
        for entry in entries:
            name = prefix + entry.name
            if is_system_file(entry.name):
                count_other(entry.name, others)
            elif entry.is_dir(follow_symlinks=False):
                deeper.append((entry.path, name + "/"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                yield name, entry.path, "link to a folder: not followed"
            elif _may_be_image(entry, refusal := _refusal(entry, inside)):
                yield name, entry.path, refusal
            else:
                count_other(entry.name, others)
        pending += reversed(deeper)


def is_system_file(name: str) -> bool:
    """Returns whether a file or folder of that name is hidden or the operating system's."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def is_of_runs(folder: str) -> bool:
    """Returns whether a folder is a run of this program, or the folder that holds its runs."""
    runs = [folder]
    if os.path.basename(folder) == "runs":
        with contextlib.suppress(OSError):
            runs += [f"{folder}/{name}" for name in os.listdir(folder)]
    files = ("flags.txt", "bad_images.csv")
    return any(all(os.path.exists(f"{run}/{name}") for name in files) for run in runs)


def is_inside(path: str, folder: str) -> bool:
    """Returns whether a real path is a folder or is inside it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def count_other(name: str, others: collections.Counter, where: str = "") -> None:
    """Counts a file that is not used.

    Args:
        name: Of the file.
        others: The counts by suffix; changed in place.
        where: Text after the suffix that says where the file is.
    """
    kind = (formats.suffix_of(name) or "without a suffix") + where
    others[_HIDDEN if is_system_file(name) else kind] += 1


def others_text(others: collections.Counter) -> str:
    """Returns a sentence that counts the files that are not images, by suffix."""
    total = others.total()
    named = [f"{count} {suffix}" for suffix, count in others.most_common(_NUM_NAMED)]
    if len(others) > _NUM_NAMED:
        named.append(f"{len(others) - _NUM_NAMED} more kinds")
    files = "1 other file is" if total == 1 else f"{total} other files are"
    return printable(escaped(f"{files} not used: {', '.join(named)}"))


def _may_be_image(entry, refusal):
    """Returns whether a directory entry counts as an image, possibly a missing one: by its suffix,
    or by its first bytes unless it must not be opened.
    """
    if formats.kind_by_suffix(entry.name):
        return True
    if refusal:  # the target of a link without a suffix may have been a folder
        return entry.is_symlink() and not os.path.exists(entry.path) and "." not in entry.name
    try:
        with formats.opened(entry.path) as file:
            start = file.read(formats.SNIFFED_BYTES)
    except OSError as error:  # without a suffix it may be an image
        return error.errno != errno.ENOENT and "." not in entry.name
    return formats.kind_by_content(start, entry.path) is not None


def _refusal(entry, inside):
    """Returns why a directory entry must not be opened as an image, or None."""
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not os.path.exists(target):
            return f"dangling link to {target}"
        if not any(is_inside(target, folder) for folder in inside):
            return f"link that leaves the data directory: {target}"
    return None if entry.is_file() else "not a regular file"  # opening a FIFO would block
