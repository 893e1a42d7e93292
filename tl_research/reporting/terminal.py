"""How text reaches a person: as it is in a file or pipe; on a terminal in lines of whole words, and
in color if it has some.
"""

import json
import os
import shutil
import sys
import textwrap
from typing import Any

from tl_research.progress_bar import in_notebook

BOLD, GREEN = 1, 32  # of the codes that `cli` lets through


def is_watched() -> bool:
    """Returns whether a person reads stdout as it comes: on a terminal or in a notebook."""
    return sys.stdout.isatty() or in_notebook()


def say(*lines: str, style: int | None = None) -> None:
    """Prints lines at once; those that are indented, such as commands, stay in one piece.

    Args:
        lines: Text without line breaks.
        style: BOLD or GREEN, where stdout is a terminal that has them.
    """
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    for line in lines:
        if is_terminal and not line.startswith(" "):
            line = textwrap.fill(
                line,
                width,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        if style and is_terminal and not plain:
            line = f"\x1b[{style}m{line}\x1b[0m"
        print(line, flush=True)


def say_result(found: dict[str, Any], is_wanted: bool = False) -> None:
    """Prints what programs read, a JSON value, as the RESULT line: where no person reads stdout, or
    where it is wanted.
    """
    if is_wanted or not is_watched():
        print("RESULT " + json.dumps(found, allow_nan=False), flush=True)


def duration(seconds: float) -> str:
    """Returns seconds in the unit that suits them."""
    for limit, unit, size in ((9.95, "s", 1), (119.5, "s", 1), (7170, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.{int(limit < 10)}f} {unit}"
    return f"{seconds / 3600:.1f} h"
