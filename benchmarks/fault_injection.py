"""What happens to a run when something goes wrong, case by case, counted in one table.

    python benchmarks/fault_injection.py --output_json=faults.json

kills a small two-phase run at random points, sends signals, fills disks, and starts runs at once or
under other settings. Every case is a fork of this process (`fault_forks.py`) in which `train.py`
itself runs. A case that fails is printed and counted, never dropped. What needs no run is asserted
in tests/: damaged checkpoints and images, a writer that ends at each of its file operations,
hostile artefacts and flag files.
"""

import signal
import sys
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import fault_environments
import fault_filesystems
import fault_runs
import program
from fault_lab import Lab

from tl_research.errors import UserError
from tl_research.settings import setting

FIGURES = {
    "kill": fault_runs.kill,
    "signal": fault_runs.signals,
    "starts": fault_runs.starts,
    "filesystems": fault_filesystems.filesystems,
    "controls": fault_runs.controls,
    "environments": fault_environments.environments,
    "cost": fault_runs.cost,
}


_COLUMNS = """
Fault | `{figure}`
What happened | {line}
Minutes | {minutes:.1f}
"""


class Settings(program.Settings):
    """The flags of this benchmark."""

    figures: tuple[str, ...] = setting(
        ("all",), f"which to measure, of {', '.join(FIGURES)}; all of them"
    )
    quick: bool = setting(False, "a fifth of the cases, for a look")
    seed: int = setting(0, "of delays and damage", low=0)
    jobs: int = setting(2, "cases at a time", low=1)


def _rows(chosen, lab):
    """Yields a row for each figure."""
    for name in chosen:
        start = time.monotonic()
        cases, line = FIGURES[name](lab)
        seconds = time.monotonic() - start
        failed = [case for case in cases if "failed" in case]
        for case in failed:
            print(f"failed: {name}: {case}", file=sys.stderr, flush=True)
        row = {"figure": name, "line": line, "minutes": seconds / 60, "seconds": seconds}
        yield {**row, "failed": len(failed), "cases": cases}


def report(settings):
    # A shell starts what runs in the background with interrupts ignored, which every case would
    # inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = FIGURES if settings.figures == ("all",) else settings.figures
    if wrong := set(chosen) - set(FIGURES):
        raise UserError(
            f"--figures names {', '.join(wrong)}; expected all or some of {','.join(FIGURES)}; "
            "correct it"
        )
    with tempfile.TemporaryDirectory() as place:
        found = program.gathered(settings, _COLUMNS, _rows(chosen, Lab(settings, place)))
    print(f"\n{program.table(_COLUMNS, found)}")
    if failed := sum(row["failed"] for row in found):
        raise UserError(f"{failed} cases failed; expected none; they are named above")


if __name__ == "__main__":
    program.main(Settings, report)
