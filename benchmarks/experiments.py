"""What settings reach: every row of flags trained with several seeds, a split each, and their accuracies in one table.

    python benchmarks/experiments.py --runs=DIR --base="--flagfile=flowers.flags --data_dir=PHOTOS" \
        --row=--augment_views=1 --row=--augment_views=0

Each run is a `train.py` of its own in DIR/<row>/seed<S>. One that is finished is only read, one that was interrupted is
resumed, so the same command goes on where it stopped. "Against the first" are differences of the row from the first row
with the same seed, in points of accuracy and in percent of the loss.
"""

import dataclasses
import json
import os
import re
import shlex
import statistics
import subprocess
import sys

from tl_research import cli
from tl_research.config import setting
from tl_research.errors import UserError
from tl_research.files import write_atomically

_TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    runs: str | None = setting(None, "directory for the run directories; must be given")
    base: str = setting("--flagfile=flowers.flags", "flags of every run, as on a command line")
    row: tuple[str, ...] = setting((), "flags that a row adds to --base, as on a command line; may be repeated", repeated=True)
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the run and of the split", low=0)
    output_json: str | None = setting(None, "file for all numbers; None writes none")

    def __post_init__(self):
        if isinstance(self.seeds, str):
            object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds.split(",")))
        if not self.runs or not self.row:
            raise UserError("--runs or --row is missing; expected a directory and at least one row of flags; "
                            "for example --runs=runs/views --row=--augment_views=1")


def measure(settings):
    """Returns {row: [contents of `results.json`, one for each seed]}; trains what is not there yet.

    Raises:
        UserError: If a run fails; its own message stands above.
    """
    rows = {}
    for row in settings.row:
        rows[row] = []
        for seed in settings.seeds:
            place = os.path.join(settings.runs, re.sub(r"[^\w.=,-]+", "_", row.strip("-")) or "base", f"seed{seed}")
            if not os.path.exists(os.path.join(place, "results.json")):
                command = [sys.executable, _TRAIN, *shlex.split(settings.base), *shlex.split(row), f"--seed={seed}",
                           f"--split_seed={seed}", f"--workdir={place}"]
                print(shlex.join(command), file=sys.stderr, flush=True)
                code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
                if code:
                    raise UserError(f"{shlex.join(command)} ended with exit code {code}; expected 0; correct --base or --row")
            with open(os.path.join(place, "results.json")) as file:
                rows[row].append(json.load(file))
    return rows


def _selected(result):
    """Returns the validation metrics of the weights that a run ended with."""
    (phase,) = (phase for phase in result["phases"] if phase["name"] == result["selected_phase"])
    return phase


def table(rows):
    """Returns the rows as a Markdown table of means, with the values of each seed in brackets."""
    def cell(values, digits=3):
        mean = f"{statistics.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.{digits}f}' for value in values)})"

    first = next(iter(rows.values()))
    lines = ["| flags | validation accuracy | validation loss | against the first | test accuracy |", "|---|---|---|---|---|"]
    for row, results in rows.items():
        accuracy, loss = ([_selected(result)[key] for result in results] for key in ("val_accuracy", "val_loss"))
        points = 100 * statistics.mean(a - _selected(b)["val_accuracy"] for a, b in zip(accuracy, first))
        percent = 100 * (statistics.mean(loss) / statistics.mean(_selected(result)["val_loss"] for result in first) - 1)
        against = "" if results is first else f"{points:+.1f} points, {percent:+.1f} %"
        test = cell([result["test"]["accuracy"] for result in results])
        lines.append(f"| `{row}` | {cell(accuracy)} | {cell(loss)} | {against} | {test} |")
    return "\n".join(lines)


def main():
    settings = cli.config_from_flags(Settings)
    rows = measure(settings)
    print(table(rows), flush=True)
    if settings.output_json:
        write_atomically(settings.output_json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
