"""Finds a learning rate for each phase of a run (Smith 2017, arXiv:1506.01186, section 3.3).

    python -m tl_research.lr_find --flagfile=flowers.flags --workdir=DIR

Takes the flags of train.py. Before the first step of each phase the base rate rises from 1e-6 to 1
over 100 steps, with each group's multiplier applied; then weights, optimizer and position are
restored, the phase is trained as usual, and the next one follows. It ends before the last phase is
trained: train.py with the same flags continues in DIR as if nothing had happened. Writes
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
    """Runs the phases of a `Config` and a learning rate range test before each.

    Phases that an earlier call finished are not tested again. Raises the errors of
    `experiment.run`.

    Args:
        config: The settings of the run.
        extension: Parts that replace the package's own; by default those of `config.extension`.

    Returns:
        {phase name: suggested base rate, or None}.
    """
    from tl_research import experiment  # imports TensorFlow, too slow for --help
    from tl_research.training import head_start, loop, phase
    from tl_research.training.compiler import memory_errors

    last = max((i for i, phase in enumerate(config.phase_plan) if phase.epochs), default=None)
    suggestions = {}
    with experiment.opened(config, extension, "lr_find") as place:
        if place.directory.results:
            raise UserError(
                f"--workdir={place.directory.path} is a finished run; expected one before its last "
                "phase; use another --workdir"
            )
        ready = experiment.prepare(place, time.perf_counter())
        plan, state = ready.plan, ready.state
        if state.position.phase_index == last and state.position.phase_step:
            raise UserError(
                f"{place.directory.path} is a run inside its last phase, "
                f"{plan.phases[last].name}, which would be trained; expected one before that; use "
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
    """Writes and prints the range test of a phase; returns the suggested rate or None."""
    from tl_research.reporting import figures
    from tl_research.training import lr_range_test

    rows = lr_range_test.range_test(setup, state)
    suggested, reason = lr_range_test.suggest(rows)
    name, total = setup.phase.name, len(lr_range_test.RATES)
    path = directory.file("lr_find", name)
    with storage_errors(path):
        make_folders(directory.file("lr_find"))
        figures.save_learning_rates(f"{path}.png", rows, suggested)
    directory.write_text(f"lr_find/{name}.csv", csv_text(lr_range_test.COLUMNS, rows))
    found = f"no learning rate is suggested: {reason}"
    if suggested:
        found = f"suggested learning rate {suggested:.2g}, where the loss falls fastest"
    tested = f"range test of Smith 2017, {len(rows)} of {total} rates"
    print(f"phase {name}: {found} ({tested}); see {path}.csv", flush=True)
    return suggested


def main() -> None:
    lr_find(cli.config_from_flags(Config))


if __name__ == "__main__":
    cli.define_flags(Config)
    cli.run(main, takes="folder")
