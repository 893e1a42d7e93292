"""Finds a learning rate for each phase of a run (Smith 2017, arXiv:1506.01186, section 3.3).

    python -m tl_research.lr_find --flagfile=flowers.flags --workdir=DIR

Takes the flags of train.py. Before the first step of a phase the base rate rises from 1e-6 to 1
over 100 steps, each group keeping its multiplier; then weights, optimizer and position are put
back, the phase is trained as it would have been, and the next one's turn comes. Before the last
phase it ends: train.py with the same flags goes on in DIR as if nothing had been. Writes
lr_find/<phase>.csv and .png, and suggests the rate at which the smoothed loss falls fastest.
"""

from tl_research import cli
from tl_research.config import Config


def lr_find(config):
    """Runs the phases of a `Config`, finding a learning rate before each.

    Returns {phase name: suggested base rate}.

    A phase that an earlier call finished is not looked at again. Raises what `experiment.run`
    raises.
    """
    from tl_research import experiment  # imports TensorFlow, which --help need not wait for
    from tl_research.training.lr_finder import Found, LearningRateFinder

    try:
        experiment.run(config, trainer_class=LearningRateFinder)
    except Found as found:
        return found.suggestions
    return {}


def main():
    lr_find(cli.config_from_flags(Config))


if __name__ == "__main__":
    cli.define_flags(Config)
    cli.run(main)
