"""The figures of runs that are broken off, or that begin where another one is.

Each is a function of a `Lab` and returns (cases, line for the table).
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import time

from fault_forks import FORKS, KILLED, around, in_parallel, train
from fault_lab import judged, newest_step, passed
from program import read_json

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.files import write_atomically
from tl_research.models.classifier import Classifier
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


def _broken_off(lab, name, kind, points, number=signal.SIGKILL):
    """Breaks a run off at one point after the other; resumed, it must end as the unbroken one did.

    Args:
        lab: `Lab`.
        name: Of its directory.
        kind, points, number: As of `Lab.interrupted`.
    """
    run, trail = lab.folder(name), []
    for point in points:
        case = lab.interrupted(run, kind, number, point)
        trail.append(case["sent in"])
        if "failed" in case:
            return case
    case |= {"trail": trail, "saved": newest_step(run)}
    lost = number != signal.SIGKILL and case["saved"] != case["steps"]
    problems = {f"{case['steps']} steps finished, {case['saved']} saved": lost}
    return lab.resumed(run, kind, judged(case, problems))


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
    both = FORKS.Barrier(2)

    def start():
        both.wait()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                directory = RunDirectory(config)  # locked as long as it is referred to
        except UserError as error:
            both.wait()
            return error.exit_code
        both.wait()
        os.kill(os.getpid(), signal.SIGKILL)
        return directory

    answers = in_parallel([start, start], 2)
    winners = [answer for answer in answers if answer == KILLED]
    # a killed owner leaves no lock
    with RunDirectory(dataclasses.replace(config, resume="auto")):
        problem = len(winners) != 1 or 8 not in answers
        case = {"resume": resume, "answers": answers}
        return judged(case, {"expected one winner and exit 8": problem})


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
