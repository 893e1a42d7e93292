"""The memory of this process: how much it may have, and what it need not keep."""

import contextlib
import ctypes
import gc
import math
import os
import sys

_CGROUPS = "/sys/fs/cgroup"
_OWN = 1 << 30  # bytes that TensorFlow and a network need beside what is kept


def give_back() -> None:
    """Gives the system back what is free inside this process, which glibc keeps by itself: after
    training that is a third of all.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def limit() -> float:
    """Returns the bytes that this process may have: the machine's, or those of its container;
    infinity where the system does not say.
    """
    return min([_of_machine(), *_of_cgroups(_read("/proc/self/cgroup"))])


def allowed(asked: int, flag: str, needed: int, taken: int = 0) -> int:
    """Returns how many bytes may be kept: what a flag allows, but at most half of what `limit`
    leaves. Says so where that decides.

    Args:
        asked: The flag's value.
        flag: Its name.
        needed: Bytes that are to be kept, at most.
        taken: Bytes of what is kept already.
    """
    most = int(max(0, min(limit(), 1 << 60) - _OWN - taken) // 2)
    if most < needed <= asked:
        print(
            f"note: {flag} allows {asked / 2**30:.1f} GiB; at most {most / 2**30:.1f} of the "
            f"{limit() / 2**30:.1f} that this process may have are used",
            file=sys.stderr,
        )
    return min(asked, most)


def _of_machine():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return math.inf


def _of_cgroups(text, root=_CGROUPS):
    """Yields the limits, in bytes, of the groups that a process is in and of those around them.

    Args:
        text: /proc/self/cgroup: lines of number:controllers:path.
        root: Where groups are mounted, version 2 there or in `unified`, version 1 in `memory`.
    """
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        tops = ("memory",) if controllers else ("", "unified")
        while True:
            for top in tops:
                value = _read(os.path.join(root, top, path.lstrip("/"), name)).strip()
                if value.isdigit():  # not `max`
                    yield int(value)
            if path in ("/", ""):
                break
            path = os.path.dirname(path)


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
