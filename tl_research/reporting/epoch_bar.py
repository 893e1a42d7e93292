"""The observer that shows the progress of an epoch on a terminal."""

import contextlib
from collections.abc import Callable

from tl_research.progress_bar import progress_bar
from tl_research.reporting.observer import EventHandler


class EpochBar(EventHandler):
    """Moves a bar with each call, and removes it at the end of the epoch.

    Args:
        batch_size: Images per step.
    """

    def __init__(self, batch_size: int):
        self._batch_size, self._open = batch_size, contextlib.ExitStack()
        self._move: Callable[[int, int], None] | None = None

    def _on_CallEnded(self, event):
        if self._move is None:
            description = f"{event.phase.name} epoch {event.epoch}"
            bar = progress_bar(description, unit="images", scale=self._batch_size)
            self._move = self._open.enter_context(bar)
        self._move(event.epoch_step, event.steps_per_epoch)
        if event.epoch_step == event.steps_per_epoch:
            self._open.close()
            self._move = None
