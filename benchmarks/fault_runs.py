"""The figures of runs that are broken off, or that begin where another one is.

Each is a function of a `Lab` and returns (cases, line for the table).
"""

import collections.abc
import contextlib
import dataclasses
import functools
import glob
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import time

import fault_inputs
from fault_forks import FORKS, Operations, Page, around, train
from fault_lab import hashed, judged, newest_step, one_hash, passed
from program import read_json

from tl_research import machine
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.files import read_text, write_atomically
from tl_research.models.classifier import Classifier
from tl_research.run import checkpoints
from tl_research.run.directory import RunDirectory
from tl_research.training.resume import Resume


def kill(lab):
    """`kill -9` at random points of two kinds of runs, and chains of five in one run."""
    plans = [
        (kind, [point])
        for kind, number in (("cached", 35), ("live", 15))
        for point in _points(lab, kind, lab.many(number))
    ]
    # A resumed run is shorter, so a chain advances by its own steps: it is killed in its n-th save,
    # or a little later.
    draw = lab.random
    chains = [
        (kind, [("save", draw.randint(2, 4), draw.uniform(0, 0.1)) for _ in range(5)])
        for kind in itertools.islice(itertools.cycle(("cached", "live")), lab.many(5))
    ]
    cases = lab.each(_broken_off, [(f"kill-{i}", *of) for i, of in enumerate(plans + chains)])
    single, chained = cases[: len(plans)], cases[len(plans) :]
    trails = [case.get("sent in", "").split("/") for case in single]
    names = ("head", "finetune", "save", "cache", "export", "data")
    located = ", ".join(f"{sum(name in trail for trail in trails)} in {name}" for name in names)
    return cases, (
        f"{passed(single)} random kills (-9) resumed bit for bit ({located}; some in two of "
        f"these); {passed(chained)} chains of 5 kills"
    )


def _points(lab, kind, number):
    """Returns seeded points (place, how often entered, delay): over the whole run, and aimed at
    saves, cache and finish.
    """
    reference = lab.reference(kind)
    entries, lengths, seconds = (reference[name] for name in ("entries", "lengths", "seconds"))
    longest = {**lengths, "run": seconds, "finetune": seconds / 3}
    shares = {"run": 0.56, "save": 0.8, "cache": 0.9, "finetune": 0.95, "export": 1}
    if kind != "cached":
        del shares["cache"]

    def point(share):
        place = next(place for place, end in shares.items() if share < end)
        count = lab.random.randint(1, entries[place]) if place in ("save", "cache") else 1
        return place, count, lab.random.uniform(0, longest[place])

    return [point(i / number) for i in range(number)]


def _broken_off(lab, name, kind, points, number=signal.SIGKILL, damaged=None):
    """Breaks a run off at one point after the other; resumed, it must end as the unbroken one did.

    Args:
        lab: `Lab`.
        name: Of its directory.
        kind, points, number: As of `Lab.interrupted`.
        damaged: Decides how its newest checkpoint is damaged then; None: not at all.
    """
    run, trail = lab.folder(name), []
    for point in points:
        case = lab.interrupted(run, kind, number, point)
        trail.append(case["sent in"])
        if "failed" in case:
            return case
    case |= {"trail": trail, "saved": newest_step(run)}
    if damaged is not None:
        names = checkpoints.step_names(f"{run}/checkpoints")[-2:]
        before, newest = (f"{run}/checkpoints/{name}" for name in names)
        case["what"] = fault_inputs.damage(newest, before, random.Random(damaged))
    lost = number != signal.SIGKILL and case["saved"] != case["steps"]
    problems = {f"{case['steps']} steps finished, {case['saved']} saved": lost}
    return lab.resumed(run, kind, judged(case, problems))


def operations(lab):
    """A process that dies, and a disk that fails, at each file operation of a save."""
    names = lab.reference("cached")["operations"]
    every = range(0, len(names), 5 if lab.settings.quick else 1)
    plans = [(number, names[number], mode) for mode in ("kill", "fail") for number in every]
    cases = lab.each(_at_operation, plans)
    killed, failed = ([c for c in cases if c.get("mode") == mode] for mode in ("kill", "fail"))
    stopped = sum(case["code"] == 9 for case in failed)
    return cases, (
        f"a save has {len(names)} file operations: {passed(killed)} killed at one, resumed "
        f"bit for bit; {passed(failed)} with a disk that fails there: a checkpoint was usable "
        f"({stopped} exit 9, {len(failed) - stopped} went on)"
    )


