"""Fine-tunes a pretrained image backbone on a folder of photographs, and proves it.

    tl-research train PHOTOS             one folder per class in PHOTOS
    tl-research train --preset=flowers   3,670 photographs, downloaded
    python train.py --flagfile=flowers.flags     the same, in a clone

trains the two-phase recipe and prints one honest test number. If a flag is
given twice, also in a preset or flag file, the later one is used.
"""

import sys
import time

STARTED = time.perf_counter()

from tl_research import cli
from tl_research.config import Config
from tl_research.reporting.terminal import say


def _train():
    config = cli.config_from_flags(Config)
    if sys.stdout.isatty():
        say("loading TensorFlow")  # which takes seconds
    if config.seeds:
        from tl_research import seeds

        seeds.run(config, cli.debug_flag())
        return
    from tl_research import experiment  # imports TensorFlow, which --help need not wait for

    experiment.run(config, started=STARTED)


def main() -> None:
    """Trains with the flags of the command line, and exits."""
    cli.define_flags(Config)
    cli.run(_train, takes="folder")


if __name__ == "__main__":
    main()
