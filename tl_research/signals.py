"""Signals that end a run after its checkpoint instead of at once."""

import signal
import threading


class Signals:
    """While active, remembers the first SIGINT, SIGTERM or SIGHUP in `number`; a second one acts as it always does."""

    def __init__(self):
        self.number = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number, frame):
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
