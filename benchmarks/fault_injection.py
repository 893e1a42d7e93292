"""What happens to a run when something goes wrong, case by case, counted in one table.

    python benchmarks/fault_injection.py --output_json=faults.json

kills a small two-phase run at random points and at every file operation of a save, damages
checkpoints, sends signals, fills disks, and feeds it bad images, flag files and artefacts. Every
case is a fork of this process (`fault_forks.py`) in which `train.py` itself runs. A case that fails
is printed and counted, never dropped.
"""

import dataclasses
import json
import signal
import sys
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import fault_environments
import fault_filesystems
import fault_misfeeding
import fault_runs
from fault_lab import Lab

from tl_research import cli
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.settings import setting

FIGURES = {
    "kill": fault_runs.kill,
    "operations": fault_runs.operations,
    "damage": fault_runs.damage,
    "signal": fault_runs.signals,
    "images": fault_misfeeding.images,
    "flagfiles": fault_misfeeding.flagfiles,
    "artefacts": fault_misfeeding.artefacts,
    "starts": fault_runs.starts,
    "filesystems": fault_filesystems.filesystems,
    "controls": fault_runs.controls,
    "repeat": fault_runs.repeat,
    "environments": fault_environments.environments,
    "cost": fault_runs.cost,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    figures: str = setting(
        "all", f"which to measure, separated by commas, of {', '.join(FIGURES)}; all of them"
    )
    quick: bool = setting(False, "a fifth of the cases, for a look")
    seed: int = setting(0, "of delays and damage", low=0)
    jobs: int = setting(2, "cases at a time", low=1)
    output_json: str | None = setting(None, "file for every case; None writes none")


def main():
    # A shell starts what runs in the background with interrupts ignored, which every case would
    # inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = cli.config_from_flags(Settings)
    chosen = list(FIGURES) if settings.figures == "all" else settings.figures.split(",")
    if wrong := [name for name in chosen if name not in FIGURES]:
        raise UserError(
            f"--figures={settings.figures} names {wrong[0]!r}; expected all or some of "
            f"{','.join(FIGURES)}; correct it"
        )
    lines, report, failures = ["| Fault | What happened | Minutes |", "|---|---|---|"], {}, 0
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(settings, place)
        for name in chosen:
            start = time.monotonic()
            cases, line = FIGURES[name](lab)
            failed = [case for case in cases if "failed" in case]
            for case in failed:
                print(f"failed: {name}: {case}", file=sys.stderr, flush=True)
            failures += len(failed)
            report[name] = {"line": line, "cases": cases, "seconds": time.monotonic() - start}
            lines.append(f"| `{name}` | {line} | {report[name]['seconds'] / 60:.1f} |")
            print(lines[-1], flush=True)
            if settings.output_json:
                write_atomically(settings.output_json, json.dumps(report, indent=1) + "\n")
    print("\n".join(["", *lines]))
    if failures:
        raise UserError(f"{failures} cases failed; expected none; they are named above")


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
