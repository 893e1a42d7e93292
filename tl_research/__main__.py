"""Image classification from a folder of photographs: one command for each thing to do.

    tl-research train PHOTOS                  trains on one folder per class
    tl-research predict --run=latest IMAGE    says what is on images
    tl-research evaluate --run=latest         writes figures of a finished run
    tl-research export --run=latest           writes it in other formats
    tl-research lr-find PHOTOS                finds learning rates before training

`tl-research NAME --help` lists the flags of one. Each is `python -m tl_research.NAME` too.
"""

import runpy
import sys

from tl_research import __version__, cli
from tl_research.errors import suggestion

_COMMANDS = ("train", "predict", "evaluate", "export", "lr-find")


def main() -> None:
    """Runs the program that the first argument names, with the others."""
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in _COMMANDS:
        del sys.argv[1]
        # as `python -m` does: what a program needs is imported by it alone
        runpy.run_module(f"tl_research.{name.replace('-', '_')}", run_name="__main__")
    elif name == "--version":
        print(f"tl_research {__version__}")
    elif name in (None, "-h", "--help"):
        print(__doc__.strip(), file=sys.stdout if name else sys.stderr)
        sys.exit(not name)
    else:
        hint = suggestion(name, _COMMANDS) or f"; did you mean `tl-research train {name}`?"
        sys.exit(cli.fail(f"{name!r} is no command; expected {', '.join(_COMMANDS)}{hint}", 1))


if __name__ == "__main__":
    main()
