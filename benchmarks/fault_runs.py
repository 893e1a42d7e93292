"""The figures of runs that are broken off, or that begin where another one is.

Each is a function of a `Lab` and returns (cases, line for the table).
"""

import collections.abc
import contextlib
import dataclasses
import functools
import io
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
from fault_lab import newest_step, passed

from tl_research import machine
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.files import write_atomically
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
    chains = [
        (
            ("cached", "live")[number % 2],
            [("save", lab.random.randint(2, 4), lab.random.uniform(0, 0.1)) for _ in range(5)],
        )
        for number in range(lab.many(5))
    ]
    cases = lab.each(_killed, [(i, *plan) for i, plan in enumerate(plans + chains)])
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

    def point(share):
        if share < 0.56:
            place, longest = "run", seconds
        elif share < 0.8:
            place, longest = "save", lengths["save"]
        elif share < 0.9 and kind == "cached":
            place, longest = "cache", lengths["cache"]
        elif share < 0.95:
            place, longest = "finetune", seconds / 3
        else:
            place, longest = "export", lengths["export"]
        count = lab.random.randint(1, entries[place]) if place in ("save", "cache") else 1
        return place, count, lab.random.uniform(0, longest)

    return [point(i / number) for i in range(number)]


def _killed(lab, index, kind, points):
    run, trail = lab.folder(f"kill-{index}"), []
    for point in points:
        case = lab.interrupted(run, kind, signal.SIGKILL, point)
        if "failed" in case:
            return case
        trail.append(case["sent in"])
    return lab.resumed(run, kind, {**case, "trail": trail})


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
    with open(f"{run}.log", encoding="utf-8") as log:
        problems = {
            "never reached": not happened.startswith(f"{number} {name} in "),
            f"exit code {code}": code not in ((-9,) if mode == "kill" else (0, 9)),
            "traceback": "Traceback" in log.read(),
        }
    if any(problems.values()):
        return {**case, "failed": ", ".join(filter(problems.get, problems))}
    # nothing was killed: that the checkpoint is usable is enough
    if mode == "fail" and code and number % 4:
        state, _ = checkpoints.load_newest(os.path.join(run, "checkpoints"))
        entries = os.listdir(os.path.join(run, "checkpoints"))
        aside = [name for name in entries if ".corrupt-" in name]
        failed = {"failed": f"damaged {aside}"} if aside else {}
        return {**case, "usable": state["global_step"], **failed}
    return lab.resumed(run, "cached", case)


def damage(lab):
    """Checkpoints damaged in every way: none may be loaded, all must fall back."""
    lab.reference("cached")
    cases = lab.shared_out(_damaged, 1000)
    kinds = collections.Counter(case.get("what", "").split(" ")[0] for case in cases)
    whole = lab.each(_resumed_from_damage, [(index,) for index in range(lab.many(10))])
    return cases + whole, (
        f"{passed(cases)} damaged checkpoints named, set aside and the one before used "
        f"({', '.join(f'{count} {kind}' for kind, count in kinds.items())}); {passed(whole)} "
        "runs resumed from such a pair bit for bit"
    )


def _damaged(lab, number, seed):
    source = os.path.join(lab.reference("cached")["run"], "checkpoints")
    before, newest = checkpoints.step_names(source)[-2:]
    draw, cases = random.Random(seed), []
    for trial in range(number):
        folder = lab.folder(f"damage-{seed}-{trial}")
        shutil.copytree(source, folder)
        paths = [os.path.join(folder, name) for name in (newest, before)]
        case, warnings = {"what": fault_inputs.damage(*paths, draw)}, io.StringIO()
        with contextlib.redirect_stderr(warnings):
            state, _ = checkpoints.load_newest(folder)
        if checkpoints.step_name(state["global_step"]) != before:
            case["failed"] = "loaded all the same"
        elif newest not in warnings.getvalue() or not os.path.exists(f"{paths[0]}.corrupt-1"):
            case["failed"] = "not named, or not set aside"
        shutil.rmtree(folder)
        cases.append(case)
    return cases


def _resumed_from_damage(lab, index):
    """A run killed in a save, its newest checkpoint damaged, must end as the unbroken one did."""
    run = lab.folder(f"damaged-run-{index}")
    case = lab.interrupted(run, "cached", signal.SIGKILL, ("save", 8 + index, 0))
    folder = os.path.join(run, "checkpoints")
    before, newest = (os.path.join(folder, n) for n in checkpoints.step_names(folder)[-2:])
    case["what"] = fault_inputs.damage(newest, before, random.Random(index))
    return lab.resumed(run, "cached", case)


def signals(lab):
    """SIGTERM at random points, and a few SIGINT and SIGHUP."""
    numbers = [signal.SIGTERM] * lab.many(20) + [signal.SIGINT, signal.SIGHUP] * lab.many(5)
    plans = []
    for i, number in enumerate(numbers):
        kind = ("cached", "live")[i % 2]
        delay = lab.random.uniform(0, 0.9 * lab.reference(kind)["seconds"])
        plans.append((f"signal-{i}", kind, number, ("run", 1, delay)))
    cases = lab.each(_signalled, plans)
    terms, others = [], []
    for case in cases:
        (terms if case.get("signal") == signal.SIGTERM else others).append(case)
    seconds = [case["seconds"] for case in cases if "failed" not in case] or [0.0]
    return cases, (
        f"{passed(terms)} SIGTERM at random points: exit 143, no finished step lost, resumed "
        f"bit for bit; {passed(others)} SIGINT and SIGHUP; answered in "
        f"{statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"
    )


