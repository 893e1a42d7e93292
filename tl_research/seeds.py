"""The same run with several seeds: one command, one directory, and what the seeds have in common.

Imports no TensorFlow.
"""

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tl_research import metrics
from tl_research.config import Config
from tl_research.errors import GateError, Interrupted, RunDirectoryError, UserError
from tl_research.files import make_folders, storage_errors, write_atomically
from tl_research.progress_bar import in_notebook
from tl_research.reporting import results
from tl_research.reporting.terminal import say_result
from tl_research.run import directory as run_directory
from tl_research.signals import Signals

_PR_SET_PDEATHSIG = 1  # the signal that a process gets when its parent ends, see prctl(2)


def run(config: Config, more: Sequence[str] = ()) -> dict[str, Any]:
    """Trains `config` once for each of its `seeds` and returns the contents of `seeds.json`, which
    it writes and prints.

    Each is a process of its own, in WORKDIR/seed<S>, so that it gives the same bits as alone; one
    that is finished only says its results again, one that was interrupted is resumed.

    Args:
        config: `Config` with seeds.
        more: Flags that are no settings.

    Raises:
        UserError: If a seed ends with an error, which it has said itself; the exit code is the
            same.
        GateError: If the mean test accuracy is below `--min_test_accuracy`.
    """
    run_directory.check_place(config)
    directory = _opened(config)
    runs, place_of_all = {}, run_directory.quoted(os.path.abspath(directory))
    for seed in config.seeds:
        place = os.path.join(directory, f"seed{seed}")
        split_seed = seed if config.seeds_split == "separate" else config.split_seed
        one = dataclasses.replace(
            config, seeds=(), seed=seed, split_seed=split_seed, min_test_accuracy=0.0
        )
        print(f"seed {seed}: {place}", flush=True)
        code = _finish(
            [
                sys.executable,
                *_program(),
                *one.to_flags().splitlines(),
                f"--workdir={place}",
                f"--resume={config.resume}",
                *([f"--extension={config.extension}"] if config.extension else []),
                *more,
            ],
            again := f"the same command with --workdir={place_of_all}",
        )
        if code:
            with contextlib.suppress(OSError):
                os.rmdir(directory)  # of a failed start
            again += " and without --resume=never" * (config.resume == "never")
            error = UserError(
                f"seed {seed} ended with exit code {code}, for the reason above; expected 0; "
                f"correct that and give {again} again: what is finished stays"
            )
            error.exit_code = code
            raise error
        with open(os.path.join(place, "results.json"), encoding="utf-8") as file:
            runs[seed] = json.load(file)
    summary: dict[str, Any] = {
        "seeds": list(runs),
        "seeds_split": config.seeds_split,
        "summary": summarize(runs.values()),
        "runs": {str(seed): contents for seed, contents in runs.items()},
    }
    with storage_errors(directory):
        write_atomically(
            os.path.join(directory, "seeds.json"),
            json.dumps(summary, indent=1, allow_nan=False) + "\n",
        )
    splits = "a split each" if config.seeds_split == "separate" else "one split"
    print(f"\n{len(runs)} seeds, {splits}\n{table(summary['summary'])}")
    say_result(summary, config.json)
    mean = summary["summary"].get("test_accuracy", {"mean": 0.0})["mean"]
    if mean < config.min_test_accuracy:
        raise GateError(
            f"mean test accuracy {mean:.4f}; expected at least "
            f"--min_test_accuracy={config.min_test_accuracy}; everything is in {directory}"
        )
    return summary


def _program():
    """Returns how Python is told to train: by the script of a clone, or as it is installed."""
    clone = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    is_clone = os.path.isfile(os.path.join(clone, "flowers.flags"))
    return [os.path.join(clone, "train.py")] if is_clone else ["-P", "-m", "tl_research.train"]


def _opened(config):
    """Returns the directory of all seeds, made where there is none."""
    with storage_errors(config.workdir or "runs"):
        directory = config.workdir or run_directory.make_new(config)
        make_folders(directory)
    if os.path.exists(os.path.join(directory, "flags.txt")):
        raise RunDirectoryError(
            f"--workdir={directory} is a run of one seed; expected a directory for those of "
            "--seeds; choose another"
        )
    if os.path.islink(place := os.path.join(directory, "seeds.json")):
        raise RunDirectoryError(
            f"{place} is a link; expected the file that this program wrote; remove it"
        )
    return directory


def _finish(command, again=None):
    """Runs a command to its end and returns its exit code.

    A signal is passed on, and the end is waited for. Killed itself, it takes the command with it.
    """
    signals, parent = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}, os.getpid()
    end_with_parent = getattr(ctypes.CDLL(None), "prctl", None)  # on Linux

    def prepare() -> None:
        if end_with_parent:
            end_with_parent(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it ended before that
                os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    # none between the start and the name of what was started
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    # else the terminal would send it a second Ctrl-C
    shown = {"stdout": subprocess.PIPE, "text": True} if in_notebook() else {}
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **shown)
    try:
        with Signals(again):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            for line in process.stdout or ():  # which would go to the notebook's terminal
                if not line.startswith("RESULT "):
                    print(line, end="")
            code = process.wait()
        return code if code >= 0 else 128 - code
    except Interrupted as interruption:
        process.send_signal(interruption.signal_number)
        process.wait()
        raise


_SHARES = {"accuracy", "f1", "ece"}  # words in names of what is never outside 0 to 1


def summarize(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns {metric: {"mean", "min", "max", "ci95", "values"}} over the contents of several
    `results.json`, where all have it.

    The interval is Student's for the mean over seeds, that of a share cut at 0 and 1; with separate
    splits it covers those too. None for one or two seeds.
    """

    every = list(map(_entries, runs))
    names = [name for name, of in every[0].items() if isinstance(of, float)]
    values = {name: [entries.get(name) for entries in every] for name in names}
    return {name: _summary(name, of) for name, of in values.items() if None not in of}


def _entries(contents):
    """Returns {metric: what a `results.json` says of it}, with other entries among them."""
    best, calibration = results.selected(contents), contents.get("calibration") or {}
    return {
        **{name: best.get(name) for name in ("val_accuracy", "val_loss")},
        **{f"test_{name}": of for name, of in contents["test"].items()},
        **calibration,
        "seconds": contents["seconds"]["total"],
    }


def _summary(name, numbers):
    limits = (0.0, 1.0) if _SHARES & set(name.split("_")) else (-math.inf, math.inf)
    return {
        "mean": statistics.mean(numbers),
        "min": min(numbers),
        "max": max(numbers),
        "ci95": metrics.student_interval(numbers, *limits),
        "values": numbers,
    }


def table(summary: dict[str, Any]) -> str:
    """Returns what `summarize` returned as a Markdown table."""
    lines = ["| | mean | range | 95 % interval of the mean |", "|---|---|---|---|"]
    for name, of in summary.items():
        interval = f"{of['ci95'][0]:.4g}-{of['ci95'][1]:.4g}" if of["ci95"] else ""
        lines.append(
            f"| {name} | {of['mean']:.4g} | {of['min']:.4g}-{of['max']:.4g} | {interval} |"
        )
    return "\n".join(lines)
