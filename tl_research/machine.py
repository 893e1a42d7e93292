"""What this process may use of the machine it runs on."""

import contextlib
import math
import os

_QUOTA = "/sys/fs/cgroup/cpu.max"  # of a container: microseconds of all cores, and in how many


def cores() -> int:
    """Returns the CPU cores that this process may use, which its affinity or a container limits."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError), open(_QUOTA, encoding="ascii") as file:
        quota, period = file.read().split()
        count = min(count, math.ceil(int(quota) / int(period)))  # no number: without a limit
    return max(1, count)
