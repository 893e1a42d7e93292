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

import glob
import math
import os
import re
import shlex
import statistics
import subprocess

import program

from tl_research import seeds
from tl_research.reporting import results
from tl_research.settings import setting

_COLUMNS = """
flags | `{row}`
seeds | {seeds}
validation accuracy | {val_accuracy}
validation loss | {val_loss}
against the first | {against}
test accuracy | {test_accuracy}
seconds | {seconds:.0f}
"""


class Settings(program.Settings):
    """The flags of this benchmark."""

    required = ("runs", "row")
    runs: str | None = setting(None, "directory for the run directories; must be given")
    base: str = setting("--flagfile=flowers.flags", "flags of every run, as on a command line")
    row: tuple[str, ...] = setting(
        (), "flags that a row adds to --base, as on a command line; may be repeated", repeated=True
    )
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the run and of the split", low=0)


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
            flags = shlex.split(f"{settings.base} {row}")
            flags += [f"--seeds={','.join(missing)}", f"--workdir={place}"]
            program.finish(program.start(program.TRAIN, *flags, stdout=subprocess.DEVNULL))
        rows[row] = _finished(place)
    program.write_json(settings.output_json, settings, rows)
    return rows


def _finished(place):
    """Returns {seed: contents of `results.json`} of a row's directory."""
    found = {}
    for path in glob.glob(f"{glob.escape(place)}/seed*/results.json"):
        found[int(path.split(os.sep)[-2].removeprefix("seed"))] = program.read_json(path)
    return dict(sorted(found.items()))


def table(rows):
    """Returns the rows as a Markdown table of means, with the values of each seed in brackets; the
    first row, then the others by their gain over it.
    """
    first, *others = rows
    against = {row: _against(rows[row], rows[first]) for row in others} | {first: (math.inf, None)}
    lines = []
    for row in sorted(rows, key=lambda row: against[row][0], reverse=True):
        values = {name: of["values"] for name, of in seeds.summarize(rows[row].values()).items()}
        line = {name: program.mean_and_each(of) for name, of in values.items()}
        line["seconds"] = statistics.mean(values["seconds"])
        numbers = ", ".join(map(str, rows[row]))
        lines.append({**line, "row": row, "seeds": numbers, "against": against[row][1]})
    return program.table(_COLUMNS, lines)


def _against(runs, first):
    """Returns (mean gain in points of validation accuracy, or -inf; what is said of it)."""
    both = sorted(set(runs) & set(first))
    if not both:
        return -math.inf, ""
    pairs = [(results.selected(runs[seed]), results.selected(first[seed])) for seed in both]
    gains = [100 * (one["val_accuracy"] - other["val_accuracy"]) for one, other in pairs]
    losses, others = zip(*((one["val_loss"], other["val_loss"]) for one, other in pairs))
    gain, percent = statistics.mean(gains), 100 * (sum(losses) / sum(others) - 1)
    error, spread = math.inf, ""
    if len(both) > 1:
        error = statistics.stdev(gains) / math.sqrt(len(both))
        spread = f" ({error:.1f})"
    noise = ", within noise" if len(both) < 3 or abs(gain) < 2 * error else ""
    return gain, f"{gain:+.1f}{spread} points, {percent:+.1f} %{noise}"


if __name__ == "__main__":
    program.main(Settings, lambda settings: table(measure(settings)))
