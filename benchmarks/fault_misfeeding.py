"""The figures of bad inputs (`fault_inputs.py`): images, flag files, and whatever strangers send.

Each is a function of a `Lab` and returns (cases, line for the table).
"""

import contextlib
import csv
import functools
import io
import json
import os
import random
import re
import resource
import shutil

import fault_inputs
import tiny_network
from absl import flags
from fault_forks import in_fork, train
from fault_lab import judged, passed, unless_failed
from program import read_json

from tl_research import cli, flagfile
from tl_research.config import Config
from tl_research.data import catalog, dataset, download, image_check
from tl_research.errors import UserError
from tl_research.files import read_text, write_atomically
from tl_research.models.efficientnet_lite import read_legacy_torch
from tl_research.models.weights import load_weights_file
from tl_research.run import checkpoints
from tl_research.run.directory import RunDirectory


def _megabytes():
    """Returns the most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def images(lab):
    """Odd and broken images among good ones."""
    folder, draw = lab.folder("odd-photos"), random.Random(lab.settings.seed)
    tiny_network.write_photos(folder)
    place = f"{folder}/ant"
    written = fault_inputs.write_images(place, draw, lab.many(8))
    expected = {f"ant/{name}": kind for name, kind in written.items()}
    answer = lab.folder("images.json")
    check = functools.partial(_check_images, lab.photos, folder, answer)
    if code := in_fork(check, lab.folder("images.log")):
        return [{"failed": f"the check ended with {code}"}], "the check failed"
    megabytes = read_json(answer)
    cases = [{"failed": f"memory grew by {megabytes:.0f} MB"}] if megabytes > 50 else []
    arguments = [*lab.flags("cached"), f"--data_dir={folder}", "--epochs=1,1"]
    for choice, code in (("skip", 0), ("error", 2)):
        run = lab.folder(f"images-{choice}")
        if (found := train(run, [*arguments, f"--on_bad_image={choice}"])) != code:
            cases.append({"failed": f"--on_bad_image={choice} ended with {found}, not {code}"})
    named, used = _named_and_used(lab.folder("images-skip"))
    cases += [_judge_image(name, kind, named, used) for name, kind in expected.items()]
    kinds = len({re.sub(r"^\.?\d\d?", "", name[4:]) for name in expected})
    return cases, (
        f"{len(expected)} images of {kinds} kinds, {len(named)} named in `bad_images.csv`, "
        f"{sum(name in used for name in expected)} used, beside 45 whole ones: "
        f"{sum('failed' in case for case in cases)} wrong, 0 crashes, 0 hangs, memory "
        f"+{megabytes:.0f} MB; a run with --on_bad_image=skip completes"
    )


def _check_images(good, odd, answer):
    """Checks good images, and then odd ones, and writes down by how much the memory grew."""
    most = []
    for folder in (good, odd):
        listed = catalog.find_images("directory", data_dir=folder, download_dir="")
        image_check.check_images(listed, 16, keep_pixels_bytes=1 << 30)
        most.append(_megabytes())
    write_atomically(answer, json.dumps(most[1] - most[0]))


def _named_and_used(run):
    """Returns {path: reason} of the images that a run refused, and the paths of the others."""
    with open(f"{run}/bad_images.csv", encoding="utf-8", newline="") as file:
        named = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    return named, {entry["path"] for entry in read_json(f"{run}/split.json")["files"]}


def _judge_image(name, kind, named, used):
    reason = named.get(os.fsencode(name).decode(errors="backslashreplace"))
    taken = (reason is not None) + (name in used)
    problems = {
        "neither used nor named": kind != "ignored" and taken != 1,
        "not ignored": kind == "ignored" and taken,
        "good, but refused": kind == "good" and name not in used,
        "bad, but used": kind == "bad" and name in used,
    }
    return judged({"name": ascii(name), "kind": kind, "reason": reason}, problems)


def flagfiles(lab):
    """Mutated flag files: every line is applied, or named in one line."""
    cases = lab.shared_out(_mutated, 10000)
    accepted = sum(case.get("accepted", False) for case in cases)
    return cases, f"{passed(cases)} mutated flag files" + unless_failed(
        cases,
        f": {accepted} applied line by line, {len(cases) - accepted} refused in one line with "
        "exit 1; 0 tracebacks, 0 settings lost",
    )


def _mutated(lab, number, seed):
    good = Config(dataset="directory", data_dir=lab.photos, lr_multiplier=("head/=2",))
    cli.define_flags(Config)
    draw, cases, path = random.Random(seed), [], lab.folder(f"odd-{seed}.flags")
    for _ in range(number):
        content = fault_inputs.mutated_flags(draw.sample(good.to_flags().splitlines(), 8), draw)
        with open(path, "wb") as file:
            file.write(content)
        config, output, problem = None, io.StringIO(), None
        flags.FLAGS.unparse_flags()
        try:
            with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
                try:
                    cli.parse(["train.py", f"--flagfile={path}"])
                    config = cli.config_from_flags(Config)
                except UserError as error:
                    cli.fail(error, 1)
            problem = misread(content, config, output.getvalue())
        except SystemExit as error:
            if error.code != 1 or output.getvalue().count("error: ") != 1:
                problem = f"exit {error.code}"
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        case = {"accepted": config is not None}
        cases.append({**case, "failed": problem, "content": ascii(content)} if problem else case)
    return cases


def misread(content, config, output):
    """Returns what is wrong with how a flag file was understood, or None.

    Decided apart from the program's own parser.

    Args:
        content: Bytes of the file.
        config: `Config` that it was understood as, or None if it was refused.
        output: What was printed.
    """
    if "Traceback" in output:
        return "a traceback"
    if config is None:
        named = output.count("error: ") == 1 and ".flags" in output.split("error: ")[1]
        return None if named else f"not named: {output!r}"
    said, problem = _settings_of(content, output)
    if problem:
        return problem
    expected = Config(**said)
    different = [name for name in said if getattr(config, name) != getattr(expected, name)]
    return f"not as the file says: {different}" if different else None


def _settings_of(content, output):
    """Returns ({name: value} of a flag file, what is wrong with how it was taken or None)."""
    said = {}
    for number, line in enumerate(content.decode().replace("\r\n", "\n").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        name, value = _setting_of(line)
        if name not in Config.__dataclass_fields__:
            return said, f"line {number} is lost: {line!r}"
        if Config.__dataclass_fields__[name].metadata["repeated"]:
            said.setdefault(name, []).append(value)
            continue
        if name in said and f":{number}: " not in output:
            return said, f"line {number} overrides an earlier one without a word: {line!r}"
        said[name] = value
    return said, None


def _setting_of(line):
    """Returns (name, value) of a line of a flag file; a name that is none, if it is not a flag."""
    match, fields = re.fullmatch(r"--?([a-z_]+)(?:=(.*))?", line), Config.__dataclass_fields__
    name, value = match.groups() if match else ("", "")
    if value is None:
        return (name, True) if name in fields else (name.removeprefix("no"), False)
    kind = fields[name].type if name in fields else None
    if kind is bool:
        value = value.lower() in ("true", "t", "1", "y", "yes")
    return name, int(value, 0) if kind is int else value


def artefacts(lab):
    """Weights, archives, checkpoints, flag files, runs and names from strangers."""
    names = list(fault_inputs.artefacts(lab.folder("secret"), ""))
    cases = lab.each(_given_artefact, enumerate(names))
    refused = sum(case.get("result", "").startswith("refused") for case in cases)
    return cases, f"{passed(cases)} hostile artefacts" + unless_failed(
        cases,
        f": {refused} refused in one line, {len(cases) - refused} names used as names; 0 "
        "executed, 0 bytes outside, 0 files read",
    )


def _given_artefact(lab, number, name):
    # Everything happens below one folder, whose listing outside the artefact's own place must not
    # change.
    outside = lab.folder(f"artefact-{number}")
    place = f"{outside}/place"
    os.makedirs(place)
    secret, canary = f"{outside}/secret", f"{outside}/canary"
    write_atomically(secret, fault_inputs.SECRET)
    kind, make = fault_inputs.artefacts(secret, f"touch {canary}")[name]
    path = f"{place}/{'artefact' + '.zip' * (kind == 'archive.zip')}"
    make(path)
    answer, log = f"{place}/answer", f"{place}/log"

    def body():
        before = _megabytes()
        try:
            _USES[kind](path, lab)
            result = "harmless"
        except UserError as error:
            result = f"refused: {' '.join(str(error).split())[:200]}"
        grown = _megabytes() - before
        write_atomically(answer, json.dumps({"result": result, "megabytes": grown}))

    code, output = in_fork(body, log, seconds=60), read_text(log)
    case = {"name": name, "code": code}
    if code:
        return {**case, "failed": f"exit code {code}: {output[-300:]}"}
    case |= read_json(answer)
    listing = sorted(os.listdir(outside))
    untouched = listing == ["place", "secret"] and read_text(secret) == fault_inputs.SECRET
    problems = {
        f"executed or written outside: {listing}": not untouched,
        "the secret was read": fault_inputs.SECRET in output + case["result"],
        f"memory grew by {case['megabytes']:.0f} MB": case["megabytes"] > 300,
        "expected a name to be harmless and anything else to be refused": (
            (kind == "photos") != (case["result"] == "harmless")
        ),
    }
    shutil.rmtree(outside)
    return judged(case, problems)


def _read_torch(path, lab):
    with open(path, "rb") as file:
        read_legacy_torch(file.read())


def _unpack(path, lab):
    download.unpack(path, f"{path}-unpacked/inside", max_files=20_000, max_bytes=1 << 26)


def _open_run(path, lab):
    with RunDirectory(Config(dataset="directory", data_dir=lab.photos, workdir=path)):
        pass


def _load_photos(path, lab):
    config = Config(dataset="directory", data_dir=path, workdir=f"{path}-run", image_size=16)
    with RunDirectory(config) as directory:
        dataset.load(config, directory)


_USES = {  # what the program does with each kind
    "weights": lambda path, lab: load_weights_file(
        tiny_network.build_tiny("Tiny", 16, "none"), path
    ),
    "torch": _read_torch,
    "archive": _unpack,
    "archive.zip": _unpack,
    "checkpoint": lambda path, lab: checkpoints.load_newest(path, 1 << 26),
    "flagfile": lambda path, lab: flagfile.expand([f"--flagfile={path}"], {"seed"}),
    "run": _open_run,
    "photos": _load_photos,
}
