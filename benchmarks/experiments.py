"""What settings reach: every row of flags trained with some seeds, a split each, and their
accuracies in one table.

    python benchmarks/experiments.py --runs=DIR --base="--flagfile=flowers.flags --data_dir=PHOTOS"
    \
        --row=--flagfile=recipes/plain.flags --row=--augment_views=1 --seeds=0

Each row is a `train.py --seeds` of its own in DIR/<row>. A seed that is finished is only read, one
that was interrupted is resumed, so the same command goes on where it stopped. The table has all
seeds of a row that are finished, those of earlier commands too. Below the first row stand the
others, best first by "against the first": the mean of their differences from it in validation
accuracy, in points, seed by seed over those that both have, with its standard error in brackets,
and the difference of the mean losses in percent. Less than two standard errors, or fewer than three
seeds, are "within noise".
"""

import dataclasses
import glob
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys

from tl_research import cli, seeds
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.settings import setting

_TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    runs: str | None = setting(None, "directory for the run directories; must be given")
    base: str = setting("--flagfile=flowers.flags", "flags of every run, as on a command line")
    row: tuple[str, ...] = setting(
        (), "flags that a row adds to --base, as on a command line; may be repeated", repeated=True
    )
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the run and of the split", low=0)
    output_json: str | None = setting(None, "file for all numbers; None writes none")

    def __post_init__(self):
        if isinstance(self.seeds, str):
            object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds.split(",")))
        if not self.runs or not self.row:
            raise UserError(
                "--runs or --row is missing; expected a directory and at least one row of flags; "
                "for example --runs=runs/views --row=--augment_views=1"
            )


def measure(settings):
    """Returns {row: {seed: contents of `results.json`}}; trains what is not there yet.

    Raises:
        UserError: If a run fails; its own message stands above.
    """
    rows = {}
    for row in settings.row:
        place = os.path.join(settings.runs, re.sub(r"[^\w.=,-]+", "_", row.strip("-")) or "base")
        missing = [str(seed) for seed in settings.seeds if seed not in _finished(place)]
        if missing:
            command = [
                sys.executable,
                _TRAIN,
                *shlex.split(settings.base),
                *shlex.split(row),
                f"--seeds={','.join(missing)}",
                f"--workdir={place}",
            ]
            print(shlex.join(command), file=sys.stderr, flush=True)
            code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
            if code:
                raise UserError(
                    f"{shlex.join(command)} ended with exit code {code}; expected 0; correct "
                    "--base or --row"
                )
        rows[row] = _finished(place)
    return rows


def _finished(place):
    """Returns {seed: contents of `results.json`} of a row's directory."""
    found = {}
    for path in glob.glob(os.path.join(glob.escape(place), "seed*", "results.json")):
        with open(path, encoding="utf-8") as file:
            found[int(path.split(os.sep)[-2].removeprefix("seed"))] = json.load(file)
    return dict(sorted(found.items()))


def table(rows):
    """Returns the rows as a Markdown table of means, with the values of each seed in brackets; the
    first row, then the others by their gain over it.
    """
    first, *others = rows.items()
    against = {row: _against(runs, first[1]) for row, runs in others}
    others = sorted(others, key=lambda item: against[item[0]][0], reverse=True)
    lines = [
        (
            "| flags | seeds | validation accuracy | validation loss | against the first | test "
            "accuracy | seconds |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for row, runs in (first, *others):
        values = {name: of["values"] for name, of in seeds.summarize(runs.values()).items()}
        lines.append(
            f"| `{row}` | {', '.join(map(str, runs))} | {_cell(values['val_accuracy'])} | "
            f"{_cell(values['val_loss'])} | {against[row][1] if row in against else ''} | "
            f"{_cell(values['test_accuracy'])} | {statistics.mean(values['seconds']):.0f} |"
        )
    return "\n".join(lines)


def _cell(values):
    """Returns the mean and, of several values, each of them."""
    each = ", ".join(f"{value:.3f}" for value in values)
    return each if len(values) == 1 else f"{statistics.mean(values):.3f} ({each})"


def _against(runs, first):
    """Returns (mean gain in points of validation accuracy, or -inf; what is said of it)."""
    both = sorted(set(runs) & set(first))
    if not both:
        return -math.inf, ""
    pairs = [(seeds.selected(runs[seed]), seeds.selected(first[seed])) for seed in both]
    gains = [100 * (one["val_accuracy"] - other["val_accuracy"]) for one, other in pairs]
    losses, others = zip(*((one["val_loss"], other["val_loss"]) for one, other in pairs))
    gain, percent = statistics.mean(gains), 100 * (sum(losses) / sum(others) - 1)
    error = statistics.stdev(gains) / math.sqrt(len(both)) if len(both) > 1 else math.inf
    spread = f" ({error:.1f})" if len(both) > 1 else ""
    noise = ", within noise" if len(both) < 3 or abs(gain) < 2 * error else ""
    return gain, f"{gain:+.1f}{spread} points, {percent:+.1f} %{noise}"


def main():
    settings = cli.config_from_flags(Settings)
    rows = measure(settings)
    print(table(rows), flush=True)
    if settings.output_json:
        write_atomically(settings.output_json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
