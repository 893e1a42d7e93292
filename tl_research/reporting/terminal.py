"""Printing for people: plain lines to a file or pipe; on a terminal wrapped at words, and in color
if it supports color.
"""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from tl_research.files import Json
from tl_research.progress_bar import in_notebook

BOLD, GREEN = 1, 32  # codes that `cli` lets through


def say(*lines: str, style: int | None = None) -> None:
    """Prints lines immediately. Indented ones, such as commands, are not wrapped.

    Args:
        lines: Text without line breaks.
        style: BOLD or GREEN, used on terminals that support it.
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


def say_result(found: Json, is_wanted: bool = False) -> None:
    """Prints a JSON value as the RESULT line, for programs, if stdout is neither a terminal nor a
    notebook or if `is_wanted`.
    """
    if is_wanted or not (sys.stdout.isatty() or in_notebook()):
        print("RESULT " + json.dumps(found, allow_nan=False), flush=True)


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def duration(seconds: float) -> str:
    """Returns seconds as text in a suitable unit."""
    for limit, unit, size in ((9.95, "s", 1), (119.5, "s", 1), (7170, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.{int(limit < 10)}f} {unit}"
    return f"{seconds / 3600:.1f} h"
