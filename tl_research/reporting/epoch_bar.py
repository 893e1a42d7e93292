"""The observer that shows how far an epoch is, on a terminal."""

import contextlib
from collections.abc import Callable

from tl_research.progress_bar import progress_bar
from tl_research.training.events import CallEnded, Event


class EpochBar:
    """Moves a bar with each call, and takes it away at the end of the epoch.

    Args:
        batch_size: Images a step.
    """

    def __init__(self, batch_size: int):
        self._batch_size, self._open = batch_size, contextlib.ExitStack()
        self._move: Callable[[int, int], None] | None = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, CallEnded):
            return
        if self._move is None:
            description = f"{event.phase.name} epoch {event.epoch}"
            bar = progress_bar(description, unit="images", scale=self._batch_size)
            self._move = self._open.enter_context(bar)
        self._move(event.epoch_step, event.steps_per_epoch)
        if event.epoch_step == event.steps_per_epoch:
            self._open.close()
            self._move = None
