"""What happens to a run when something goes wrong, case by case, counted in one table.

    python benchmarks/fault_injection.py --output_json=faults.json

kills a small two-phase run at random points and at every file operation of a save, damages
checkpoints, sends signals, and feeds it bad images, flag files and artefacts. Every case is a fork
of this process, which has imported TensorFlow but run nothing, so it costs a second and not five;
`train.py` itself runs in it. A case that fails is printed and counted, never dropped.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import mmap
import os
import random
import re
import resource
import runpy
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import threading
import time
import traceback

from tl_research import quiet

quiet.import_tensorflow()

import fault_inputs
import keras
import numpy as np
import PIL.Image
from absl import flags

from tl_research import artefacts, cli, experiment, files, flagfile
from tl_research.config import Config, setting
from tl_research.data import catalog, dataset, download, image_check
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.optim.grouped_optimizer import GroupedOptimizer
from tl_research.training import checkpoints, features, loop
from tl_research.training.run_directory import RunDirectory

_TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")
TINY = backbones.BackboneSpec("Tiny", "tiny", "lite", 16, r"(?P<block>block\d)_", False, "", "")
FLAGS = (
    "--dataset=directory",
    "--backbone=Tiny",
    "--weights=none",
    "--image_size=16",
    "--batch_size=8",
    "--epochs=3,4",
    "--unfreeze=0%,block3",
    "--learning_rate=3e-2,3e-2",
    "--patience=0,3",
    "--lr_schedule=constant,cosine",
    "--dropout=0.5",
    "--checkpoint_every_steps=2",
)
CACHED, LIVE = (*FLAGS, "--augment_views=2"), (*FLAGS, "--augment_views=0")
_SECONDS = 120  # after which a case counts as hanging


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark."""

    figures: str = setting(
        "all",
        "which to measure, separated by commas, of "
        + "kill, operations, damage, signal, images, flagfiles, "
        "artefacts, starts, controls, repeat and cost; all of them",
    )
    quick: bool = setting(False, "a fifth of the cases, for a look")
    seed: int = setting(0, "of delays and damage", low=0)
    jobs: int = setting(2, "cases at a time", low=1)
    output_json: str | None = setting(None, "file for every case; None writes none")


# A small network and a place to train it.


def build_tiny(name, image_size, weights, seed=0, **_):
    """Returns three blocks, two of them with BatchNorm whose statistics are not trivial, in the
    place of `build_backbone`.
    """
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((image_size, image_size, 3), name="input")
    for number, filters in ((1, 6), (2, 8)):
        x = keras.layers.Conv2D(filters, 3, 2, "same", use_bias=False, name=f"block{number}_conv")(
            x
        )
        x = keras.layers.BatchNormalization(name=f"block{number}_bn")(x)
        x = keras.layers.ReLU(name=f"block{number}_relu")(x)
    x = keras.layers.Conv2D(10, 1, name="block3_conv")(x)
    x = keras.layers.ReLU(name="block3_relu")(x)
    model = keras.Model(inputs, x, name="tiny")
    draw = np.random.RandomState(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [draw.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()]
            )
    return model


