"""The figure of runs on real file systems, also ones that fill up or fail in the middle.

Each case mounts its own, of 64 MiB, where only it and its children see it; where that is not
allowed, or the system does not have the file system, it is skipped, with the reason.
"""

import collections
import contextlib
import ctypes
import os
import re
import signal
import subprocess

from fault_forks import Page, train
from fault_lab import passed

from tl_research.files import read_text

_SIZE = 64 << 20
_CLONE_NEWNS = 0x20000  # see unshare(2)
_AT_SAVE = 5
_MAKERS = {"ext4": ("mkfs.ext4", "-q", "-F"), "vfat": ("mkfs.vfat",), "tmpfs": None}


class _Skipped(Exception):
    """The file system cannot be had here; the text says why."""


def filesystems(lab):
    """Runs on several file systems: killed and resumed, with a disk that fills up, and one that
    becomes read-only.
    """
    lab.reference("cached")
    plans = [(kind, what) for what in ("killed", "full") for kind in _MAKERS]
    plans.append(("ext4", "read-only"))
    cases = lab.each(_on, [(number, *plan) for number, plan in enumerate(plans)])
    tried = [case for case in cases if "skipped" not in case]
    names = collections.Counter(f"{case.get('file system')} {case.get('what')}" for case in tried)
    skipped = {case["file system"]: case["skipped"] for case in cases if "skipped" in case}
    line = f"{passed(tried)} on real file systems resumed bit for bit ({', '.join(names)})"
    return cases, line + "".join(f"; {kind} skipped: {why}" for kind, why in skipped.items())


def _on(lab, number, kind, what):
    run, case = lab.folder(f"filesystem-{number}"), {"file system": kind, "what": what}
    try:
        _mount(kind, run)
    except _Skipped as reason:
        return {**case, "skipped": str(reason)}
    act, mend = _FAULTS.get(what, (None, None))
    if act:
        case["code"] = train(run, lab.flags("cached"), lambda: _at_save(lambda: act(run)))
    else:
        case |= lab.interrupted(run, "cached", signal.SIGKILL, ("save", _AT_SAVE, 0))
    said = re.findall(r"^(?:error: |Traceback).*", read_text(f"{run}.log"), re.MULTILINE)
    expected = 9 if act else -9
    if case["code"] != expected or len(said) != bool(act):
        return {**case, "failed": f"exit code {case['code']}, expected {expected}: {said}"}
    if mend:
        mend(run)
    return lab.resumed(run, "cached", case)


def _mount(kind, place):
    """Mounts a new file system at a place, for this process and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise _Skipped(f"mounting is not allowed ({os.strerror(ctypes.get_errno())})")
    _command("mount", "--make-rprivate", "/")
    os.mkdir(place)
    if not _MAKERS[kind]:
        _command("mount", "-t", kind, "-o", f"size={_SIZE}", "none", place)
        return
    with open(f"{place}.image", "wb") as file:
        file.truncate(_SIZE)
    _command(*_MAKERS[kind], f"{place}.image")
    _command("mount", "-t", kind, "-o", "loop", f"{place}.image", place)


def _command(*words):
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise _Skipped(f"there is no {words[0]}") from None
    except subprocess.CalledProcessError as error:
        raise _Skipped(" ".join(error.stderr.split())) from error


def _at_save(act):
    """Lets something happen before a save of this process."""
    Page().watch(lambda *entered: act() if entered == ("save", _AT_SAVE) else None)


def _fill(place):
    with contextlib.suppress(OSError), open(f"{place}/full", "wb", 0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def _mount_again(place):
    _command("umount", place)
    subprocess.run(["e2fsck", "-fy", f"{place}.image"], capture_output=True, check=False)
    _command("mount", "-o", "loop", f"{place}.image", place)


_FAULTS = {  # what happens to a run, and how the machine is mended then
    "full": (_fill, lambda place: os.remove(f"{place}/full")),
    # what the kernel does on an error of the disk; an ordinary remount waits for open files
    "read-only": (lambda place: _command("mount", "-o", "remount,abort", place), _mount_again),
}
