"""Runs with several seeds: one command, one directory, and statistics over the seeds.

Imports no TensorFlow.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import signal
import statistics
import subprocess
from collections.abc import Iterable, Sequence

from tl_research import metrics
from tl_research.config import Config
from tl_research.errors import GateError, Interrupted, RunDirectoryError, UserError
from tl_research.files import Json, make_folders, storage_errors
from tl_research.progress_bar import in_notebook
from tl_research.reporting import results
from tl_research.reporting.terminal import markdown_table, say_result
from tl_research.run import directory as run_directory
from tl_research.run.recorded import read_json
from tl_research.signals import ENDING, Signals

_PR_SET_PDEATHSIG = 1  # sets the signal to send when the parent ends, see prctl(2)


def run(config: Config, more: Sequence[str] = ()) -> Json:
    """Trains `config` once for each of its `seeds`; writes, prints and returns the contents of
    `seeds.json`.

    Each seed is trained in its own process, in WORKDIR/seed<S>, so that it gives the same bits as
    alone. Finished ones only print their results again, interrupted ones are resumed.

    Args:
        config: Settings with seeds.
        more: Further flags for each run.

    Raises:
        UserError: If a seed ends with an error, which it has printed; with the same exit code.
        GateError: If the mean test accuracy is below `--min_test_accuracy`.
    """
    run_directory.check_place(config)
    directory = _opened(config)
    runs = {seed: _trained(config, seed, directory, more) for seed in config.seeds}
    found = summarize(runs.values())
    contents: Json = {
        "seeds": list(runs),
        "seeds_split": config.seeds_split,
        "summary": found,
        "runs": {str(seed): results for seed, results in runs.items()},
    }
    run_directory.Directory(directory).write_json("seeds.json", contents)
    splits = "each with its own split" if config.seeds_split == "separate" else "all with one split"
    print(f"\n{len(runs)} seeds, {splits}\n{table(found)}")
    say_result(contents, config.json)
    mean = found.get("test_accuracy", {"mean": 0.0})["mean"]
    if mean < config.min_test_accuracy:
        raise GateError(
            f"mean test accuracy {mean:.4f}; expected at least "
            f"--min_test_accuracy={config.min_test_accuracy}; everything is in {directory}"
        )
    return contents


def _trained(config, seed, directory, more):
    """Trains one seed in its own process; returns its `results.json`."""
    place = f"{directory}/seed{seed}"
    split_seed = seed if config.seeds_split == "separate" else config.split_seed
    one = dataclasses.replace(
        config, seeds=(), seed=seed, split_seed=split_seed, min_test_accuracy=0.0
    )
    flags = [*one.to_flags().splitlines(), f"--workdir={place}", f"--resume={config.resume}"]
    if config.extension:
        flags.append(f"--extension={config.extension}")
    place_of_all = run_directory.quoted(os.path.abspath(directory))
    again = f"the same command with --workdir={place_of_all}"
    print(f"seed {seed}: {place}", flush=True)
    if code := _finish([*run_directory.words_of("train"), *flags, *more], again):
        with contextlib.suppress(OSError):
            os.rmdir(directory)  # of a failed start
        again += " and without --resume=never" * (config.resume == "never")
        error = UserError(
            f"seed {seed} ended with exit code {code}, for the reason above; expected 0; correct "
            f"that and give {again} again: finished seeds are kept"
        )
        error.exit_code = code
        raise error
    return read_json(f"{place}/results.json")


def _opened(config):
    """Returns the directory of all seeds, which is made if necessary."""
    with storage_errors(config.workdir or "runs"):
        directory = config.workdir or run_directory.make_new(config)
        make_folders(directory)
    if os.path.exists(f"{directory}/flags.txt"):
        raise RunDirectoryError(
            f"--workdir={directory} is a run of one seed; expected a directory for all of "
            "--seeds; choose another"
        )
    if os.path.islink(place := f"{directory}/seeds.json"):
        raise RunDirectoryError(
            f"{place} is a link; expected the file that this program wrote; remove it"
        )
    return directory


def _finish(command, again=None):
    """Runs a command and returns its exit code.

    A signal is passed on to it, and its end awaited. If this process is killed, so is the command.
    """
    parent = os.getpid()
    end_with_parent = getattr(ctypes.CDLL(None), "prctl", None)  # on Linux

    def prepare() -> None:
        if end_with_parent:
            end_with_parent(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # already ended
                os.kill(os.getpid(), signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    # a signal between the start and `process = ...` would be lost
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # in its own session, since the terminal would send it a second Ctrl-C
    shown = {"stdout": subprocess.PIPE, "text": True} if in_notebook() else {}
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **shown)
    try:
        with Signals(again):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            for line in process.stdout or ():  # else it would go to the notebook's terminal
                if not line.startswith("RESULT "):
                    print(line, end="")
            code = process.wait()
        return code if code >= 0 else 128 - code
    except Interrupted as interruption:
        process.send_signal(interruption.signal_number)
        process.wait()
        raise


_SHARES = {"accuracy", "f1", "ece"}  # parts of the names of metrics that are between 0 and 1


def summarize(runs: Iterable[Json]) -> Json:
    """Returns {metric: {"mean", "min", "max", "ci95", "values"}} over the contents of several
    `results.json`, for metrics that all of them have.

    The interval is Student's for the mean over seeds, within 0 and 1 for shares; with separate
    splits it covers the splits too. It is None for one or two seeds.
    """
    every = list(map(_metrics, runs))
    names = [name for name, of in every[0].items() if isinstance(of, float)]
    values = {name: [found.get(name) for found in every] for name in names}
    return {name: _summary(name, of) for name, of in values.items() if None not in of}


def _metrics(contents):
    """Returns {metric: number} of a `results.json`, with other entries among them."""
    best = results.selected(contents)
    return {
        **{name: best.get(name) for name in ("val_accuracy", "val_loss")},
        **{f"test_{name}": of for name, of in contents["test"].items()},
        **(contents.get("calibration") or {}),
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


def table(summary: Json) -> str:
    """Returns the result of `summarize` as a Markdown table."""
    rows = []
    for name, of in summary.items():
        interval = f"{of['ci95'][0]:.4g}-{of['ci95'][1]:.4g}" if of["ci95"] else ""
        rows.append([name, f"{of['mean']:.4g}", f"{of['min']:.4g}-{of['max']:.4g}", interval])
    return markdown_table(["", "mean", "range", "95 % interval of the mean"], rows)