def write_photos(directory, count=15, size=16):
    """Writes `count` noisy images of each of three classes, whose brightest channel is their class.

    Returns the directory.
    """
    for label, name in enumerate(("ant", "bee", "cat")):
        os.makedirs(os.path.join(directory, name))
        for i in range(count):
            pixels = (
                np.random.RandomState(1000 * label + i)
                .randint(0, 200, (size, size, 3))
                .astype(np.uint8)
            )
            pixels[size // 4 :, :, label] += 40
            PIL.Image.fromarray(pixels).save(os.path.join(directory, name, f"{i:02d}.png"))
    return directory


# Forks.


def in_fork(function, log, seconds=_SECONDS):
    """Returns the exit code of `function()` in a fork, negative for a signal, -999 if it hung.

    Its output goes to a file.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = function() or 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -999
        time.sleep(0.005)


def in_parallel(cases, jobs, place):
    """Returns [what each function of `cases` returned], each called in a fork, `jobs` at a time.

    An exception is {"failed": text}.
    """
    waiting, running, found = list(enumerate(cases)), {}, {}
    os.makedirs(place, exist_ok=True)
    while waiting or running:
        while waiting and len(running) < jobs:
            index, case = waiting.pop(0)
            path = os.path.join(place, f"case-{index}.json")
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                try:
                    answer = case()
                except BaseException as error:
                    answer = {
                        "failed": (
                            f"{type(error).__name__}: {error} at "
                            f"{traceback.extract_tb(error.__traceback__)[-1]}"
                        )
                    }
                with open(path, "w") as file:
                    json.dump(answer, file)
                os._exit(0)
            running[pid] = (index, path)
        pid, _ = os.wait()
        index, path = running.pop(pid)
        with open(path) as file:
            found[index] = json.load(file)
    return [found[index] for index in sorted(found)]


def train(workdir, arguments, prepare=lambda: None):
    """Returns the exit code of `train.py` in a fork in which `prepare()` was called first."""

    def body():
        flags.FLAGS.remove_flag_values([*Settings.__dataclass_fields__, "debug"])
        cli._names.clear()
        build = backbones.build_backbone
        backbones.BACKBONES["Tiny"] = TINY
        backbones.build_backbone = lambda name, *args, **kwargs: (
            build_tiny if name == "Tiny" else build
        )(name, *args, **kwargs)
        prepare()
        sys.argv = [_TRAIN, *arguments, f"--workdir={workdir}"]
        runpy.run_path(_TRAIN, run_name="__main__")

    return in_fork(body, f"{workdir}.log")


# What a fork does to itself. The page is memory that it shares with the process that waits for it.


class Page:
    """Where a run was when it ended, and how many steps it had finished: readable after a kill."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 4096)
        self._places = []

    @property
    def place(self):
        return bytes(self._memory[16:272]).rstrip(b"\0").decode()

    @property
    def steps(self):
        return struct.unpack("q", self._memory[:8])[0]

    @property
    def note(self):
        """Text that outlives the places."""
        return bytes(self._memory[272:528]).rstrip(b"\0").decode()

    @note.setter
    def note(self, text):
        self._memory[272:528] = text.encode().ljust(256, b"\0")

    @property
    def signalled_at(self):
        return struct.unpack("d", self._memory[8:16])[0]

    def _write(self):
        self._memory[16:272] = "/".join(self._places).encode()[-256:].ljust(256, b"\0")

    def watch(self, on_enter=lambda place, number: None):
        """Wraps the functions whose names are places.

        `on_enter` is called with each place and how often it was entered.
        """
        counts = collections.Counter()

        def wrap(owner, name, place):
            original = getattr(owner, name)

            @functools.wraps(original)
            def wrapped(*args, **kwargs):
                here = place(*args, **kwargs) if callable(place) else place
                counts[here] += 1
                self._places.append(here)
                self._write()
                on_enter(here, counts[here])
                try:
                    return original(*args, **kwargs)
                finally:
                    self._places.pop()
                    self._write()

            setattr(owner, name, wrapped)

        wrap(experiment, "run", "run")
        wrap(experiment, "_load", "data")
        wrap(features, "compute_features", "cache")
        wrap(features, "derive_features", "cache")
        wrap(loop.Trainer, "_run_phase", lambda trainer, index, phase, **_: phase.name)
        wrap(loop.Trainer, "_finish_epoch", "evaluation")
        wrap(checkpoints, "save", "save")
        wrap(experiment, "_test", "test")
        wrap(artefacts, "save_keras", "export")
        account = loop.Trainer._account

        def counted(trainer, *args):
            account(trainer, *args)
            self._memory[:8] = struct.pack("q", trainer.state.global_step)

        loop.Trainer._account = counted

    def send(self, number, place, count, delay):
        """Sends the fork itself a signal, `delay` seconds after it enters a place for the
        `count`-th time.
        """

        def fire():
            self._memory[8:16] = struct.pack("d", time.monotonic())
            os.kill(os.getpid(), number)

        def on_enter(entered, times):
            if (entered, times) == (place, count):
                timer = threading.Timer(delay, fire)
                timer.daemon = True
                timer.start()

        self.watch(on_enter)


class Operations:
    """Counts the file operations of one save; at one of them calls `act` instead of going on.

    Args:
        save: The number of the save, from 1; None counts those of none.
        operation: The number of the operation in it, from 0.
        act: Called with the operation's name.
    """

    _NAMES = (
        "mkdir",
        "open",
        "close",
        "fsync",
        "replace",
        "unlink",
        "rmdir",
        "remove",
        "listdir",
        "scandir",
    )

    def __init__(self, save, operation=None, act=None):
        self.names, self._active = [], False
        self._operation, self._act = operation, act
        for name in self._NAMES:
            setattr(os, name, self._counted(name, getattr(os, name)))
        files.open = self._open
        original, saves = checkpoints.save, itertools.count(1)

        def counted(*args):
            self._active = next(saves) == save
            try:
                return original(*args)
            finally:
                self._active = False

        checkpoints.save = counted

    def _counted(self, name, function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            if self._active:
                self.names.append(name)
                if len(self.names) - 1 == self._operation:
                    self._act(name)
            return function(*args, **kwargs)

        return counted

    def _open(self, *args):
        file = self._counted("create", open)(*args)
        counted = self

        class File:
            write = staticmethod(counted._counted("write", file.write))
            flush = staticmethod(counted._counted("flush", file.flush))
            fileno = file.fileno

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                file.close()

        return File()


# What must be equal, and what is bad about a run that is not.

_TIMES = ("seconds", "images_per_second", "compile_seconds", "train_seconds", "run_seconds")


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def fingerprint(run):
    """Returns {part of a finished run: its SHA-256}: weights and optimizer, state, results and
    metrics, times apart.
    """
    loaded = checkpoints.load_newest(os.path.join(run, "checkpoints"))
    state, arrays = loaded
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(
            f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode()
            + arrays[name].tobytes()
        )
    state.pop("run")
    parts = {
        "arrays": digest.hexdigest(),
        "state": json.dumps(_without_times(state), sort_keys=True),
    }
    with open(os.path.join(run, "results.json")) as file:
        parts["results"] = json.dumps(_without_times(json.load(file)), sort_keys=True)
    with open(os.path.join(run, "metrics.csv")) as file:
        parts["metrics"] = json.dumps([_without_times(row) for row in csv.DictReader(file)])
    return {
        name: part if name == "arrays" else hashlib.sha256(part.encode()).hexdigest()
        for name, part in parts.items()
    }


def leftovers(run):
    """Returns the temporary files that are left in a run directory."""
    return sorted(
        name
        for _, folders, names in os.walk(run)
        for name in folders + names
        if ".tmp-" in name or ".trash-" in name
    )


def newest_step(run):
    """Returns the step of the newest checkpoint, 0 where there is none."""
    names = checkpoints._complete(os.path.join(run, "checkpoints"))
    return int(names[-1][5:]) if names else 0


class Campaign:
    """The figures; each method returns (rows of cases, line for the table).

    A case with `failed` is one that failed.
    """

    def __init__(self, settings, place):
        self._settings, self._place = settings, place
        self._random = random.Random(settings.seed)
        self._photos = write_photos(os.path.join(place, "photos"))
        self._references = {}

    def _many(self, number):
        return max(1, number // 5) if self._settings.quick else number

    def _folder(self, name):
        return os.path.join(self._place, name)

    def _flags(self, kind):
        return [*(CACHED if kind == "cached" else LIVE), f"--data_dir={self._photos}"]

    def _parallel(self, cases, name):
        return in_parallel(cases, self._settings.jobs, self._folder(f"{name}-cases"))

    def reference(self, kind):
        """Returns an unbroken run: {"run", "fingerprint", "seconds", "entries" {place: times},
        "lengths" {place: seconds}, "epoch_steps" of each save, "operations" of one}.
        """
        if kind not in self._references:
            run = self._folder(f"reference-{kind}")
            answer = f"{run}.json"

            def prepare():
                page, entries, lengths, epoch_steps, count = (
                    Page(),
                    collections.Counter(),
                    {},
                    [],
                    Operations(6),
                )

                def on_enter(place, number):
                    entries[place] = number

                page.watch(on_enter)
                for owner, name in (
                    (checkpoints, "save"),
                    (features, "compute_features"),
                    (artefacts, "save_keras"),
                ):

                    def timed(*args, original=getattr(owner, name), name=name, **kwargs):
                        start = time.monotonic()
                        if name == "save":
                            epoch_steps.append(args[1]["epoch_step"])
                        try:
                            return original(*args, **kwargs)
                        finally:
                            lengths[name] = time.monotonic() - start

                    setattr(owner, name, timed)
                original = experiment._report

                def report(*args):
                    with open(answer, "w") as file:
                        json.dump(
                            {
                                "entries": entries,
                                "lengths": lengths,
                                "epoch_steps": epoch_steps,
                                "operations": count.names,
                            },
                            file,
                        )
                    return original(*args)

                experiment._report = report

            start = time.monotonic()
            code = train(run, self._flags(kind), prepare)
            if code:
                with open(f"{run}.log") as file:
                    raise UserError(
                        f"the unbroken run ended with {code}; expected 0; its output: "
                        f"{file.read()[-500:]}"
                    )
            with open(answer) as file:
                self._references[kind] = {
                    "run": run,
                    "fingerprint": fingerprint(run),
                    "seconds": time.monotonic() - start,
                    **json.load(file),
                }
        return self._references[kind]

    def _resume_and_compare(self, run, kind, case):
        """Completes a case: the run is resumed and must end as the unbroken one did."""
        case["resumed from"] = newest_step(run)
        code = train(run, self._flags(kind))
        if code:
            return {**case, "failed": f"resumed with exit code {code}"}
        different = [
            part
            for part, value in fingerprint(run).items()
            if value != self._references[kind]["fingerprint"][part]
        ]
        if different or leftovers(run):
            return {**case, "failed": f"differs in {different}, left behind {leftovers(run)}"}
        shutil.rmtree(run)
        return case

    def _kill(self, run, kind, point):
        """Starts or resumes a run and kills it at `point`.

        Returns the case, with `failed` if it could not be killed.
        """
        place, count, delay = point
        for attempt in range(4):
            page = Page()
            code = train(
                run,
                self._flags(kind),
                lambda: page.send(signal.SIGKILL, place, count, delay / 2**attempt),
            )
            if code == -9:
                return {
                    "code": code,
                    "kind": kind,
                    "aimed at": list(point),
                    "killed in": page.place,
                    "step": page.steps,
                }
            if code:
                return {
                    "code": code,
                    "kind": kind,
                    "aimed at": list(point),
                    "failed": f"exit code {code} instead of -9",
                }
            shutil.rmtree(run)  # it was quicker than the delay
        return {"kind": kind, "aimed at": list(point), "failed": "was never killed"}

    def _points(self, number, kind):
        """Returns seeded points (place, how often entered, delay): over the whole run, and aimed at
        saves, cache and finish.
        """
        reference, points = self.reference(kind), []
        for i in range(number):
            share = i / number
            if share < 0.56:
                points.append(("run", 1, self._random.uniform(0, reference["seconds"])))
            elif share < 0.8:
                points.append(
                    (
                        "save",
                        self._random.randint(1, reference["entries"]["save"]),
                        self._random.uniform(0, reference["lengths"]["save"]),
                    )
                )
            elif share < 0.9 and kind == "cached":
                points.append(
                    (
                        "cache",
                        self._random.randint(1, reference["entries"]["cache"]),
                        self._random.uniform(0, reference["lengths"]["compute_features"]),
                    )
                )
            elif share < 0.95:
                points.append(("finetune", 1, self._random.uniform(0, reference["seconds"] / 3)))
            else:
                points.append(
                    ("export", 1, self._random.uniform(0, reference["lengths"]["save_keras"]))
                )
        return points

    def kill(self):
        """`kill -9` at random points of two kinds of runs, and chains of five in one run."""

        def once(index, kind, points):
            run = self._folder(f"kill-{index}")
            trail = []
            for point in points:
                case = self._kill(run, kind, point)
                if "failed" in case:
                    return case
                trail.append(case["killed in"])
            return self._resume_and_compare(run, kind, {**case, "trail": trail})

        plans = [("cached", [point]) for point in self._points(self._many(35), "cached")]
        plans += [("live", [point]) for point in self._points(self._many(15), "live")]
        chains = []
        for number in range(self._many(5)):
            kind = ("cached", "live")[number % 2]
            # A resumed run is shorter, so a chain advances by its own steps: it is killed in its
            # n-th save, or a little later.
            chains.append(
                (
                    kind,
                    [
                        ("save", self._random.randint(2, 4), self._random.uniform(0, 0.1))
                        for _ in range(5)
                    ],
                )
            )
        cases = self._parallel(
            [functools.partial(once, i, *plan) for i, plan in enumerate(plans + chains)], "kill"
        )
        single, chained = cases[: len(plans)], cases[len(plans) :]
        places = collections.Counter()
        for case in single:
            where = case.get("killed in", "")
            for name in ("head", "finetune", "save", "cache", "export", "data"):
                places[name] += name in where.split("/")
        located = ", ".join(f"{count} in {name}" for name, count in places.items())
        return cases, (
            f"{_passed(single)} random kills (-9) resumed bit for bit ({located}; some in two of "
            f"these); {_passed(chained)} chains of 5 kills"
        )

    def operations(self):
        """A process that dies, and a disk that fails, at each file operation of a save."""
        names = self.reference("cached")["operations"]

        def once(number, name, mode):
            run, page = self._folder(f"operation-{mode}-{number}"), Page()

            def act(name):
                page.note = f"{number} {name} in {page.place}"
                if mode == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(28, "No space left on device")

            code = train(
                run, self._flags("cached"), lambda: (page.watch(), Operations(6, number, act))
            )
            case = {
                "mode": mode,
                "operation": f"{number} {name}",
                "code": code,
                "happened at": page.note,
            }
            if not page.note.startswith(f"{number} {name} in "):
                return {**case, "failed": "never reached"}
            if mode == "kill" and code != -9:
                return {**case, "failed": f"exit code {code} instead of -9"}
            if mode == "fail" and code not in (0, 9):
                return {**case, "failed": f"exit code {code} instead of 9"}
            with open(f"{run}.log") as log:
                if "Traceback" in log.read():
                    return {**case, "failed": "traceback"}
            # nothing was killed: that the checkpoint is usable is enough
            if mode == "fail" and code and number % 4:
                state, _ = checkpoints.load_newest(os.path.join(run, "checkpoints"))
                aside = [
                    name
                    for name in os.listdir(os.path.join(run, "checkpoints"))
                    if ".corrupt-" in name
                ]
                return {
                    **case,
                    "usable": state["global_step"],
                    **({"failed": f"damaged {aside}"} if aside else {}),
                }
            return self._resume_and_compare(run, "cached", case)

        every = range(0, len(names), 5 if self._settings.quick else 1)
        plans = [(number, names[number], mode) for mode in ("kill", "fail") for number in every]
        cases = self._parallel([functools.partial(once, *plan) for plan in plans], "operations")
        killed, failed = (
            [case for case in cases if case.get("mode") == mode] for mode in ("kill", "fail")
        )
        stopped = sum(case["code"] == 9 for case in failed)
        return cases, (
            f"a save has {len(names)} file operations: {_passed(killed)} killed at one, resumed "
            f"bit for bit; {_passed(failed)} with a disk that fails there: a checkpoint was usable "
            f"({stopped} exit 9, {len(failed) - stopped} went on)"
        )

    def damage(self):
        """Checkpoints damaged in every way: none may be loaded, all must fall back."""
        source = os.path.join(self.reference("cached")["run"], "checkpoints")
        newest = checkpoints._complete(source)[-1]
        before = checkpoints._complete(source)[-2]

        def part(number, seed):
            draw, cases = random.Random(seed), []
            for trial in range(number):
                folder = self._folder(f"damage-{seed}-{trial}")
                shutil.copytree(source, folder)
                what = fault_inputs.damage(
                    os.path.join(folder, newest), os.path.join(folder, before), draw
                )
                case, warnings = {"what": what}, io.StringIO()
                with contextlib.redirect_stderr(warnings):
                    state, _ = checkpoints.load_newest(folder)
                if checkpoints.step_name(state["global_step"]) != before:
                    case["failed"] = "loaded all the same"
                elif newest not in warnings.getvalue() or not os.path.exists(
                    os.path.join(folder, f"{newest}.corrupt-1")
                ):
                    case["failed"] = "not named, or not set aside"
                shutil.rmtree(folder)
                cases.append(case)
            return cases

        jobs = self._settings.jobs
        parts = self._parallel(
            [
                functools.partial(part, self._many(1000) // jobs, self._random.random())
                for _ in range(jobs)
            ],
            "damage",
        )
        cases = [
            case for found in parts for case in (found if isinstance(found, list) else [found])
        ]
        kinds = collections.Counter(case.get("what", "").split()[0] for case in cases)

        def resumed(index):
            """A run killed in a save, its newest checkpoint damaged, must end as the unbroken one
            did.
            """
            run, draw = self._folder(f"damaged-run-{index}"), random.Random(index)
            case = self._kill(run, "cached", ("save", 8 + index, 0))
            names = [
                os.path.join(run, "checkpoints", name)
                for name in checkpoints._complete(os.path.join(run, "checkpoints"))
            ]
            case["what"] = fault_inputs.damage(names[-1], names[-2], draw)
            return self._resume_and_compare(run, "cached", case)

        whole = self._parallel(
            [functools.partial(resumed, index) for index in range(self._many(10))], "damaged-run"
        )
        return cases + whole, (
            f"{_passed(cases)} damaged checkpoints named, set aside and the one before used "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); {_passed(whole)} "
            "runs resumed from such a pair bit for bit"
        )

    def signal(self):
        """SIGTERM at random points, and a few SIGINT and SIGHUP."""

        def once(index, kind, number, point):
            run, (place, count, delay) = self._folder(f"signal-{index}"), point
            for attempt in range(4):
                page = Page()
                code = train(
                    run,
                    self._flags(kind),
                    lambda: page.send(number, place, count, delay / 2**attempt),
                )
                seconds = time.monotonic() - page.signalled_at
                if code:
                    break
                shutil.rmtree(run)  # it was quicker than the delay
            case = {
                "signal": int(number),
                "kind": kind,
                "aimed at": list(point),
                "sent in": page.place,
                "code": code,
                "seconds": seconds,
                "steps": page.steps,
                "saved": newest_step(run),
            }
            if code != 128 + number:
                return {**case, "failed": f"exit code {code} instead of {128 + number}"}
            if case["saved"] != case["steps"]:
                return {**case, "failed": f"{case['steps']} steps finished, {case['saved']} saved"}
            return self._resume_and_compare(run, kind, case)

        numbers = [signal.SIGTERM] * self._many(20) + [signal.SIGINT, signal.SIGHUP] * self._many(5)
        plans = []
        for i, number in enumerate(numbers):
            kind = ("cached", "live")[i % 2]
            plans.append(
                (
                    i,
                    kind,
                    number,
                    ("run", 1, self._random.uniform(0, 0.9 * self.reference(kind)["seconds"])),
                )
            )
        cases = self._parallel([functools.partial(once, *plan) for plan in plans], "signal")
        terms = [case for case in cases if case.get("signal") == signal.SIGTERM]
        others = [case for case in cases if case.get("signal") != signal.SIGTERM]
        seconds = [case["seconds"] for case in cases if "failed" not in case] or [0.0]
        return cases, (
            f"{_passed(terms)} SIGTERM at random points: exit 143, no finished step lost, resumed "
            f"bit for bit; {_passed(others)} SIGINT and SIGHUP; answered in "
            f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"
        )

    def images(self):
        """Odd and broken images among good ones."""
        folder, draw = self._folder("odd-photos"), random.Random(self._settings.seed)
        write_photos(folder)
        expected = {
            f"ant/{name}": kind
            for name, kind in fault_inputs.write_images(
                os.path.join(folder, "ant"), draw, self._many(8)
            ).items()
        }
        answer = self._folder("images.json")

        def check():
            """Checks good images, and then all, and writes down by how much the memory grew."""
            settings = dict(data_dir=None, download_dir="", validation_dir=None, test_dir=None)
            good = catalog.find_images("directory", **{**settings, "data_dir": self._photos})
            odd = catalog.find_images("directory", **{**settings, "data_dir": folder})
            image_check.check_images(good, 16, 0, keep_pixels_bytes=1 << 30)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            image_check.check_images(odd, 16, 0, keep_pixels_bytes=1 << 30)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            write_atomically(
                answer,
                json.dumps({"megabytes": grown / 1024, "files": [file.name for file in odd.files]}),
            )

        cases = []
        if code := in_fork(check, self._folder("images.log")):
            return [{"failed": f"the check ended with {code}"}], "the check failed"
        with open(answer) as file:
            found = json.load(file)
        if found["megabytes"] > 50:
            cases.append({"failed": f"memory grew by {found['megabytes']:.0f} MB"})
        run = self._folder("images-run")
        arguments = [*CACHED, f"--data_dir={folder}", "--epochs=1,1", "--on_bad_image=skip"]
        if code := train(run, arguments):
            cases.append({"failed": f"a run with --on_bad_image=skip ended with {code}"})
        if (code := train(run + "-error", arguments[:-1])) != 2:
            cases.append({"failed": f"a run without it ended with {code} instead of 2"})
        with open(os.path.join(run, "bad_images.csv"), newline="") as file:
            named = {row["path"]: row["reason"] for row in csv.DictReader(file)}
        with open(os.path.join(run, "split.json")) as file:
            used = {entry["path"] for entry in json.load(file)["files"]}
        for name, kind in expected.items():
            case = {
                "name": ascii(name),
                "kind": kind,
                "reason": named.get(os.fsencode(name).decode(errors="backslashreplace")),
            }
            if (case["reason"] is not None) + (name in used) != (kind != "ignored"):
                case["failed"] = "neither used nor named" if kind != "ignored" else "not ignored"
            elif kind in ("good", "bad") and (kind == "good") != (name in used):
                case["failed"] = f"{kind}, but {'used' if name in used else 'refused'}"
            cases.append(case)
        kinds = len({re.sub(r"^\.?\d\d?", "", name[4:]) for name in expected})
        return cases, (
            f"{len(expected)} images of {kinds} kinds, {len(named)} named in `bad_images.csv`, "
            f"{sum(name in used for name in expected)} used, beside 45 whole ones: "
            f"{sum('failed' in case for case in cases)} wrong, 0 crashes, 0 hangs, memory "
            f"+{found['megabytes']:.0f} MB; a run with --on_bad_image=skip completes"
        )

    def flagfiles(self):
        """Mutated flag files: every line is applied, or named in one line."""
        good = (
            Config(dataset="directory", data_dir=self._photos, lr_multiplier=("head/=2",))
            .to_flags()
            .splitlines()
        )

        def part(number, seed):
            flags.FLAGS.remove_flag_values([*Settings.__dataclass_fields__, "debug"])
            cli._names.clear()
            cli.define_flags(Config)
            draw, cases, path = random.Random(seed), [], self._folder(f"odd-{seed}.flags")
            for _ in range(number):
                content = fault_inputs.mutated_flags(draw.sample(good, 8), draw)
                with open(path, "wb") as file:
                    file.write(content)
                config, output = None, io.StringIO()
                flags.FLAGS.unparse_flags()
                try:
                    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
                        try:
                            cli.parse(["train.py", f"--flagfile={path}"])
                            config = cli.config_from_flags(Config)
                        except UserError as error:
                            cli.fail(error, 1)
                    problem = _lost(content, config, output.getvalue())
                except SystemExit as error:
                    problem = (
                        None
                        if error.code == 1 and output.getvalue().count("error: ") == 1
                        else f"exit {error.code}"
                    )
                except BaseException as error:
                    problem = f"{type(error).__name__}: {error}"
                cases.append({"accepted": config is not None})
                if problem:
                    cases[-1].update(failed=problem, content=ascii(content))
            return cases

        jobs = self._settings.jobs
        parts = self._parallel(
            [
                functools.partial(part, self._many(10000) // jobs, self._random.random())
                for _ in range(jobs)
            ],
            "flagfiles",
        )
        cases = [
            case for found in parts for case in (found if isinstance(found, list) else [found])
        ]
        accepted = sum(case.get("accepted", False) for case in cases)
        return cases, (
            f"{_passed(cases)} mutated flag files: {accepted} applied line by line, "
            f"{len(cases) - accepted} refused in one line with exit 1; 0 tracebacks, 0 settings "
            "lost"
            if not any("failed" in case for case in cases)
            else f"{_passed(cases)} mutated flag files"
        )

    def artefacts(self):
        """Weights, archives, checkpoints, flag files, runs and names from strangers."""
        from tl_research.models.efficientnet_lite import read_legacy_torch
        from tl_research.models.weights import load_weights_file

        def use(kind, path):
            """Does what the program does with such a thing."""
            if kind == "weights":
                load_weights_file(build_tiny("Tiny", 16, "none"), path)
            elif kind == "torch":
                with open(path, "rb") as file:
                    read_legacy_torch(file.read())
            elif kind.startswith("archive"):
                download.unpack(
                    path, f"{path}-unpacked/inside", max_files=20_000, max_bytes=1 << 26
                )
            elif kind == "checkpoint":
                checkpoints.load_newest(path, 1 << 26)
            elif kind == "flagfile":
                flagfile.expand([f"--flagfile={path}"], {"seed"})
            elif kind == "run":
                with RunDirectory(Config(dataset="directory", data_dir=self._photos, workdir=path)):
                    pass
            else:
                with RunDirectory(
                    Config(dataset="directory", data_dir=path, workdir=f"{path}-run")
                ) as directory:
                    dataset.load(
                        Config(dataset="directory", data_dir=path, image_size=16), directory
                    )

        def once(number, name):
            # Everything happens below one folder, whose listing outside the artefact's own place
            # must not change.
            outside = self._folder(f"artefact-{number}")
            os.makedirs(os.path.join(outside, "place"))
            secret, canary = os.path.join(outside, "secret"), os.path.join(outside, "canary")
            write_atomically(secret, fault_inputs.SECRET)
            kind, make = fault_inputs.artefacts(secret, f"touch {canary}")[name]
            path = os.path.join(
                outside, "place", "artefact" + (".zip" if kind == "archive.zip" else "")
            )
            make(path)
            answer, log = (
                os.path.join(outside, "place", "answer"),
                os.path.join(outside, "place", "log"),
            )

            def body():
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                try:
                    use(kind, path)
                    result = "harmless"
                except UserError as error:
                    result = f"refused: {' '.join(str(error).split())[:200]}"
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
                write_atomically(answer, json.dumps({"result": result, "megabytes": grown}))

            code = in_fork(body, log, seconds=60)
            case = {"name": name, "code": code}
            if code:
                with open(log) as file:
                    return {**case, "failed": f"exit code {code}: {file.read()[-300:]}"}
            with open(answer) as file:
                case.update(json.load(file))
            with open(log) as file, open(secret) as kept:
                output, kept = file.read() + case["result"], kept.read()
            if (
                os.path.exists(canary)
                or sorted(os.listdir(outside)) != ["place", "secret"]
                or kept != fault_inputs.SECRET
            ):
                case["failed"] = f"executed or written outside: {sorted(os.listdir(outside))}"
            elif fault_inputs.SECRET in output:
                case["failed"] = "the secret was read"
            elif case["megabytes"] > 300:
                case["failed"] = f"memory grew by {case['megabytes']:.0f} MB"
            elif (kind == "photos") != (case["result"] == "harmless"):
                case["failed"] = "expected a name to be harmless and anything else to be refused"
            shutil.rmtree(outside)
            return case

        names = list(fault_inputs.artefacts(self._folder("secret"), ""))
        cases = self._parallel(
            [functools.partial(once, *plan) for plan in enumerate(names)], "artefacts"
        )
        refused = sum(case.get("result", "").startswith("refused") for case in cases)
        return cases, (
            f"{_passed(cases)} hostile artefacts: {refused} refused in one line, "
            f"{len(cases) - refused} names used as names; 0 executed, 0 bytes outside, 0 files read"
            if not any("failed" in case for case in cases)
            else f"{_passed(cases)} hostile artefacts"
        )

    def starts(self):
        """Two processes that start in one directory at once, and a start after the winner was
        killed.
        """

        def once(number):
            run, resume = self._folder(f"start-{number}"), ("auto", "never")[number % 2]
            config = Config(dataset="directory", data_dir=self._photos, workdir=run, resume=resume)
            # an unfinished run, so that `never` has something to set aside
            with RunDirectory(config) as directory:
                directory.write_json("run.json", {})
            reader, writer = os.pipe()
            told, tell = os.pipe()
            pids = []
            for _ in range(2):
                pids.append(os.fork())
                if not pids[-1]:
                    os.close(writer)
                    os.read(reader, 1)  # until both are there
                    code = 1
                    sys.stderr = io.StringIO()
                    try:
                        directory = RunDirectory(config)  # locked as long as it is referred to
                        os.write(tell, struct.pack("i", os.getpid()))
                        time.sleep(60)
                        del directory
                    except UserError as error:
                        code = error.exit_code
                        os.write(tell, struct.pack("i", -code))
                    finally:
                        os._exit(code)
            os.close(reader)
            os.close(writer)
            answers = [struct.unpack("i", os.read(told, 4))[0] for _ in range(2)]
            winners = [pid for pid in answers if pid > 0]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            case = {
                "resume": resume,
                "winners": len(winners),
                "losers": [-code for code in answers if code < 0],
            }
            if len(winners) != 1 or case["losers"] != [8]:
                return {**case, "failed": "expected one winner and exit 8"}
            # a killed owner leaves no lock
            with RunDirectory(dataclasses.replace(config, resume="auto")):
                return case

        cases = self._parallel(
            [functools.partial(once, number) for number in range(self._many(50))], "starts"
        )
        return (
            cases,
            (
                f"{_passed(cases)} double starts: one winner, the other exit 8, and no lock left "
                "by the killed winner"
            ),
        )

    def controls(self):
        """What the equality test must notice: each thing a resume needs, left out on purpose."""
        # Killed late in the second phase, when the last checkpoint is of mid-epoch, so that each of
        # them matters.
        run, kind = self._folder("control"), "cached"
        saves = self.reference(kind)["epoch_steps"]
        late = max(i for i, epoch_step in enumerate(saves[:-3], 1) if epoch_step)
        case = self._kill(run, kind, ("save", late + 1, 0))
        if "failed" in case:
            return [case], "the control run could not be killed"

        def after_restore(change):
            restore = loop.Trainer.restore

            def changed(trainer):
                answer = restore(trainer)
                change(trainer)
                return answer

            loop.Trainer.restore = changed

        def dropout_seed():
            mask, first = Classifier.dropout_mask, newest_step(run)
            Classifier.dropout_mask = lambda classifier, step, batch_size: mask(
                classifier, step - first, batch_size
            )

        def position(trainer):
            trainer.state.epoch_step = 0

        def early_stop(trainer):
            trainer.state.best, trainer.state.wait, trainer._arrays["best"] = None, 0, {}

        def metrics(trainer):
            trainer.state.epoch_totals = {
                "loss_sum": 0.0,
                "correct": 0.0,
                "examples": 0.0,
                "seconds": 0.0,
            }

        def slot_order():
            load = GroupedOptimizer.load_state

            def by_position(optimizer, state):
                swapped = {"momentum": "velocity", "velocity": "momentum"}
                load(
                    optimizer,
                    {
                        name: state[
                            re.sub(r"(momentum|velocity)$", lambda match: swapped[match[0]], name)
                        ]
                        for name in state
                    },
                )

            GroupedOptimizer.load_state = by_position

        controls = {
            "nothing": lambda: None,
            "the dropout seed": dropout_seed,
            "the position": lambda: after_restore(position),
            "the slots' order": slot_order,
            "the early-stop state": lambda: after_restore(early_stop),
            "the metrics' state": lambda: after_restore(metrics),
        }

        def once(name):
            copy = self._folder(f"control-{name.replace(' ', '-')}")
            shutil.copytree(run, copy)
            code = train(copy, self._flags(kind), controls[name])
            case = {"left out": name, "code": code}
            if not code:
                found = fingerprint(copy)
                case["different"] = [
                    part
                    for part in found
                    if found[part] != self._references[kind]["fingerprint"][part]
                ]
            if (name == "nothing") != (code == 0 and not case["different"]):
                case["failed"] = (
                    "the equality test did not notice"
                    if name != "nothing"
                    else "differs all the same"
                )
            return case

        cases = self._parallel([functools.partial(once, name) for name in controls], "controls")
        return cases, (
            f"{_passed(cases[1:])} things left out on purpose were noticed by the equality test "
            f"({', '.join(list(controls)[1:])}); with none left out it holds"
        )

    def repeat(self):
        """Fresh runs, with 1 and 2 parallel decode calls, listings in another order,
        --deterministic: one hash.
        """

        def fewer_calls(number):
            os.cpu_count = lambda: number

        def reversed_listing():
            scandir = os.scandir

            class Reversed(list):
                def __enter__(self):
                    return self

                def __exit__(self, *exception):
                    pass

            os.scandir = lambda *args: (
                Reversed(reversed(list(scandir(*args))))
                if args and not isinstance(args[0], int)
                else scandir(*args)
            )

        plans = [(f"fresh {i}", [], lambda: None) for i in range(self._many(10))]
        plans += [
            (f"{calls} decode calls", ["--cache_pixels=0"], functools.partial(fewer_calls, calls))
            for calls in (1, 2)
        ]
        plans += [("listed backwards", [], reversed_listing)]
        plans += [(f"--deterministic {i}", ["--deterministic"], lambda: None) for i in (1, 2)]

        def once(name, arguments, prepare):
            run = self._folder("repeat-" + re.sub(r"\W+", "-", name))
            code = train(run, [*self._flags("live"), *arguments], prepare)
            if code:
                return {"name": name, "failed": f"exit code {code}"}
            with open(os.path.join(run, "results.json")) as file:
                return {"name": name, "weights_sha256": json.load(file)["weights_sha256"]}

        cases = self._parallel([functools.partial(once, *plan) for plan in plans], "repeat")
        # deterministic kernels are others, and round otherwise
        for group in (cases[:-2], cases[-2:]):
            for case in group:
                if "failed" not in case and case["weights_sha256"] != group[0].get(
                    "weights_sha256"
                ):
                    case["failed"] = "another hash"
        return cases, (
            f"{_passed(cases[:-2])} runs end with one `weights_sha256`: {self._many(10)} fresh "
            "ones, with 1 and 2 parallel decode calls, with folders listed backwards; "
            f"{_passed(cases[-2:])} with --deterministic end with one too"
        )

    def cost(self):
        """What checkpoints cost a run of a real network, on drawn flowers."""
        run, answer = self._folder("cost"), self._folder("cost.json")

        def prepare():
            seconds, save = [], loop.Trainer.save

            def timed(trainer):
                start = time.perf_counter()
                save(trainer)
                seconds.append(time.perf_counter() - start)
                write_atomically(answer, json.dumps(seconds))

            loop.Trainer.save = timed

        epochs = "1,1" if self._settings.quick else "4,5"
        code = train(
            run,
            [
                "--dataset=drawn_flowers",
                "--backbone=EfficientNetLite0",
                "--image_size=160",
                f"--epochs={epochs}",
                f"--download_dir={self._folder('drawn')}",
                "--augment_views=0",
                "--patience=0",
            ],
            prepare,
        )
        if code:
            return [{"failed": f"exit code {code}"}], "the run failed"
        with open(answer) as file, open(os.path.join(run, "results.json")) as results:
            seconds, total = json.load(file), json.load(results)["seconds"]["total"]
        case = {
            "saves": len(seconds),
            "seconds in saves": sum(seconds),
            "total": total,
            "share": sum(seconds) / total,
        }
        if case["share"] > 0.03:
            case["failed"] = "more than 3 %"
        return [case], (
            f"{len(seconds)} checkpoints of EfficientNetLite0 at 160 px take {sum(seconds):.1f} of "
            f"{total:.0f} s, {100 * case['share']:.1f} %"
        )


def _lost(content, config, output):
    """Returns what is wrong with how a flag file was understood, or None.

    Decided apart from the program's own parser.
    """
    if "Traceback" in output:
        return "a traceback"
    if config is None:
        return (
            None
            if output.count("error: ") == 1 and ".flags" in output.split("error: ")[1]
            else f"not named: {output!r}"
        )
    said = {}
    for number, line in enumerate(content.decode().replace("\r\n", "\n").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        match = re.fullmatch(r"--?([a-z_]+)(?:=(.*))?", line)
        name, value = match.groups() if match else ("", "")
        if value is None:
            name, value = (
                (name, True)
                if name in Config.__dataclass_fields__
                else (name.removeprefix("no"), False)
            )
        if name not in Config.__dataclass_fields__:
            return f"line {number} is lost: {line!r}"
        field = Config.__dataclass_fields__[name]
        if field.metadata["repeated"]:
            said.setdefault(name, []).append(value)
            continue
        if name in said and f":{number}: " not in output:
            return f"line {number} overrides an earlier one without a word: {line!r}"
        if field.type is bool and isinstance(value, str):
            value = {"true": True, "t": True, "1": True, "y": True, "yes": True}.get(
                value.lower(), False
            )
        said[name] = int(value, 0) if field.type is int else value
    expected = Config(**said)
    different = [name for name in said if getattr(config, name) != getattr(expected, name)]
    return f"not as the file says: {different}" if different else None


def _passed(cases):
    return f"{sum('failed' not in case for case in cases)} of {len(cases)}"


def main():
    # A shell starts what runs in the background with interrupts ignored, which every case would
    # inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = cli.config_from_flags(Settings)
    names = [name for name in vars(Campaign) if not name.startswith("_") and name != "reference"]
    chosen = names if settings.figures == "all" else settings.figures.split(",")
    if wrong := [name for name in chosen if name not in names]:
        raise UserError(
            f"--figures={settings.figures} names {wrong[0]!r}; expected all or some of "
            f"{','.join(names)}; correct it"
        )
    lines, report, failures = ["| Fault | What happened | Minutes |", "|---|---|---|"], {}, 0
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(settings, place)
        for name in chosen:
            start = time.monotonic()
            cases, line = getattr(campaign, name)()
            for case in cases:
                if "failed" in case:
                    failures += 1
                    print(f"failed: {name}: {case}", file=sys.stderr, flush=True)
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
