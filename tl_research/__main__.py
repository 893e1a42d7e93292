"""Image classification from a folder of photographs, in five commands.

    tl-research train PHOTOS                  trains on one folder per class
    tl-research predict --run=latest IMAGE    predicts the classes of images
    tl-research evaluate --run=latest         writes tables and figures of a finished run
    tl-research export --run=latest           writes its model in other formats
    tl-research lr-find PHOTOS                finds learning rates before training

`tl-research NAME --help` lists the flags of a command, which is `python -m tl_research.NAME` too.
"""

import runpy
import sys

from tl_research import __version__, cli
from tl_research.errors import suggestion

_COMMANDS = ("train", "predict", "evaluate", "export", "lr-find")


def main() -> None:
    """Runs the command given by the first argument with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in _COMMANDS:
        del sys.argv[1]
        # like `python -m`: a command imports only what it needs
        runpy.run_module(f"tl_research.{name.replace('-', '_')}", run_name="__main__")
    elif name == "--version":
        print(f"tl_research {__version__}")
    elif name in (None, "-h", "--help"):
        print(__doc__.strip(), file=sys.stdout if name else sys.stderr)
        sys.exit(not name)
    else:
        hint = suggestion(name, _COMMANDS) or f"; did you mean `tl-research train {name}`?"
        sys.exit(cli.fail(f"{name!r} is not a command; expected {', '.join(_COMMANDS)}{hint}", 1))


if __name__ == "__main__":
    main()
