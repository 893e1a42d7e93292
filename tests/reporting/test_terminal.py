"""What a person sees on a terminal of 40 columns, and what a file or pipe gets."""

import subprocess
import sys

import pytest

from tl_research.reporting.terminal import duration

_PROGRAM = r"""
from tl_research import cli
from tl_research.reporting.terminal import BOLD, say

def main():
    say("one line of more words than have room in it", style=BOLD)
    say("  a command that stays in one piece, however long it is")
    print("\x1b[31mred\x1b[2J of somebody's file name")

cli.define_flags()
cli.run(main)
"""


@pytest.mark.parametrize(
    "environment, begin, end",
    [({}, "\x1b[1m", "\x1b[0m"), ({"NO_COLOR": "1"}, "", ""), ({"TERM": "dumb"}, "", "")],
)
def test_terminal_has_whole_words_and_only_our_colors(on_terminal, environment, begin, end):
    said = on_terminal([sys.executable, "-c", _PROGRAM], **environment)
    assert said == (
        f"{begin}one line of more words than have room\n  in it{end}\n"
        "  a command that stays in one piece, however long it is\n"
        "\\x1b[31mred\\x1b[2J of somebody's file name\n"
    )


def test_pipe_gets_lines_as_they_are():
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "one line of more words than have room in it"
    assert done.stdout.splitlines()[2] == "\x1b[31mred\x1b[2J of somebody's file name"


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119, "119 s"), (150, "2 min")]
    + [(7100, "118 min"), (9000, "2.5 h")],
)
def test_seconds_have_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text
