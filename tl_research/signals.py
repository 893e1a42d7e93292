"""Signals that end a run: immediately, or after the current step or checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from tl_research.errors import Interrupted, UserError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that end a run


@contextlib.contextmanager
def answered_by(handler: Any) -> Iterator[None]:
    """Inside, a handler of `signal.signal` answers the signals that end a run.

    Signals that were ignored before (SIGHUP under nohup) still are.
    """
    before = {}
    # Python allows handlers only there
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def interruption(number: int, resume: str | None, where: str = "") -> Interrupted:
    """Returns the exception for a signal.

    Args:
        number: Number of the signal.
        resume: The command that resumes the run, if there is one.
        where: What was done, as text to follow "stopped by ...".
    """
    by = "Ctrl-C" if number == signal.SIGINT else f"{signal.Signals(number).name}, signal {number}"
    how = f"nothing is lost. To continue:\n  {resume}" if resume else "the same command starts over"
    return Interrupted(f"stopped by {by}{where}; {how}", number)


class Signals:
    """While active, the first SIGINT, SIGTERM or SIGHUP raises Interrupted.

    A second one has its default effect.

    Args:
        resume: The command that resumes the run, if there is one.

    Attributes:
        number: Number of the received signal, or None.
        resume: As given.
    """

    def __init__(self, resume: str | None = None):
        self.number, self.resume = None, resume
        self._held = False
        self._answering = answered_by(self._receive)

    def __enter__(self):
        self._answering.__enter__()
        return self

    def __exit__(self, kind, error, trace):
        self._answering.__exit__(None, None, None)
        if isinstance(error, Exception):
            self._answer_instead_of(error)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal only sets `number`; Interrupted is raised at the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.number is not None:
            self._interrupt()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Inside, within `held`, a signal raises Interrupted immediately."""
        self._held = False
        try:
            if self.number is not None:
                self._interrupt()
            yield
        except Exception as error:
            self._answer_instead_of(error)
            raise
        finally:
            self._held = True

    def _answer_instead_of(self, error):
        """Raises Interrupted if a signal was received and C code turned it into another error."""
        if self.number is not None and not isinstance(error, UserError):
            self._interrupt()

    def _receive(self, number, frame):
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        if not self._held:
            self._interrupt()

    def _interrupt(self):
        raise interruption(self.number, self.resume)