def _signalled(lab, name, kind, number, point):
    run = lab.folder(name)
    case = lab.interrupted(run, kind, number, point)
    case["saved"] = newest_step(run)
    if "failed" in case:
        return case
    if case["saved"] != case["steps"]:
        return {**case, "failed": f"{case['steps']} steps finished, {case['saved']} saved"}
    return lab.resumed(run, kind, case)


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
    case = {"resume": resume, "codes": codes}
    if codes != [0, 8]:
        return {**case, "failed": "expected one winner and exit 8"}
    # a killed owner leaves no lock
    with RunDirectory(dataclasses.replace(config, resume="auto")):
        return case


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
    code = train(copy, lab.flags("cached"), lambda: _change_restored(_LEFT_OUT.get(name)))
    case = {"left out": name, "code": code}
    if not code:
        case["different"] = lab.differences(copy, "cached")
    if (name == "nothing") != (code == 0 and not case["different"]):
        noticed = (
            "differs all the same" if name == "nothing" else "the equality test did not notice"
        )
        case["failed"] = noticed
    return case


def _change_restored(change):
    """Lets a resumed run go on with a state that was changed."""
    restore = Resume.restore

    def changed(resume):
        state = restore(resume)
        if change:
            change(state)
        return state

    Resume.restore = changed


def _dropout_seed(state):
    mask, first = Classifier.dropout_mask, state.position.global_step
    Classifier.dropout_mask = lambda classifier, step, size: mask(classifier, step - first, size)


def _position(state):
    state.position.epoch_step = 0


def _slot_order(state):
    other = {"momentum": "velocity", "velocity": "momentum"}
    swapped = {
        name: re.sub(r"(momentum|velocity)$", lambda match: other[match[0]], name)
        for name in state.slots
    }
    state.slots = {name: state.slots[swapped[name]] for name in swapped}


def _early_stop(state):
    state.progress.best, state.progress.wait, state.weights.best = None, 0, {}


def _metrics(state):
    state.progress.epoch_totals = {}


_LEFT_OUT = {
    "the dropout seed": _dropout_seed,
    "the position": _position,
    "the slots' order": _slot_order,
    "the early-stop state": _early_stop,
    "the metrics' state": _metrics,
}


def repeat(lab):
    """Fresh runs, with 1 and 2 parallel decode calls, listings in another order, --deterministic:
    one hash.
    """
    fresh = lab.many(10)
    plans = [(f"fresh {i}", [], None) for i in range(fresh)]
    for calls in (1, 2):
        cores = functools.partial(setattr, machine, "cores", lambda calls=calls: calls)
        plans.append((f"{calls} decode calls", ["--cache_pixels=0"], cores))
    plans.append(("listed backwards", [], _list_backwards))
    plans += [(f"--deterministic {i}", ["--deterministic"], None) for i in (1, 2)]
    cases = lab.each(_hashed, plans)
    # deterministic kernels are others, and round otherwise
    for group in (cases[:-2], cases[-2:]):
        for case in group:
            if "failed" not in case and case["weights_sha256"] != group[0].get("weights_sha256"):
                case["failed"] = "another hash"
    return cases, (
        f"{passed(cases[:-2])} runs end with one `weights_sha256`: {fresh} fresh ones, "
        "with 1 and 2 parallel decode calls, with folders listed backwards; "
        f"{passed(cases[-2:])} with --deterministic end with one too"
    )


def _hashed(lab, name, arguments, prepare):
    run = lab.folder("repeat-" + re.sub(r"\W+", "-", name))
    code = train(run, [*lab.flags("live"), *arguments], prepare or (lambda: None))
    if code:
        return {"name": name, "failed": f"exit code {code}"}
    with open(os.path.join(run, "results.json"), encoding="utf-8") as file:
        return {"name": name, "weights_sha256": json.load(file)["weights_sha256"]}


def _list_backwards():
    scandir = os.scandir

    class Backwards(collections.abc.Iterator):
        def __init__(self, *args):
            with scandir(*args) as entries:
                self._rest = list(entries)

        def __next__(self):
            if not self._rest:
                raise StopIteration
            return self._rest.pop()

        def __enter__(self):
            return self

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

    code = train(
        run,
        [
            "--dataset=drawn_flowers",
            "--backbone=EfficientNetLite0",
            "--image_size=160",
            f"--epochs={'1,1' if lab.settings.quick else '4,5'}",
            f"--download_dir={lab.folder('drawn')}",
            "--augment_views=0",
            "--patience=0",
        ],
        lambda: around(Resume, "save", timed),
    )
    if code:
        return [{"failed": f"exit code {code}"}], "the run failed"
    with (
        open(answer, encoding="utf-8") as file,
        open(os.path.join(run, "results.json"), encoding="utf-8") as results,
    ):
        seconds, total = json.load(file), json.load(results)["seconds"]["total"]
    spent = sum(seconds)
    case = {"saves": len(seconds), "seconds in saves": spent, "total": total}
    case["share"] = spent / total
    if case["share"] > 0.03:
        case["failed"] = "more than 3 %"
    return [case], (
        f"{len(seconds)} checkpoints of EfficientNetLite0 at 160 px take {spent:.1f} of "
        f"{total:.0f} s, {100 * case['share']:.1f} %"
    )