def _at_operation(lab, number, name, mode):
    run, page, note = lab.folder(f"operation-{mode}-{number}"), Page(), FORKS.RawArray("c", 256)

    def act(name):
        note.value = f"{number} {name} in {page.place}".encode()
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")

    def prepare():
        page.watch()
        Operations(6, number, act)

    code, happened = train(run, lab.flags("cached"), prepare), note.value.decode()
    case = {"mode": mode, "operation": f"{number} {name}", "code": code, "happened at": happened}
    problems = {
        "never reached": not happened.startswith(f"{number} {name} in "),
        f"exit code {code}": code not in ((-9,) if mode == "kill" else (0, 9)),
        "traceback": "Traceback" in read_text(f"{run}.log"),
    }
    case = judged(case, problems)
    # of four where nothing was killed, that the checkpoint is usable is enough in three
    if "failed" in case or mode == "kill" or not code or number % 4 == 0:
        return lab.resumed(run, "cached", case)
    state, _ = checkpoints.load_newest(f"{run}/checkpoints")
    aside = glob.glob(f"{run}/checkpoints/*.corrupt-*")
    return judged({**case, "usable": state["global_step"]}, {f"damaged {aside}": aside})


def damage(lab):
    """Checkpoints damaged in every way: none may be loaded, all must fall back."""
    lab.reference("cached")
    cases = lab.shared_out(_damaged, 1000)
    kinds = collections.Counter(case.get("what", "").split(" ")[0] for case in cases)
    plans = [
        (f"damaged-run-{i}", "cached", [("save", 8 + i, 0)], signal.SIGKILL, i)
        for i in range(lab.many(10))
    ]
    whole = lab.each(_broken_off, plans)
    return cases + whole, (
        f"{passed(cases)} damaged checkpoints named, set aside and the one before used "
        f"({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); {passed(whole)} "
        "runs resumed from such a pair bit for bit"
    )


def _damaged(lab, number, seed):
    source = f"{lab.reference('cached')['run']}/checkpoints"
    before, newest = checkpoints.step_names(source)[-2:]
    draw, cases = random.Random(seed), []
    for trial in range(number):
        folder = lab.folder(f"damage-{seed}-{trial}")
        shutil.copytree(source, folder)
        paths = [f"{folder}/{name}" for name in (newest, before)]
        case, warnings = {"what": fault_inputs.damage(*paths, draw)}, io.StringIO()
        with contextlib.redirect_stderr(warnings):
            state, _ = checkpoints.load_newest(folder)
        problems = {
            "loaded all the same": checkpoints.step_name(state["global_step"]) != before,
            "not named": newest not in warnings.getvalue(),
            "not set aside": not os.path.exists(f"{paths[0]}.corrupt-1"),
        }
        shutil.rmtree(folder)
        cases.append(judged(case, problems))
    return cases


def signals(lab):
    """SIGTERM at random points, and a few SIGINT and SIGHUP."""
    numbers = [signal.SIGTERM] * lab.many(20) + [signal.SIGINT, signal.SIGHUP] * lab.many(5)
    plans = []
    for i, number in enumerate(numbers):
        kind = ("cached", "live")[i % 2]
        delay = lab.random.uniform(0, 0.9 * lab.reference(kind)["seconds"])
        plans.append((f"signal-{i}", kind, [("run", 1, delay)], number))
    cases = lab.each(_broken_off, plans)
    terms = cases[: lab.many(20)]
    seconds = [case["seconds"] for case in cases if "failed" not in case] or [0.0]
    return cases, (
        f"{passed(terms)} SIGTERM at random points: exit 143, no finished step lost, resumed "
        f"bit for bit; {passed(cases[len(terms) :])} SIGINT and SIGHUP; answered in "
        f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"
    )


def starts(lab):
    """Two processes that start in one directory at once, and a start after the winner was
    killed.
    """
    cases = lab.each(_started_twice, [(number,) for number in range(lab.many(50))])
    return cases, (
        f"{passed(cases)} double starts: one winner, the other exit 8, and no lock left "
        "by the killed winner"
    )


def _started_twice(lab, number):
    run, resume = lab.folder(f"start-{number}"), ("auto", "never")[number % 2]
    config = Config(dataset="directory", data_dir=lab.photos, workdir=run, resume=resume)
    # an unfinished run, so that `never` has something to set aside
    with RunDirectory(config) as directory:
        directory.write_json("run.json", {})
    both, answers = FORKS.Barrier(2), FORKS.SimpleQueue()

    def start():
        both.wait()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                directory = RunDirectory(config)  # locked as long as it is referred to
            answers.put(0)
            time.sleep(60)
            del directory
        except UserError as error:
            answers.put(error.exit_code)

    processes = [FORKS.Process(target=start) for _ in range(2)]
    for process in processes:
        process.start()
    codes = sorted(answers.get() for _ in processes)
    for process in processes:
        process.kill()
        process.join()
    # a killed owner leaves no lock
    with RunDirectory(dataclasses.replace(config, resume="auto")):
        case = {"resume": resume, "codes": codes}
        return judged(case, {"expected one winner and exit 8": codes != [0, 8]})


