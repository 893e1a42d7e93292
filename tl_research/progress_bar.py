"""Progress on a terminal and in a notebook; elsewhere the loop prints one line an epoch."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import tqdm


def in_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook."""
    return "ipykernel.zmqshell" in sys.modules


@contextlib.contextmanager
def progress_bar(
    description: str, unit: str = "batches", scale: int = 1
) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that moves a bar, with rate and time left, on stderr if
    that is a terminal that can move back in a line, or in the notebook.

    Args:
        description: What is going on.
        unit: What is counted, with `scale` of it in one piece done.
        scale: See `unit`.
    """
    is_shown = in_notebook() or sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with tqdm.tqdm(
        desc=description,
        unit=" " + unit,
        leave=False,
        file=sys.stdout if in_notebook() else sys.stderr,
        disable=not is_shown,
    ) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total * scale
            bar.update(done * scale - bar.n)

        yield move
