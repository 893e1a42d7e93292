"""Computes results in threads ahead of their use, in order."""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable

from tl_research import machine


def in_order(function: Callable, items: Iterable, count: int) -> Generator:
    """Yields function(item) for each item, computed in threads.

    If the caller is interrupted while it waits for a result, calls that have not begun are dropped.

    Args:
        function: Called in a thread.
        items: Its arguments, in the order of the results.
        count: Number of items to be ahead of the caller.
    """
    pool = concurrent.futures.ThreadPoolExecutor(machine.cores())
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