def controls(lab):
    """What the equality test must notice: each thing a resume needs, left out on purpose."""
    # Killed late in the second phase, when the last checkpoint is of mid-epoch, so that each of
    # them matters.
    run, saves = lab.folder("control"), lab.reference("cached")["epoch_steps"]
    late = max(i for i, epoch_step in enumerate(saves[:-3], 1) if epoch_step)
    case = lab.interrupted(run, "cached", signal.SIGKILL, ("save", late + 1, 0))
    if "failed" in case:
        return [case], "the control run could not be killed"
    cases = lab.each(_without, [(run, name) for name in ("nothing", *_LEFT_OUT)])
    return cases, (
        f"{passed(cases[1:])} things left out on purpose were noticed by the equality test "
        f"({', '.join(_LEFT_OUT)}); with none left out it holds"
    )


def _without(lab, run, name):
    copy = lab.folder(f"control-{name.replace(' ', '-')}")
    shutil.copytree(run, copy)
    change, restore = _LEFT_OUT.get(name, lambda state: None), Resume.restore

    def changed(resume):
        state = restore(resume)
        change(state)
        return state

    code = train(copy, lab.flags("cached"), lambda: setattr(Resume, "restore", changed))
    different = f"exit code {code}" if code else lab.differences(copy, "cached")
    problems = {
        "differs all the same": name == "nothing" and different,
        "the equality test did not notice": name != "nothing" and not different,
    }
    return judged({"left out": name, "code": code, "different": different}, problems)


def _dropout_seed(state):
    mask, first = Classifier.dropout_mask, state.position.global_step
    Classifier.dropout_mask = lambda classifier, step, size: mask(classifier, step - first, size)


def _slot_order(state):
    other = {"momentum": "velocity", "velocity": "momentum"}
    state.slots = {
        name: state.slots[re.sub(r"(momentum|velocity)$", lambda match: other[match[0]], name)]
        for name in state.slots
    }


def _early_stop(state):
    state.progress.best, state.progress.wait, state.weights.best = None, 0, {}


_LEFT_OUT = {
    "the dropout seed": _dropout_seed,
    "the position": lambda state: setattr(state.position, "epoch_step", 0),
    "the slots' order": _slot_order,
    "the early-stop state": _early_stop,
    "the metrics' state": lambda state: state.progress.epoch_totals.clear(),
}


def repeat(lab):
    """Fresh runs, with 1 and 2 parallel decode calls, listings in another order, --deterministic:
    one hash.
    """
    fresh = lab.many(10)
    plans = [(f"fresh {i}",) for i in range(fresh)]
    for calls in (1, 2):
        cores = functools.partial(setattr, machine, "cores", lambda calls=calls: calls)
        plans.append((f"{calls} decode calls", ["--cache_pixels=0"], cores))
    plans.append(("listed backwards", [], _list_backwards))
    plans += [(f"--deterministic {i}", ["--deterministic"]) for i in (1, 2)]
    cases = lab.each(_hashed, plans)
    # deterministic kernels are others, and round otherwise
    same, deterministic = one_hash(cases[:-2]), one_hash(cases[-2:])
    return same + deterministic, (
        f"{passed(same)} runs end with one `weights_sha256`: {fresh} fresh ones, "
        "with 1 and 2 parallel decode calls, with folders listed backwards; "
        f"{passed(deterministic)} with --deterministic end with one too"
    )


def _hashed(lab, name, arguments=(), prepare=lambda: None):
    run = lab.folder(f"repeat-{name}")
    return hashed(name, run, train(run, [*lab.flags("live"), *arguments], prepare))


def _list_backwards():
    scandir = os.scandir

    class Backwards(contextlib.AbstractContextManager, collections.abc.Iterator):
        def __init__(self, *args):
            with scandir(*args) as entries:
                self._rest = reversed(list(entries))

        def __next__(self):
            return next(self._rest)

        def __exit__(self, *exception):
            pass

    os.scandir = Backwards


def cost(lab):
    """What checkpoints cost a run of a real network, on drawn flowers."""
    run, answer, seconds = lab.folder("cost"), lab.folder("cost.json"), []

    @contextlib.contextmanager
    def timed(*_):
        start = time.perf_counter()
        yield
        seconds.append(time.perf_counter() - start)
        write_atomically(answer, json.dumps(seconds))

    flags = (
        "--dataset=drawn_flowers --backbone=EfficientNetLite0 --image_size=160 --augment_views=0 "
        f"--patience=0 --epochs={'1,1' if lab.settings.quick else '4,5'}"
    )
    arguments = [*flags.split(), f"--download_dir={lab.folder('drawn')}"]
    if code := train(run, arguments, lambda: around(Resume, "save", timed)):
        return [{"failed": f"exit code {code}"}], "the run failed"
    seconds, total = read_json(answer), read_json(f"{run}/results.json")["seconds"]["total"]
    spent = sum(seconds)
    share = spent / total
    case = {"saves": len(seconds), "seconds in saves": spent, "total": total, "share": share}
    return [judged(case, {"more than 3 %": share > 0.03})], (
        f"{len(seconds)} checkpoints of EfficientNetLite0 at 160 px take {spent:.1f} of "
        f"{total:.0f} s, {100 * share:.1f} %"
    )
