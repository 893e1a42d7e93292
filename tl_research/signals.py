"""Signals that end a run: at once, or after its checkpoint where it must not be cut in two."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from tl_research.errors import Interrupted, UserError


def interruption(number: int, resume: str | None, where: str = "") -> Interrupted:
    """Returns what ends a program when a signal came.

    Args:
        number: Of the signal.
        resume: The command that goes on with what is interrupted, if there is one.
        where: What had been done, in words that follow "stopped by ...".
    """
    by = "Ctrl-C" if number == signal.SIGINT else f"{signal.Signals(number).name}, signal {number}"
    how = f"nothing is lost. To go on:\n  {resume}" if resume else "the same command begins anew"
    return Interrupted(f"stopped by {by}{where}; {how}", number)


class Signals:
    """While active, the first SIGINT, SIGTERM or SIGHUP raises Interrupted.

    A second one acts as it always does.

    A signal that was ignored before (SIGHUP under nohup) still is.

    Args:
        resume: The command that goes on with what is interrupted, if there is one.

    Attributes:
        number: Of the signal that came, or None.
        resume: As given.
    """

    def __init__(self, resume: str | None = None):
        self.number, self.resume = None, resume
        self._held = False
        self._before: dict = {}

    def __enter__(self):
        # Python allows handlers nowhere else
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Exception):
            self._answer_instead_of(error)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal only sets `number`; at the end at the latest it is answered."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.number is not None:
            self._interrupt()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Inside, within `held`, a signal is answered at once: nothing there must be whole."""
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
        """Raises Interrupted where a signal came and, as it met C code, became another error."""
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
