"""One run from settings to results: data, classifier, phases, one test number, export.

Reads as a table of contents.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import keras
import numpy as np
import tensorflow as tf

from tl_research import artefacts, distribution
from tl_research.data import dataset
from tl_research.errors import CheckpointError, GateError, UnreachableError, UserError
from tl_research.files import storage_errors
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.reporting import figures, pages, results
from tl_research.reporting.summaries import Summaries
from tl_research.signals import Signals
from tl_research.training import audit, features
from tl_research.training.loop import Trainer
from tl_research.training.run_directory import RunDirectory, resume_command
from tl_research.training.steps import EvalStep, memory_errors

_OFFLINE_BACKBONE = "EfficientNetLite0"  # its ImageNet weights come in a package


def run(config, *, started=None, trainer_class=Trainer):
    """Runs, or resumes, the experiment that `config` describes, and returns the contents of its
    `results.json`.

    Args:
        config: `tl_research.config.Config`.
        started: `time.perf_counter()` when the program began; now, if it is not given.
        trainer_class: `Trainer` or a subclass.

    Raises:
        UserError: Or one of its kinds, see `tl_research.errors`: whatever the user can put right.
    """
    started = time.perf_counter() if started is None else started
    if config.seeds:
        raise UserError(
            f"--seeds={','.join(map(str, config.seeds))} where one run is made; expected --seed; "
            "use train.py for several"
        )
    backbones.get_spec(config.backbone)  # a misspelt name should not wait for the data
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    with (
        distribution.replicas(config) as scope,
        _open_directory(config) as directory,
        Signals(resume_command(config.workdir or directory.path, trainer_class.program)) as signals,
        memory_errors(config, "the run"),
    ):
        if directory.results:
            print(f"{directory.path} is finished", file=sys.stderr)
            return _report(config, directory, directory.results)
        print(f"run directory: {os.path.realpath(directory.path)}", flush=True)
        precision, xla = resolve_device(config, directory.read_json("run.json") or {})
        distribution.check_equal("precision and XLA", f"{precision}, {xla}")
        data, classifier, substitutions = _load(config, directory)
        config = _with_layers_of(classifier, config)
        seconds = {"data": time.perf_counter() - started}
        trainer = trainer_class(
            config,
            classifier,
            data.train,
            data.validation,
            directory,
            xla=xla,
            signals=signals,
            classes=data.classes,
        )
        plan = _plan(config, data, classifier, trainer, precision, substitutions)
        print(plan, flush=True)
        restored = trainer.restore()
        state = trainer.state
        distribution.check_equal("checkpoint", f"step {state.global_step}", CheckpointError)
        summaries = Summaries(directory.path, state.global_step if restored else None)
        if restored:
            _warn_of_other_versions(directory.read_json("run.json") or {})
            phase = config.phase_plan[state.phase_index]
            epoch = state.epoch + (not state.phase_over(phase))
            print(
                f"resumed phase {phase.name}, epoch {epoch}, step {state.global_step}",
                file=sys.stderr,
            )
        else:
            _write_run_json(directory, precision, trainer, substitutions)
            summaries.text("train", "plan", "\n\n".join(plan.splitlines()), 0)
        trainer.run(summaries)
        final = classifier.in_float32()  # what is saved, and so what the test number is of
        if state.test is None:
            state.test = _test(config, final, data.test, trainer)
            trainer.save()  # from here on an interruption does not read the test images again
        test = state.test
        scope.close()  # what is left computes in each process for itself
        artefacts.save_keras(final, data, directory)
        summary = _results(config, trainer, data, test, substitutions, precision)
        _illustrate(config, directory, data, trainer, summaries)
        summary["seconds"] = {
            "total": time.perf_counter() - started,
            **seconds,
            **state.run_seconds,
        }
        summary = results.without_nan(summary)
        directory.write_json("results.json", summary)
        for substitution in substitutions:
            print(f"note: {substitution}", flush=True)
        print(
            f"test accuracy {test['accuracy']:.4f} "
            f"({round(test['accuracy'] * test['n'])}/{test['n']}), 95% interval "
            f"{test['ci95'][0]:.3f}-{test['ci95'][1]:.3f}, loss {test['loss']:.4f}; read once, "
            "after selection",
            flush=True,
        )
        return _report(config, directory, summary)


@contextlib.contextmanager
def _open_directory(config):
    """Yields the open run directory.

    In a worker that is not the chief a copy, which nobody sees, with nothing printed.
    """
    if distribution.is_chief():
        with RunDirectory(config) as directory:
            distribution.of_all_workers(0)  # it is as the others may copy it
            distribution.of_all_workers(0)  # and they have
            yield directory
        return
    with (
        tempfile.TemporaryDirectory() as place,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        distribution.of_all_workers(0)
        with storage_errors(config.workdir):
            for name in ("flags.txt", "run.json", "split.json", "results.json"):
                if os.path.exists(os.path.join(config.workdir, name)):
                    shutil.copy(os.path.join(config.workdir, name), place)
            if os.path.exists(os.path.join(config.workdir, "checkpoints")):
                shutil.copytree(
                    os.path.join(config.workdir, "checkpoints"), os.path.join(place, "checkpoints")
                )
        distribution.of_all_workers(0)
        with RunDirectory(dataclasses.replace(config, workdir=place, resume="auto")) as directory:
            yield directory


def resolve_device(config, recorded):
    """Sets Keras' dtype policy.

    Returns (precision, whether XLA is on) as resolved for this machine.

    Args:
        config: `Config`.
        recorded: Contents of `run.json`: a resumed run goes on with what it began with.
    """
    gpus = tf.config.list_physical_devices("GPU")
    precision = recorded.get("precision", config.precision)
    if precision == "auto":
        capability = (
            tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
            if gpus
            else None
        )
        precision = (
            "float32" if not gpus else "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"
        )
    if precision == "mixed_float16" and config.batchnorm == "training":
        raise UserError(
            "--batchnorm=training in mixed_float16, where a skipped step would move statistics; "
            "expected another precision; use --precision=float32"
        )
    keras.config.set_dtype_policy(precision)
    return precision, recorded.get(
        "xla", bool(gpus) if config.xla == "auto" else config.xla == "on"
    )


def _load(config, directory):
    """Returns (data, classifier, substitutions): what was asked for or, offline, is embedded."""
    recorded = (directory.read_json("run.json") or {}).get("substitutions")
    substitutions = []

    def attempt(make, replacement, what):
        """Returns make(config), or make of the embedded replacement where that cannot be reached
        and may be replaced.
        """
        if recorded is not None:  # a resumed run uses what it began with
            return make(replacement if any(line.startswith(what) for line in recorded) else config)
        try:
            return make(config)
        except UnreachableError as error:
            if config.if_offline != "embedded":
                raise
            substitutions.append(
                f"{what} could not be reached; used {_replaced(config, replacement)} instead"
            )
            print(f"note: {substitutions[-1]} ({error})", file=sys.stderr, flush=True)
            return make(replacement)

    data = attempt(
        lambda chosen: dataset.load(chosen, directory),
        dataclasses.replace(config, dataset="drawn_flowers"),
        f"data set {config.dataset}",
    )
    distribution.check_equal("data", directory.identity(config)[-1])

    def make_classifier(chosen):
        backbones.reach_weights(chosen.backbone, config.image_size, chosen.weights)
        # Said before variables are made: workers make each together, and would wait for ever for
        # one of another network.
        distribution.check_equal(
            "the weights that they reach", f"{chosen.weights} of {chosen.backbone}"
        )
        return Classifier(
            chosen.backbone,
            chosen.weights,
            config.image_size,
            len(data.classes),
            augmentation=config.augmentation,
            dropout=config.dropout,
            seed=config.seed,
            fold=config.fold_batchnorm == "on",
            batchnorm=config.batchnorm,
            preprocessing=config.preprocessing,
        )

    classifier = attempt(
        make_classifier,
        dataclasses.replace(config, backbone=_OFFLINE_BACKBONE),
        f"{config.weights} weights of {config.backbone}",
    )
    return data, classifier, recorded if recorded is not None else substitutions


def _with_layers_of(classifier, config):
    """Returns `config` with what --unfreeze names of a backbone that was replaced as the same share
    of the other one's layers.
    """
    if classifier.spec.name == config.backbone or all(
        what == "all" or what.endswith("%") for what in config.unfreeze
    ):
        return config
    asked_for = Classifier(config.backbone, "none", config.image_size, classifier.num_classes)

    def share(what):
        return (
            what
            if what.endswith("%")
            else f"{100 * len(asked_for.unfreeze(what)) / len(asked_for.backbone.layers):.4g}%"
        )

    return dataclasses.replace(config, unfreeze=tuple(map(share, config.unfreeze)))


def _replaced(config, replacement):
    if replacement.dataset != config.dataset:
        return replacement.dataset
    return f"{replacement.backbone} with its packaged ImageNet weights"


def _plan(config, data, classifier, trainer, precision, substitutions):
    """Returns the text that says what will be done, before it is done.

    Raises:
        UserError: If a phase or a pattern names what is not there.
    """
    trainer.check_plan()
    counts = ", ".join(
        f"{side} {len(getattr(data, side))}" for side in ("train", "validation", "test")
    )
    gpus = len(tf.config.list_physical_devices("GPU"))
    total = len(data.train) + len(data.validation) + len(data.test)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    lines = [
        f"device: {f'{gpus} GPU' if gpus else f'{os.cpu_count()} CPU cores, no GPU'}",
        *(
            [
                (
                    f"distribute: {config.distribute}: {replicas} replica{'s' * (replicas > 1)}, "
                    f"{config.batch_size // replicas} images of each batch on each"
                )
            ]
            if config.distribute != "off"
            else ()
        ),
        f"data: {total} images in {len(data.classes)} classes ({counts}) at {config.image_size} px",
        *(f"data: {line}" for line in data.notes),
        (
            f"model: {classifier.spec.name}, weights {config.weights}, "
            f"{classifier.graph.num_folded} BatchNorm layers folded; precision {precision}, XLA "
            f"{'on' if trainer.xla else 'off'}"
        ),
        trainer.cache.plan,
        *trainer.unusual_plan,
        *(f"substitution: {line}" for line in substitutions),
    ]
    for phase in config.phase_plan:
        stop = (
            f"early stop after {phase.patience} without a lower val_loss"
            if phase.patience
            else "no early stop"
        )
        lines.append(
            f"plan: {phase.name}: up to {phase.epochs} epochs, unfreeze {phase.unfreeze}, "
            f"{config.optimizer} {phase.learning_rate:g} {phase.lr_schedule}, {stop}"
        )
    return "\n".join(lines)


def _versions():
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _machine():
    # a worker has its own first
    devices = sorted(device.name for device in tf.config.list_logical_devices())
    return {"system": platform.platform(), "cores": os.cpu_count(), "devices": devices}


def _warn_of_other_versions(recorded):
    """Says so if a resumed run began with other versions or on another machine."""
    before = {**recorded.get("versions", {}), **recorded.get("machine", {})}
    different = [
        f"{name} {before[name]}, now {value}"
        for name, value in {**_versions(), **_machine()}.items()
        if before.get(name, value) != value
    ]
    if different:
        print(
            f"warning: the run began with {'; '.join(different)}; what follows need not equal an "
            "unbroken run",
            file=sys.stderr,
        )


def _write_run_json(directory, precision, trainer, substitutions):
    directory.write_json(
        "run.json",
        {
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": _versions(),
            "machine": _machine(),
            "precision": precision,
            "xla": trainer.xla,
            "feature_cache": trainer.cache.plan,
            "substitutions": substitutions,
        },
    )


def _test(config, classifier, examples, trainer):
    """Returns the test metrics; called once, after everything was selected on validation."""
    classifier.unfreeze("0%")
    source = features.LiveSource(
        classifier, examples, classifier.boundary(), features.Views(config.seed, 0, False)
    )
    logits = trainer.prepared(
        lambda: EvalStep(classifier, source, config.batch_size, trainer.xla)
    )()
    loss, accuracy = results.loss_and_accuracy(logits, examples.labels)
    interval = results.wilson_interval(round(accuracy * len(examples)), len(examples))
    return {
        "accuracy": accuracy,
        "loss": loss,
        "n": len(examples),
        "ci95": list(interval),
        "reads": 1,
    }


def _illustrate(config, directory, data, trainer, summaries):
    """Draws the figures of `report/`, and ends what TensorBoard shows."""
    state = trainer.state
    with storage_errors(directory.file("report")):
        os.makedirs(directory.file("report"), exist_ok=True)
        if state.history:
            figures.save_curves(directory.file("report", "curves.png"), state.history)
            figures.save_mistakes(
                directory.file("report"), trainer.selected_logits, data.validation, data.classes
            )
    summaries.text(
        "train",
        "test",
        f"accuracy {state.test['accuracy']:.4f} of {state.test['n']} images",
        state.global_step,
    )
    pages.run_ends(summaries, state.global_step, config, state.selected, state.test)
    summaries.close()


def _results(config, trainer, data, test, substitutions, precision):
    state = trainer.state
    return {
        "phases": state.finished,
        "selected_phase": state.selected["phase"] if state.selected else None,
        "test": test,
        "classes": list(data.classes),
        "substitutions": substitutions,
        "precision": precision,
        "xla": trainer.xla,
        "feature_cache": trainer.cache.in_use,
        "augment_views": config.augment_views,
        "seconds": {},
        "weights_sha256": audit.weights_sha256(trainer.classifier.variables),
    }


def _report(config, directory, summary):
    """Prints and returns the contents of `results.json`, of this process or of an earlier one.

    Raises:
        GateError: If the run did not reach `--min_test_accuracy`: also when it is only printed
            again.
    """
    print("RESULT " + json.dumps(summary, allow_nan=False), flush=True)
    accuracy = summary["test"]["accuracy"]
    if accuracy < config.min_test_accuracy:
        raise GateError(
            f"test accuracy {accuracy:.4f}; expected at least "
            f"--min_test_accuracy={config.min_test_accuracy}; everything is in {directory.path}"
        )
    return summary
