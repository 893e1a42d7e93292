"""Fine-tunes a pretrained image backbone in phases and proves what it did.

    python train.py --flagfile=flowers.flags

trains the two-phase recipe and prints one honest test number; the README has the times and
accuracies. Settings are declared in `tl_research/config.py`, the run is told in
`tl_research/experiment.py`.
"""

import time

STARTED = time.perf_counter()

from tl_research import cli
from tl_research.config import Config

cli.define_flags(Config)


def main():
    config = cli.config_from_flags(Config)
    if config.seeds:
        from tl_research import seeds

        seeds.run(config, __file__, cli.debug_flag())
        return
    from tl_research import experiment  # imports TensorFlow, which --help need not wait for

    experiment.run(config, started=STARTED)


if __name__ == "__main__":
    cli.run(main)
