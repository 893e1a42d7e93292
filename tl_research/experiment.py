"""One run from settings to results: data, classifier, phases, one test number, export.

Reads as a table of contents.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tl_research import quiet

quiet.import_tensorflow()

import tensorflow as tf

from tl_research import (
    __version__,
    artefacts,
    calibration,
    data_audit,
    distribution,
    memory,
    metrics,
)
from tl_research import extension as extension_lib
from tl_research.config import Config
from tl_research.data import dataset, shards, sides
from tl_research.errors import CheckpointError, GateError, UserError, to_stderr
from tl_research.extension import Extension
from tl_research.files import Json, make_folders, storage_errors
from tl_research.models import backbones, weights
from tl_research.models.classifier import Classifier
from tl_research.reporting import data_report, figures, pages, plan_text, report, results
from tl_research.reporting.console import Console
from tl_research.reporting.epoch_bar import EpochBar
from tl_research.reporting.evaluation import Evaluation
from tl_research.reporting.recorder import Recorder
from tl_research.reporting.summaries import Summaries
from tl_research.reporting.terminal import say, say_result
from tl_research.run import environment, offline
from tl_research.run.directory import RunDirectory, check_place, resume_command
from tl_research.run.offline import Replacements, Substitution
from tl_research.run.recorded import read_record
from tl_research.signals import Signals
from tl_research.training import audit, features, loop, selection
from tl_research.training.compiler import memory_errors
from tl_research.training.evaluation import EvalStep
from tl_research.training.events import Observer
from tl_research.training.plan import Plan
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState, timed


def run(
    config: Config,
    *,
    started: float | None = None,
    extension: Extension | None = None,
    observers: Sequence[Observer] = (),
) -> Json:
    """Runs or resumes an experiment; returns the contents of its `results.json`.

    Args:
        config: Its settings.
        started: `time.perf_counter()` when the program began; by default now.
        extension: Parts that replace the package's own; by default those of `config.extension`.
        observers: Called with every event of training, after those that record it.

    Raises:
        UserError: Or a subclass, see `tl_research.errors`: an error that the user can fix.
    """
    started = time.perf_counter() if started is None else started
    with opened(config, extension) as place:
        if place.directory.results:
            to_stderr(f"{place.directory.path} is finished")
            if sys.stdout.isatty():
                say(*results.ending(place.directory.results, place.directory.path))
            return _report(config, place.directory, place.directory.results)
        ready = prepare(place, started)
        past = ready.state.past
        if past.data_audit is None:  # else the run did before it was interrupted
            with timed(ready.state, "features"):
                past.data_audit = data_report.report(
                    ready.plan, ready.data, place.directory, ready.summaries
                )
        observers = (*ready.observers, EpochBar(config.batch_size), *observers)
        loop.fit(ready.plan, ready.state, resume=ready.resume, observers=observers)
        return _finish(ready)


class Place(NamedTuple):
    """An open run directory, and what is needed to run in it."""

    config: Config
    parts: Extension
    directory: RunDirectory
    replicas: contextlib.ExitStack  # closing it ends the strategy that distributes batches
    signals: Signals


@contextlib.contextmanager
def opened(
    config: Config, extension: Extension | None = None, program: str = "train"
) -> Iterator[Place]:
    """Yields the `Place` of a new or resumed run.

    Args:
        config: Its settings.
        extension: Parts that replace the package's own; by default those of `config.extension`.
        program: The program that resumes the run if it is interrupted, see `resume_command`.
    """
    if config.seeds:
        raise UserError(
            f"--seeds={','.join(map(str, config.seeds))} where one run is made; expected --seed; "
            "use train.py for several"
        )
    check_place(config)
    quiet.drop_retracing_notes()
    config = sides.resolved(config)
    parts = extension or extension_lib.load(config.extension)
    if not parts.make_backbone:
        backbones.check(config)  # before the data is read, and so are the names of its layers
        # a strategy has to be made before anything is computed
        if config.distribute == "off" and (names := _layers_named(config)):
            list(map(_untrained(config, 2).unfreeze, names))
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    with (
        distribution.replicas(config) as replicas,
        _open_directory(config, parts) as directory,
        Signals(
            resume_command(config.workdir or directory.path, program, config.extension)
        ) as signals,
        memory_errors(config, "the run"),
    ):
        yield Place(config, parts, directory, replicas, signals)


@contextlib.contextmanager
def _open_directory(config, parts):
    """Yields the open run directory; in workers other than the chief a temporary copy, without
    printed output.
    """
    if distribution.is_chief():
        with RunDirectory(config, parts) as directory:
            distribution.of_all_workers(0)  # the others may copy it now
            distribution.of_all_workers(0)  # they have copied it
            yield directory
        return
    with (
        tempfile.TemporaryDirectory() as place,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        distribution.of_all_workers(0)
        with storage_errors(config.workdir):
            names = ("flags.txt", "run.json", "split.json", "results.json", ".lock", "checkpoints")
            for name in names:
                there, copied = (f"{folder}/{name}" for folder in (config.workdir, place))
                if os.path.exists(there):
                    (shutil.copytree if os.path.isdir(there) else shutil.copy)(there, copied)
        distribution.of_all_workers(0)
        copy = dataclasses.replace(config, workdir=place, resume="auto")
        with RunDirectory(copy, parts) as directory:
            yield directory


class Ready(NamedTuple):
    """A run that is ready to train."""

    place: Place
    data: dataset.Dataset
    plan: Plan
    state: TrainState
    resume: Resume
    summaries: Summaries
    observers: tuple[Observer, ...]  # the recorder and the console
    precision: str
    substitutions: list[Substitution]
    seconds: dict[str, float]  # of this process: until `prepare`, and of the data and the network
    earlier_seconds: float  # of kinds of work in earlier processes of the run


def prepare(place: Place, started: float) -> Ready:
    """Returns a run with data, network, plan and restored state; prints the plan."""
    directory, config, begun = place.directory, place.config, time.perf_counter()
    recorded = read_record(directory.file("run.json"))
    precision, xla = environment.resolve_device(config, recorded, bool(place.parts.make_backbone))
    distribution.check_equal("precision and XLA", f"{precision}, {xla}")
    replacements = Replacements(config, recorded.get("substitutions"))
    features.make_views(config, place.parts.augmentations)  # a misspelled one is reported first
    data = _load_data(place, replacements, _shards(config, recorded))
    classifier = _make_classifier(place, data, replacements)
    _name_directory(place, classifier, replacements)
    say(f"run directory: {os.path.realpath(directory.path)}")
    config = _within_memory(_with_layers_of(classifier, config), data, recorded)
    seconds = {"start": begun - started, "data": time.perf_counter() - begun}
    plan = Plan(config, place.parts, classifier, data, directory, xla=xla, started=started)
    plan.check()
    decided = (plan.phases, plan.steps_per_epoch, plan.cache.plan, plan.saved_paths)
    distribution.check_equal("the plan", str(decided))
    lines = plan_text.describe_run(plan, data, precision, replacements.used)
    say(*(lines if config.verbose else plan_text.summarize_run(plan, data)))
    resume = Resume(plan, directory, place.signals)
    state = resume.restore() or TrainState()
    step, is_new = state.position.global_step, not state.progress.phase_hashes
    distribution.check_equal("checkpoint", f"step {step}", CheckpointError)
    summaries = Summaries(directory.path, -1 if is_new else step)
    if not is_new:
        environment.warn_of_others(recorded)
        to_stderr(f"resumed {_where(plan, state)}")
    else:
        _write_plan(place, precision, plan, replacements.used, lines)
        summaries.text("train", "plan", "\n\n".join(lines), 0)
        resume.check_room()
    if not summaries.has("train", "first_batch", 0):
        pages.first_batch(plan, data, summaries)
    recorder = Recorder(plan.objective.answer, data, directory, summaries)
    return Ready(
        place=place,
        data=data,
        plan=plan,
        state=state,
        resume=resume,
        summaries=summaries,
        observers=(recorder, Console(config)),
        precision=precision,
        substitutions=replacements.used,
        seconds=seconds,
        earlier_seconds=sum(state.past.run_seconds.values()),
    )


def _name_directory(place, classifier, replacements):
    """Names the directory after the images and backbone in effect, which are known only now."""
    before = os.path.abspath(place.directory.path)
    images = {used.what: used.used for used in replacements.used}.get("dataset")
    images = "catalog" if place.parts.load_catalog else images
    place.directory.name_after(place.config, images, classifier.spec.name)
    after = os.path.abspath(place.directory.path)
    place.signals.resume = place.signals.resume.replace(before, after)


def _where(plan, state):
    """Returns the phase, epoch and step at which a run is resumed."""
    phase = plan.phase(state.position.phase_index, state)
    epoch = state.position.epoch + (not selection.over(state, phase))
    return f"phase {phase.name}, epoch {epoch}, step {state.position.global_step}"


def _shards(config, recorded):
    """Returns the `Shards` of a new run, or those that a resumed one began with."""
    of_run = recorded.get("shards", 1) if recorded else distribution.num_processes()
    found = shards.of_process(config.shards or of_run)
    if config.batch_size % found.count:
        raise UserError(
            f"--batch_size={config.batch_size} with {found.count} shards; expected a multiple of "
            f"their number; choose for example --batch_size={found.count} or --shards=1"
        )
    if found.are_all_own and distribution.num_processes() > 1:
        to_stderr(
            f"note: each of {distribution.num_processes()} processes holds all images, since their "
            f"number does not divide --shards={found.count}, which the run has"
        )
    return found


def _load_data(place, replacements, shards_of_run):
    """Returns the `Dataset` of the settings or, offline, the embedded one."""
    say("reading and checking the images")
    config = place.config
    data = replacements.attempt(
        lambda chosen: dataset.load(
            chosen, place.directory, place.parts.load_catalog, shards_of_run
        ),
        config,
        Substitution("dataset", config.dataset, offline.DATASET),
        dataclasses.replace(config, dataset=offline.DATASET),
    )
    distribution.check_equal("data", place.directory.identity(config)[-1])
    return data


def _make_classifier(place, data, replacements):
    """Returns the `Classifier` of the settings or, offline, with the embedded weights."""
    say("loading the network")
    config = place.config

    def make(chosen: Config) -> Classifier:
        if not place.parts.make_backbone:
            backbones.reach_weights(chosen.backbone, config.image_size, chosen.weights)
        # Checked before variables are made: workers make each together, and with different networks
        # would wait forever.
        distribution.check_equal(
            "the weights that they reach", f"{chosen.weights} of {chosen.backbone}"
        )
        return Classifier(chosen, len(data.classes), place.parts)

    classifier = replacements.attempt(
        make,
        config,
        Substitution("weights", f"{config.weights} weights of {config.backbone}", offline.BACKBONE),
        dataclasses.replace(config, backbone=offline.BACKBONE),
    )
    if config.weights not in ("imagenet", "none") and weights.load_head(
        classifier.model, classifier.head, config.weights, data.classes
    ):
        print(f"--weights={config.weights}: its head is used too, since the classes are the same")
    if place.parts.make_backbone or place.parts.make_head:
        artefacts.try_saving(classifier.in_float32())
    return classifier


def _layers_named(config):
    """Returns the names of layers and blocks in --unfreeze."""
    return [what for what in config.unfreeze if what != "all" and not what.endswith("%")]


def _untrained(config, num_classes):
    return Classifier(config, num_classes, weights="none")


def _with_layers_of(classifier, config):
    """Returns `config`; if the backbone was replaced, names of layers in --unfreeze become the same
    shares of the other one's layers.
    """
    if (
        classifier.spec.name == config.backbone
        or classifier.spec.family == "own"
        or not _layers_named(config)
    ):
        return config
    asked_for = _untrained(config, classifier.num_classes)

    def share(what: str) -> str:
        return (
            what
            if what.endswith("%")
            else f"{100 * len(asked_for.unfreeze(what)) / len(asked_for.backbone.layers):.4g}%"
        )

    return dataclasses.replace(config, unfreeze=tuple(map(share, config.unfreeze)))


def _within_memory(config, data, recorded):
    """Returns `config` with --cache_bytes limited by the memory; a resumed run keeps the value that
    it began with.
    """
    if recorded or config.feature_cache not in ("auto", "memory"):
        cache_bytes = recorded.get("cache_bytes", config.cache_bytes)
    else:
        pixels, asked = data.train.pixels, config.cache_bytes
        taken = 0 if pixels is None else math.prod(pixels.shape)
        allowed = memory.allowed(asked, "--cache_bytes", asked, taken)
        cache_bytes = min(distribution.of_all_workers(allowed))
    return dataclasses.replace(config, cache_bytes=cache_bytes)


def _write_plan(place, precision, plan, substitutions, lines):
    place.directory.write_text("plan.txt", "\n".join([*lines, ""]))
    place.directory.write_json(
        "run.json",
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            **environment.record(),
            "package": {"version": __version__, "sha256": extension_lib.package_sha256()},
            "extension": place.parts.record,
            "answer": plan.objective.answer.name,
            "precision": precision,
            "xla": plan.compiler.xla,
            "feature_cache": plan_text.describe_cache(plan.cache.plan),
            "cache_bytes": plan.config.cache_bytes,
            "shards": plan.train.shards.count,
            "substitutions": list(map(dataclasses.asdict, substitutions)),
        },
    )
    if place.parts.file:
        shutil.copyfile(place.parts.file, place.directory.file("extension.py"))


def _finish(ready):
    """Reads the test images once, exports the model and writes the results; returns these."""
    plan, state, directory = ready.plan, ready.state, ready.place.directory
    memory.give_back()  # otherwise the following needs additional memory
    plan.update_evaluated()  # the network that is tested and saved
    if state.past.test is None:
        say("evaluating the test images")
        with timed(state, "evaluate"):
            _read_test(ready)
        ready.resume.save(state)  # a run that is interrupted later does not read them again
    ready.place.replicas.close()  # each process computes the rest by itself
    memory.give_back()
    say("exporting the model and comparing it with the trained network")
    with timed(state, "export"):
        artefacts.save_keras(plan.evaluated, ready.data, directory, plan.config.batch_size)
        if found := state.past.calibration:  # divides the model's logits
            directory.write_json("export/calibration.json", {"temperature": found["temperature"]})
    summary = results.without_nan(_results(ready))
    say("writing the report")
    with timed(state, "figures"):
        _illustrate(ready, summary)
    total = time.perf_counter() - plan.started
    summary["seconds"] = {"total": total, **ready.seconds, **state.past.run_seconds}
    directory.finish(summary)
    if plan.config.verbose and state.past.calibration:
        say(report.calibration_text(state.past.calibration))
    say(*results.ending(summary, directory.path, ready.earlier_seconds))
    return _report(plan.config, directory, summary)


def _read_test(ready):
    """Measures the test metrics and the effect of the temperature on the test images; called once,
    after all selection on validation.
    """
    plan, state, examples = ready.plan, ready.state, ready.data.test
    classifier = plan.evaluated
    classifier.unfreeze("0%")
    views = features.Views(plan.config.seed, 0, False)
    source = features.LiveSource(classifier, examples, classifier.boundary(), views)
    evaluate = plan.compiler.prepared(
        lambda xla: EvalStep(classifier, source, plan.config.batch_size, xla)
    )
    logits = evaluate()
    found = plan.objective.evaluate(logits, examples.labels)
    numbers = {**dict(sorted(found.items())), "n": len(examples)}
    validation = (state.weights.logits.get("selected"), plan.validation.labels)
    state.past.test = results.with_interval(numbers)
    state.past.calibration, state.past.reliability = calibration.of_run(
        plan.objective.answer, validation, (logits, examples.labels)
    )
    path = ready.place.directory.file(data_audit.FILE)
    if state.past.data_audit["data_audit"] and os.path.exists(path):
        shares = plan.objective.answer.outputs(
            metrics.scaled(logits, state.past.calibration["temperature"])
        )
        names, classes = examples.names, ready.data.classes
        data_audit.add_test(path, shares, examples.labels, names, classes)


def _illustrate(ready, summary):
    """Draws the figures, and writes the report and the last records of TensorBoard."""
    state, directory, data = ready.state, ready.place.directory, ready.data
    past, summaries, step = state.past, ready.summaries, state.position.global_step
    place = directory.file("report")
    with storage_errors(place):
        make_folders(place)
        if past.history:
            figures.save_curves(
                f"{place}/curves.png",
                past.history,
                past.finished,
                past.selected,
                (len(data.train), len(data.validation)),
            )
        if past.selected:
            logits, answer = state.weights.logits["selected"], ready.plan.objective.answer
            figures.save_mistakes(place, Evaluation(answer, logits, data.validation, data.classes))
        if past.reliability:
            figures.save_reliability(f"{place}/calibration.png", past.reliability)
    report.write(ready, summary)
    summaries.text("train", "test", results.test_line(past.test), step)
    if past.calibration:
        summaries.text("train", "calibration", report.calibration_text(past.calibration), step)
    pages.run_ends(summaries, step, report.used_settings(ready), past.selected, past.test)
    summaries.close()


def _results(ready):
    plan, past = ready.plan, ready.state.past
    return {
        "phases": past.finished,
        "selected_phase": past.selected["phase"] if past.selected else None,
        "test": past.test,
        "head_start": past.head_start,
        "time_limit": {"seconds": plan.config.time_limit, "epochs": past.time_limit}
        if plan.config.time_limit
        else None,
        **past.data_audit,
        "calibration": past.calibration,
        "classes": list(ready.data.classes),
        "substitutions": list(map(dataclasses.asdict, ready.substitutions)),
        "precision": ready.precision,
        "xla": plan.compiler.xla,
        "feature_cache": plan.cache.plan.place,
        "augment_views": plan.config.augment_views,
        "run": os.path.abspath(ready.place.directory.path),
        "extension": ready.place.parts.record,
        "seconds": {},
        "weights_sha256": audit.weights_sha256(plan.classifier.variables),
    }


def _report(config, directory, summary):
    """Prints and returns the contents of `results.json`.

    Raises:
        GateError: If the run did not reach `--min_test_accuracy`, even if it is only printed again.
    """
    say_result(summary, config.json)
    accuracy = summary["test"]["accuracy"] or 0.0  # without one, a gate was refused
    if accuracy < config.min_test_accuracy:
        raise GateError(
            f"test accuracy {accuracy:.4f}; expected at least "
            f"--min_test_accuracy={config.min_test_accuracy}; everything is in {directory.path}"
        )
    return summary
