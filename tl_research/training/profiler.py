"""`--profile_steps`: profiles and marks a few steps, for TensorBoard's profile plugin."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf


class Profiler:
    """Profiles chosen steps.

    Args:
        steps: The global steps.
        directory: The TensorBoard run.
    """

    def __init__(self, steps: range, directory: str):
        self._steps, self._directory, self._running = steps, directory, False

    def limit(self, step: int, count: int) -> int:
        """Returns how many of `count` steps a call that begins at `step` may take: profiled steps
        are taken one at a time.
        """
        if step < self._steps.start:
            return min(count, self._steps.start - step)
        return 1 if step in self._steps else count

    @contextlib.contextmanager
    def mark(self, step: int) -> Iterator[None]:
        """Marks the code inside as the global step `step`."""
        if step not in self._steps:
            self.stop()
            yield
            return
        if not self._running:
            tf.profiler.experimental.start(self._directory)
            self._running = True
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1):
            yield

    def stop(self) -> None:
        """Writes the profile if one is being recorded."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
