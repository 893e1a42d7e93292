"""`--profile_steps`: profiles and marks a few steps, for TensorBoard's profile plugin."""

import contextlib
import dataclasses
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass
class Profiler:
    """Profiles chosen steps."""

    steps: range  # the global steps
    directory: str  # the TensorBoard run
    running: bool = dataclasses.field(default=False, init=False)

    def limit(self, step: int, count: int) -> int:
        """Returns how many of `count` steps a call that begins at `step` may take: profiled steps
        are taken one at a time.
        """
        if step < self.steps.start:
            return min(count, self.steps.start - step)
        return 1 if step in self.steps else count

    @contextlib.contextmanager
    def mark(self, step: int) -> Iterator[None]:
        """Marks the code inside as the global step `step`."""
        if step not in self.steps:
            self.stop()
            yield
            return
        if not self.running:
            tf.profiler.experimental.start(self.directory)
            self.running = True
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1):
            yield

    def stop(self) -> None:
        """Writes the profile if one is being recorded."""
        if self.running:
            self.running = False
            tf.profiler.experimental.stop()
