"""Progress on a terminal; elsewhere nothing, since the loop prints one line an epoch."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import tqdm


@contextlib.contextmanager
def progress_bar(
    description: str, unit: str = "batches", scale: int = 1
) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that moves a bar on stderr, with rate and time left, if
    that is a terminal.

    Args:
        description: What is going on.
        unit: What is counted, with `scale` of it in one piece done.
        scale: See `unit`.
    """
    with tqdm.tqdm(
        desc=description, unit=" " + unit, leave=False, file=sys.stderr, disable=None
    ) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total * scale
            bar.update(done * scale - bar.n)

        yield move
