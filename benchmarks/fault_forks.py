"""Forks of this process that run `train.py`, and the faults that they inject into themselves.

This process has imported TensorFlow but run nothing, so a fork costs a second and not five. What a
fork does to itself is wrapped around public functions of the package.
"""

import collections
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import runpy
import sys
import threading
import time
import traceback

import tiny_network
from program import TRAIN

from tl_research import artefacts, experiment
from tl_research.data import dataset
from tl_research.run import checkpoints
from tl_research.training import evaluation, features, loop, progress, time_limit

FORKS = multiprocessing.get_context("fork")
KILLED = {"failed": "ended without an answer"}
_SECONDS = 120  # after which a case counts as hanging
_PLACES = (  # of a run: where they are entered, and their names
    (experiment, "run", "run"),
    (dataset, "load", "data"),
    (features.Storage, "collect", "cache"),
    (time_limit, "prepared", lambda plan, index, *_: plan.phases[index].name),
    (loop, "train_phase", lambda setup, *_: setup.phase.name),
    (evaluation.EvalStep, "__call__", "evaluation"),
    (checkpoints, "save", "save"),
    (artefacts, "save_keras", "export"),
)


def in_fork(function, log, seconds=_SECONDS):
    """Returns the exit code of `function()` in a fork, negative for a signal, -999 if it hung.

    Its output goes to a file.
    """

    def body():
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.exit(function())

    process = FORKS.Process(target=body)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return -999
    return process.exitcode


def in_parallel(cases, jobs):
    """Returns [what each function of `cases` returned], each called in a fork, `jobs` at a time.

    An exception is {"failed": text}.
    """
    waiting, running, found = list(enumerate(cases)), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            index, case = waiting.pop(0)
            reader, writer = FORKS.Pipe(duplex=False)
            process = FORKS.Process(target=_answer, args=(case, writer))
            process.start()
            writer.close()
            running[reader] = index, process
        for reader in multiprocessing.connection.wait(running):
            index, process = running.pop(reader)
            found[index] = KILLED
            with contextlib.suppress(EOFError):
                found[index] = reader.recv()
            process.join()
    return [found[index] for index in sorted(found)]


def _answer(case, writer):
    try:
        answer = case()
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        answer = {"failed": f"{type(error).__name__}: {error} at {place}"}
    writer.send(answer)


def train(workdir, arguments, prepare=lambda: None):
    """Returns the exit code of `train.py` in a fork in which `prepare()` was called first."""

    def body():
        tiny_network.register()
        prepare()
        sys.argv = [TRAIN, *arguments, f"--workdir={workdir}"]
        runpy.run_path(TRAIN, run_name="__main__")

    return in_fork(body, f"{workdir}.log")


def around(owner, name, context):
    """Lets each call of a function of a module or class run within `context(*its arguments)`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        with context(*args, **kwargs):
            return original(*args, **kwargs)

    setattr(owner, name, wrapped)


class Page:
    """Where a run is and how many steps it finished, in memory that outlives its process.

    Attributes:
        steps: That were finished; this and what follows has a `value`.
        sent_in, sent_at: The place where a signal was sent, and `time.monotonic()` then.
    """

    def __init__(self):
        self._place, self.sent_in = (FORKS.RawArray("c", 256) for _ in range(2))
        self.steps, self.sent_at = FORKS.RawValue("q"), FORKS.RawValue("d")

    def watch(self, on_enter=lambda place, number: None, on_leave=lambda place, seconds: None):
        """Follows this process.

        Args:
            on_enter: Called with each place and how often it was entered.
            on_leave: Called with each place and how long it took.
        """
        counts = collections.Counter()

        @contextlib.contextmanager
        def inside(place):
            outside, start = self._place.value, time.monotonic()
            counts[place] += 1
            self._place.value = outside + b"/" * bool(outside) + place.encode()
            on_enter(place, counts[place])
            try:
                yield
            finally:
                self._place.value = outside
                on_leave(place, time.monotonic() - start)

        @contextlib.contextmanager
        def counted(state, *_):
            yield
            self.steps.value = state.position.global_step

        def context_of(place):
            return lambda *args, **_: inside(place(*args) if callable(place) else place)

        for owner, name, place in _PLACES:
            around(owner, name, context_of(place))
        around(progress, "add", counted)

    def send(self, number, place, count, delay):
        """Sends this process a signal, `delay` seconds after it enters a place for the `count`-th
        time.
        """

        def fire():
            self.sent_in.value, self.sent_at.value = self._place.value, time.monotonic()
            os.kill(os.getpid(), number)

        def on_enter(entered, times):
            if (entered, times) == (place, count):
                timer = threading.Timer(delay, fire)
                timer.daemon = True
                timer.start()

        self.watch(on_enter)
