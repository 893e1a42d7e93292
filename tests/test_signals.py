"""Signals end a run with their own exit code, wherever they come."""

import contextlib
import signal

import pytest

from tl_research.errors import Interrupted, UserError
from tl_research.signals import Signals


def _interrupted():
    """Raises a signal whose interruption gets lost, as it does in C code that Python calls."""
    with contextlib.suppress(Interrupted):
        signal.raise_signal(signal.SIGHUP)


def test_error_that_came_of_an_interruption_is_that():
    before = signal.getsignal(signal.SIGHUP)
    with (
        pytest.raises(
            Interrupted,
            match="^stopped by SIGHUP, signal 1; nothing is lost. To continue:\n  train.py again$",
        ) as error,
        Signals("train.py again"),
    ):
        _interrupted()
        raise SystemError("bad argument to internal function")
    assert error.value.exit_code == 129 and signal.getsignal(signal.SIGHUP) == before


def test_error_that_a_user_can_put_right_stays_that():
    with pytest.raises(UserError, match="no such layer"), Signals():
        _interrupted()
        raise UserError("no such layer")


def test_signal_in_a_held_part_is_answered_at_its_end():
    done = []
    with pytest.raises(Interrupted), Signals() as signals, signals.held():
        signal.raise_signal(signal.SIGTERM)
        done.append(signals.number)
    assert done == [signal.SIGTERM]
