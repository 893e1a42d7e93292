"""The memory of this process: its limit, and returning what is not needed."""

import contextlib
import ctypes
import gc
import math
import os
import re
from collections.abc import Iterator

from tl_research import machine
from tl_research.errors import to_stderr

_CGROUPS = "/sys/fs/cgroup"
_OWN = 1 << 30  # bytes for TensorFlow and a network, besides caches


def give_back() -> None:
    """Returns free memory of this process to the system, which glibc would keep: after training
    that is a third of all.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def limit() -> float:
    """Returns the memory of the machine or container in bytes; infinity if that is not known."""
    try:
        of_machine: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        of_machine = math.inf
    return min([of_machine, *cgroup_limits(machine.read("/proc/self/cgroup"))])


def free() -> float:
    """Returns the free memory in bytes; `limit` if that is not known."""
    found = re.search(r"^MemAvailable: +(\d+) kB", machine.read("/proc/meminfo"), re.MULTILINE)
    return min(int(found[1]) * 1024, limit()) if found else limit()


def allowed(asked: int, flag: str, needed: int, taken: int = 0) -> int:
    """Returns the number of bytes a cache may take: the value of a flag, but at most half of what
    is left of `limit`, in which case a note is printed.

    Args:
        asked: The flag's value.
        flag: Its name.
        needed: The largest size of the cache in bytes.
        taken: Bytes of other caches.
    """
    most = int(max(0, min(limit(), 1 << 60) - _OWN - taken) // 2)
    if most < needed <= asked:
        to_stderr(
            f"note: {flag} allows {asked / 2**30:.1f} GiB; using at most {most / 2**30:.1f} of the "
            f"{limit() / 2**30:.1f} available to this process"
        )
    return min(asked, most)


def cgroup_limits(text: str, root: str = _CGROUPS) -> Iterator[int]:
    """Yields the memory limits in bytes of the control groups of a process and their parents.

    Args:
        text: Contents of /proc/self/cgroup, lines of number:controllers:path.
        root: Where groups are mounted: version 2 there or in `unified`, version 1 in `memory`.
    """
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        tops = ("memory",) if controllers else ("", "unified")
        while True:
            for top in tops:
                value = machine.read(os.path.join(root, top, path.lstrip("/"), name)).strip()
                if value.isdigit():  # not `max`
                    yield int(value)
            if path in ("/", ""):
                break
            path = os.path.dirname(path)
