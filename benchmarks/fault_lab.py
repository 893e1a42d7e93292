"""Where the runs of the fault campaign take place, and what they have to equal."""

import collections
import contextlib
import csv
import functools
import glob
import hashlib
import json
import random
import re
import shutil
import signal
import time

import tiny_network
from fault_forks import Page, around, in_parallel, train
from program import read_json

from tl_research.errors import UserError
from tl_research.files import read_text, write_atomically
from tl_research.run import checkpoints

FLAGS = """--dataset=directory --backbone=Tiny --weights=none --image_size=16 --batch_size=8
    --epochs=3,4 --unfreeze=0%,block3 --learning_rate=3e-2,3e-2 --patience=0,3
    --lr_schedule=constant,cosine --dropout=0.5 --checkpoint_every_steps=2"""
VIEWS = {"cached": "--augment_views=2", "live": "--augment_views=0"}  # kinds of runs
# what two equal runs differ in: times, and where they lie
_TIMES = ("seconds", "images_per_second", "compile_seconds", "train_seconds", "run_seconds", "run")


class Lab:
    """A folder of runs, and the unbroken ones that the others are compared with.

    A case is a dict; one that failed has `failed`, which says why.

    Args:
        settings: `Settings` of the campaign.
        place: An empty directory.
        more: Flags that all runs have besides.
    """

    def __init__(self, settings, place, more=()):
        self.settings, self._place, self._more = settings, place, more
        self.random = random.Random(settings.seed)
        self.photos = tiny_network.write_photos(self.folder("photos"))
        self._references = {}

    def many(self, number):
        """Returns how many cases are meant by a number."""
        return max(1, number // 5) if self.settings.quick else number

    def folder(self, name):
        return f"{self._place}/{name}"

    def flags(self, kind):
        return [*FLAGS.split(), VIEWS[kind], f"--data_dir={self.photos}", *self._more]

    def each(self, function, plans):
        """Returns what `function(self, *plan)` returns for each plan, in forks."""
        cases = [functools.partial(function, self, *plan) for plan in plans]
        return in_parallel(cases, self.settings.jobs)

    def reference(self, kind):
        """Returns an unbroken run: {"run", "fingerprint", "seconds", "entries" {place: times},
        "lengths" {place: seconds}, "epoch_steps" of each save}.
        """
        if kind not in self._references:
            run, start = self.folder(f"reference-{kind}"), time.monotonic()
            if code := train(run, self.flags(kind), functools.partial(_take_notes, f"{run}.json")):
                raise UserError(
                    f"the unbroken run ended with {code}; expected 0; its output: "
                    f"{read_text(f'{run}.log')[-500:]}"
                )
            found = {"run": run, "seconds": time.monotonic() - start, **read_json(f"{run}.json")}
            self._references[kind] = {**found, "fingerprint": fingerprint(run)}
        return self._references[kind]

    def interrupted(self, run, kind, number, point):
        """Starts or resumes a run, which gets a signal at a point, and returns the case.

        Args:
            run: Its directory.
            kind: A key of `VIEWS`.
            number: Of the signal.
            point: (place, how often it was entered, seconds since then). A run that was quicker
                starts anew, with half the seconds.
        """
        place, count, delay = point
        for attempt in range(4):
            page = Page()
            send = functools.partial(page.send, number, place, count, delay / 2**attempt)
            code = train(run, self.flags(kind), send)
            seconds = time.monotonic() - page.sent_at.value
            if code:
                break
            shutil.rmtree(run)
        case = {
            "signal": int(number),
            "kind": kind,
            "aimed at": list(point),
            "sent in": page.sent_in.value.decode(),
            "code": code,
            "seconds": seconds,
            "steps": page.steps.value,
        }
        expected = -9 if number == signal.SIGKILL else 128 + number
        return judged(case, {f"exit code {code} instead of {expected}": code != expected})

    def resumed(self, run, kind, case):
        """Completes a case, unless it failed: the run is resumed and must end as the unbroken one
        did.
        """
        if "failed" in case:
            return case
        case["resumed from"] = newest_step(run)
        if code := train(run, self.flags(kind)):
            return {**case, "failed": f"resumed with exit code {code}"}
        different, left = self.differences(run, kind), leftovers(run)
        if not (different or left):
            shutil.rmtree(run, ignore_errors=True)  # a mount stays
        return judged(case, {f"differs in {different}": different, f"left behind {left}": left})

    def differences(self, run, kind):
        """Returns the parts in which a finished run differs from the unbroken one."""
        expected = self.reference(kind)["fingerprint"]
        return [part for part, value in fingerprint(run).items() if value != expected[part]]


def _take_notes(path):
    """Lets this process write down what `Lab.reference` returns of it."""
    entries, lengths, epoch_steps = collections.Counter(), {}, []

    @contextlib.contextmanager
    def noted(directory, state, arrays):
        epoch_steps.append(state["epoch_step"])
        yield

    def left(place, seconds):
        lengths[place] = max(seconds, lengths.get(place, 0.0))
        if place == "run":
            notes = {"entries": entries, "lengths": lengths, "epoch_steps": epoch_steps}
            write_atomically(path, json.dumps(notes))

    Page().watch(entries.__setitem__, left)
    around(checkpoints, "save", noted)


def fingerprint(run):
    """Returns the parts of a finished run: the SHA-256 of weights and optimizer, state, results and
    metrics; times, and where it lies, apart.
    """
    state, arrays = checkpoints.load_newest(f"{run}/checkpoints")
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    rows = list(csv.DictReader(read_text(f"{run}/metrics.csv").splitlines()))
    parts = {"state": state, "results": read_json(f"{run}/results.json"), "metrics": rows}
    return {"arrays": digest.hexdigest(), **_without_times(parts)}


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def leftovers(run):
    """Returns the temporary files that are left in a run directory."""
    names = glob.iglob(f"{run}/**", recursive=True, include_hidden=True)
    return sorted(name for name in names if re.search(r"\.(tmp|trash)-[^/]*$", name))


def newest_step(run):
    """Returns the step of the newest checkpoint, 0 where there is none."""
    return int(["step-0", *checkpoints.step_names(f"{run}/checkpoints")][-1][5:])


def judged(case, problems):
    """Returns a case that failed for each of `problems`, {what is wrong: whether it is}, if it had
    not failed before.
    """
    failed = ", ".join(filter(problems.get, problems))
    return {"failed": failed, **case} if failed else case


def passed(cases):
    """Returns how many of how many cases did not fail, as text."""
    return f"{sum('failed' not in case for case in cases)} of {len(cases)}"
