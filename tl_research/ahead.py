"""Work in threads that is ahead of who needs it, in order."""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable

from tl_research import machine


def in_order(function: Callable, items: Iterable, count: int) -> Generator:
    """Yields what a function returns of each item, in parallel and up to `count` items ahead.

    Who waits for a result can be interrupted: then nothing that has not begun is computed.
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
