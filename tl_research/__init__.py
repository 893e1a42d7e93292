"""Transfer learning with an explicit, proved training loop.

Importing this package imports nothing heavy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tl_research.finished import FinishedRun

__version__ = "0.2.0"


def run_of(path: str, extension: str | None = None) -> "FinishedRun":
    """Returns a finished run as `finished.FinishedRun`: with `predict`, `evaluate` and `export`."""
    from tl_research.finished import FinishedRun  # imports TensorFlow

    return FinishedRun(path, extension)
