"""The CPU cores available to this process, and files of the system."""

import contextlib
import math
import os
import pathlib

_QUOTA = "/sys/fs/cgroup/cpu.max"  # of a container: microseconds of all cores, and in how many


def cores() -> int:
    """Returns the number of CPU cores for this process, as limited by its affinity or container."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(ValueError):
        quota, period = read(_QUOTA).split()
        count = min(count, math.ceil(int(quota) / int(period)))  # no number: without a limit
    return max(1, count)


def read(path: str) -> str:
    """Returns the contents of a file of the system; an empty text if it cannot be read."""
    try:
        return pathlib.Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""
