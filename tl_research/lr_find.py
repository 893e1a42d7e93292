"""Finds a learning rate for each phase of a run (Smith 2017, arXiv:1506.01186, section 3.3).

    python -m tl_research.lr_find --flagfile=flowers.flags --workdir=DIR

Takes the flags of train.py. Before the first step of a phase the base rate rises from 1e-6 to 1
over 100 steps, each group keeping its multiplier; then weights, optimizer and position are put
back, the phase is trained as it would have been, and the next one's turn comes. Before the last
phase it ends: train.py with the same flags goes on in DIR as if nothing had been. Writes
lr_find/<phase>.csv and .png, and suggests the rate at which the loss falls fastest, or says why
there is none.
"""

import time

from tl_research import cli
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.extension import Extension
from tl_research.files import csv_text, make_folders, storage_errors


def lr_find(config: Config, extension: Extension | None = None) -> dict[str, float | None]:
    """Runs the phases of a `Config`, finding a learning rate before each.

    A phase that an earlier call finished is not looked at again. Raises what `experiment.run`
    raises.

    Returns:
        {phase name: suggested base rate, or None}.
    """
    from tl_research import experiment  # imports TensorFlow, which --help need not wait for
    from tl_research.training import head_start, loop, phase
    from tl_research.training.compiler import memory_errors

    last = max((i for i, phase in enumerate(config.phase_plan) if phase.epochs), default=None)
    suggestions = {}
    with experiment.opened(config, extension, "lr_find") as place:
        if place.directory.results:
            raise UserError(
                f"--workdir={place.directory.path} is a finished run; expected one before its last "
                "phase; give another --workdir"
            )
        ready = experiment.prepare(place, time.perf_counter())
        plan, state = ready.plan, ready.state
        if state.position.phase_index == last and state.position.phase_step:
            raise UserError(
                f"{place.directory.path} is a run inside its last phase, "
                f"{plan.phases[last].name}, which would be trained; expected one before that; give "
                "another --workdir"
            )
        tell = loop.teller(ready.observers)
        head_start.make(plan, state, tell)
        for index in plan.left(state):
            with memory_errors(config, f"phase {plan.phases[index].name}"):
                setup = phase.prepare(plan, index, state, tell)
                if not state.position.phase_step:
                    suggestions[setup.phase.name] = _find(setup, state, place.directory)
                if index != last:
                    loop.train_phase(setup, state, ready.resume, tell)
    return suggestions


def _find(setup, state, directory):
    """Writes and prints what a phase makes of rising rates; returns the suggested one or None."""
    from tl_research.reporting import figures
    from tl_research.training import lr_range_test

    rows = lr_range_test.range_test(setup, state)
    suggested, reason = lr_range_test.suggest(rows)
    path = directory.file("lr_find", setup.phase.name)
    with storage_errors(path):
        make_folders(directory.file("lr_find"))
        figures.save_learning_rates(f"{path}.png", rows, suggested)
    columns = ("learning_rate", "loss", "start_loss", "smoothed_loss")
    directory.write_text(f"lr_find/{setup.phase.name}.csv", csv_text(columns, rows))
    found = (
        f"suggested --learning_rate {suggested:.2g}, where the loss falls fastest"
        if suggested
        else f"no rate is suggested: {reason}"
    )
    print(
        f"phase {setup.phase.name}: {found} (range test of Smith 2017, {len(rows)} of "
        f"{len(lr_range_test.RATES)} rates); see {path}.csv",
        flush=True,
    )
    return suggested


def main() -> None:
    lr_find(cli.config_from_flags(Config))


if __name__ == "__main__":
    cli.define_flags(Config)
    cli.run(main, takes="folder")
