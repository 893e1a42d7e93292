"""`--profile_steps`: a profile of a few steps, each marked, for TensorBoard's profile plugin."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf


class Profiler:
    """Profiles the calls of chosen steps.

    Args:
        steps: (A, B): the global steps from A up to B; (0, 0) for none.
        directory: The TensorBoard run.
    """

    def __init__(self, steps: tuple[int, int], directory: str):
        (self._first, self._end), self._directory, self._running = steps, directory, False

    def limit(self, step: int, count: int) -> int:
        """Returns how many of `count` steps a call from `step` on may take, so that profiled steps
        come one by one.
        """
        return (
            1
            if self._first <= step < self._end
            else min(count, self._first - step)
            if step < self._first
            else count
        )

    @contextlib.contextmanager
    def mark(self, step: int) -> Iterator[None]:
        """Inside, the global step `step` is taken."""
        if not self._first <= step < self._end:
            self.stop()
            yield
            return
        if not self._running:
            tf.profiler.experimental.start(self._directory)
            self._running = True
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1):
            yield

    def stop(self) -> None:
        """Writes the profile, if one is being taken."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
