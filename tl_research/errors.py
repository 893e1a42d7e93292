"""Errors that users can fix, with the exit codes of `train.py` and the tools."""

import difflib
import sys
from collections.abc import Iterable


def suggestion(word: str, words: Iterable[str]) -> str:
    """Returns `; did you mean WORD?` for the nearest of `words`, or an empty text."""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def counted(count: int, noun: str) -> str:
    """Returns a number of things as text, `1 image` or `2 images`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def to_stderr(text: object) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr, flush=True)


class UserError(ValueError):
    """A flag, value or pattern that cannot be used.

    Args:
        message: One line: received; expected; how to fix it.
        flag: Name of the flag with the wrong value, if there is one.
    """

    exit_code = 1

    def __init__(self, message: str, flag: str | None = None):
        super().__init__(message)
        self.flag = flag


class CompileError(UserError):
    """XLA cannot compile a step."""


class DataError(UserError):
    """Images, splits, downloads or weight files that cannot be used."""

    exit_code = 2


class UnreachableError(DataError):
    """A download that could not be reached.

    `--if_offline=embedded` replaces it, any other DataError stops the run.
    """


class GateError(UserError):
    """The test accuracy is below `--min_test_accuracy`."""

    exit_code = 3


class AuditError(UserError):
    """A frozen variable or BatchNorm statistic moved, or a trainable variable did not."""

    exit_code = 4


class NonFiniteError(UserError):
    """The loss or a gradient is not finite; the update was not applied."""

    exit_code = 5


class ExportError(UserError):
    """The outputs of an exported model differ from those of the trained one."""

    exit_code = 6


class CheckpointError(UserError):
    """No checkpoint can be used, or a resumed run has other flags that may not change."""

    exit_code = 7


class RunDirectoryError(UserError):
    """The run directory is in use, or is not a run."""

    exit_code = 8


class StorageError(UserError):
    """The run directory or the download cache cannot be written."""

    exit_code = 9


class OutOfMemoryError(UserError):
    """The device or the machine has too little memory for this batch size."""

    exit_code = 10


class MissingWorkerError(UserError):
    """A process of the cluster did not start in time."""

    exit_code = 11


class Interrupted(BaseException):
    """A signal ended the run after its checkpoint was written; the exit code is 128 plus the
    signal's number.

    Not an `Exception`, since it is raised anywhere: libraries would catch it, and a traced function
    would turn it into another error.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number, self.exit_code = int(signal_number), 128 + signal_number
