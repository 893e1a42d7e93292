"""Small runs for the tests of the loop: alone on images in memory, or the whole experiment, broken
off where a test says and compared with an unbroken one.
"""

import csv
import dataclasses
import glob
import json
import os
import re
import shutil
import signal as signals
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research import experiment
from tl_research.config import Config
from tl_research.data.dataset import Dataset
from tl_research.errors import Interrupted
from tl_research.extension import Extension
from tl_research.models.classifier import Classifier
from tl_research.reporting.console import Console
from tl_research.reporting.recorder import Recorder
from tl_research.reporting.summaries import Summaries
from tl_research.run.directory import RunDirectory
from tl_research.signals import Signals
from tl_research.training import loop, objective
from tl_research.training.events import CallEnded, EpochEnded
from tl_research.training.plan import Plan
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState


class _Crash(BaseException):
    """Stands for the process's sudden end."""


@pytest.fixture
def float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


# The loop alone.


class _Scripted(objective.CrossEntropy):
    """Gives the validation loss that was written down for each epoch, and the same again for the
    same weights.
    """

    def __init__(self, losses, accuracies):
        super().__init__()
        self._losses, self._accuracies, self._seen = list(losses), list(accuracies), {}

    def evaluate(self, logits, labels):
        count = len(self._seen)
        return self._seen.setdefault(
            logits.tobytes(),
            {
                "loss": self._losses[min(count, len(self._losses) - 1)],
                "accuracy": ([*self._accuracies, 0.5, 0.5] * 9)[count],
            },
        )


@pytest.fixture
def train(tiny_backbone, make_examples, tmp_path):
    """A function that trains the tiny classifier on 10 images.

    Returns (what it trained: plan, state, classifier, directory; weights after each epoch). Its
    arguments are the validation losses and accuracies of the epochs, if they are written down;
    functions of the classifier, before the first step, and of (classifier, event), as an observer;
    parts of an `Extension`; and settings of `Config`.
    """

    def train(
        val_losses=None,
        accuracies=(),
        *,
        change=lambda classifier: None,
        watch=lambda classifier, event: None,
        parts=None,
        **settings,
    ):
        settings = {
            "epochs": (2, 2),
            "unfreeze": ("0%", "block3"),
            "learning_rate": (1e-2, 1e-3),
            "batch_size": 4,
            "image_size": 16,
            "patience": 0,
            "augment": "none",
            "feature_cache": "off",
            **settings,
        }
        config = Config(
            dataset="drawn_flowers",
            backbone="Tiny",
            workdir=str(tmp_path / "run"),
            resume="never",
            **settings,
        )
        parts = dict(parts or {})
        if val_losses is not None:
            script = _Scripted(val_losses, accuracies)
            parts["make_objective"] = lambda config, train: script
        classifier = Classifier(dataclasses.replace(config, weights="none"), 3)
        change(classifier)
        validation = make_examples(5, seed=1)
        data = Dataset(("0", "1", "2"), make_examples(10), validation, validation, ())
        epochs = []

        def observe(event):
            if isinstance(event, EpochEnded):
                values = classifier.variables.items()
                epochs.append({path: variable.numpy() for path, variable in values})
            watch(classifier, event)

        with RunDirectory(config) as directory:
            started = time.perf_counter()
            own = Extension(**parts)
            plan = Plan(config, own, classifier, data, directory, xla=False, started=started)
            state, summaries = TrainState(), Summaries(directory.path, -1)
            recorder = Recorder(plan.objective.answer, data, directory, summaries)
            resume = Resume(plan, directory, Signals())
            loop.fit(plan, state, resume=resume, observers=[recorder, Console(config), observe])
            summaries.close()
        trained = types.SimpleNamespace(
            plan=plan, state=state, classifier=classifier, directory=directory
        )
        return trained, epochs

    return train


@pytest.fixture
def assert_weights():
    """A function that asserts that a classifier has exactly some weights, {path: array}."""

    def check(classifier, expected):
        for path, value in expected.items():
            np.testing.assert_array_equal(classifier.variables[path].numpy(), value, err_msg=path)

    return check


# The whole experiment: 39 training images in batches of 8 are 5 steps an epoch.


@pytest.fixture(scope="session")
def settings_of_all(tiny_settings, tmp_path_factory):
    """Settings of `run`, on 15 images in each of three classes."""
    return tiny_settings(
        tmp_path_factory.mktemp("training"),
        epochs=(2, 2),
        learning_rate=(1e-2, 1e-3),
        augment_views=0,
        data_audit="off",
    )


@pytest.fixture
def run(tiny_backbone, settings_of_all, copies_at, tmp_path):
    """A function of (name of a directory in `tmp_path`, settings) that runs the experiment with two
    phases of two epochs, its images not audited; returns its results.

    `parts` is an `Extension`; `copies` is {name: step} of directories that a sudden end of the
    process at that step, before what follows is saved, would leave.
    """

    def run(name, *, observers=(), parts=None, copies=types.MappingProxyType({}), **settings):
        settings = {**settings_of_all, **settings, "workdir": str(tmp_path / name)}
        observers = list(observers)
        for copy, step in copies.items():
            observers.append(copies_at(step, tmp_path / name, tmp_path / copy))
        experiment.run(Config(**settings), extension=parts, observers=observers)
        with open(tmp_path / name / "results.json") as file:
            return json.load(file)

    yield run
    keras.config.set_dtype_policy("float32")


def _crash(*_, **__):
    raise _Crash


@pytest.fixture
def crash():
    """A function of anything that stands for the process's sudden end."""
    return _crash


@pytest.fixture
def crashed(run):
    """A function that runs and is ended by the `crash` that a test has put in its way."""

    def crashed(*args, **settings):
        with pytest.raises(_Crash):
            run(*args, **settings)

    return crashed


@pytest.fixture
def broken(run):
    """A function that runs until a global step, or the end of an epoch, and breaks off there.

    Before what follows is saved, by a crash or, if one is given, by a signal; then it returns the
    error that ended the run.
    """

    def broken(*args, step=None, epoch=None, signal=None, **settings):
        def observe(event):
            at_step = isinstance(event, CallEnded) and event.step == step
            if at_step or isinstance(event, EpochEnded) and event.row["epoch"] == epoch:
                signals.raise_signal(signal) if signal else _crash()

        with pytest.raises(Interrupted if signal else _Crash) as error:
            run(*args, observers=[observe], **settings)
        return error.value

    return broken


# What several tests begin with, which is made for the first of them and copied for the others.


@pytest.fixture(scope="session")
def _kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept"), []


@pytest.fixture
def _copied(_kept, tmp_path):
    """A function that makes a directory in `tmp_path`, by its name, what made it, and how."""

    def copied(name, what, make):
        place, known = _kept
        if what not in known:
            make()
            shutil.copytree(tmp_path / name, place / str(len(known)))
            known.append(what)
        else:
            shutil.copytree(place / str(known.index(what)), tmp_path / name)

    return copied


@pytest.fixture
def unbroken(run, _copied, tmp_path):
    """A function of settings to the results of a run with them, in `unbroken` or another name."""

    def unbroken(name="unbroken", **settings):
        _copied(name, settings, lambda: run(name, **settings))
        path = tmp_path / name / "results.json"
        results = {**json.loads(path.read_text()), "run": str(path.parent)}
        path.write_text(json.dumps(results))
        return results

    return unbroken


@pytest.fixture
def begun(broken, _copied):
    """Makes a run in `run` that was broken off in mid-epoch, at step 9."""
    _copied("run", "begun", lambda: broken("run", step=9))


# What a run leaves.


def _without_times(value):
    if isinstance(value, dict):
        return {
            key: _without_times(item)
            for key, item in value.items()
            if key not in ("seconds", "compile_seconds", "images_per_second")
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _metrics(name):
    with open(os.path.join(name, "metrics.csv")) as file:
        return [_without_times(row) for row in csv.DictReader(file)]


def _events(name, side):
    found = {}
    # In the order they were made: those of one second differ in a counter, where 10 follows 9.
    files = glob.glob(os.path.join(name, side, "*tfevents*"))
    for file in sorted(files, key=lambda file: list(map(int, re.findall(r"\d+", file)))):
        for record in tf.data.TFRecordDataset(file):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                number = tf.make_ndarray(value.tensor)
                is_scalar = number.dtype == np.float32 and number.shape == ()
                found.setdefault(value.tag, []).append(
                    (event.step, float(number) if is_scalar else None)
                )
    return found


@pytest.fixture
def metrics(tmp_path):
    """A function of a run's name to the rows of its `metrics.csv`, without times."""
    return lambda name: _metrics(tmp_path / name)


@pytest.fixture
def events(tmp_path):
    """A function of a run's name and a side to {tag: [(step, value or None)]} of its event
    files.
    """
    return lambda name, side: _events(tmp_path / name, side)


@pytest.fixture
def assert_equal_runs(tmp_path):
    """A function of two runs' names that asserts that all but times is equal in what they left."""

    def check(first, second):
        found = []
        for name in (first, second):
            found.append(json.loads((tmp_path / name / "results.json").read_text()))
            assert found[-1].pop("run") == str(tmp_path / name)
        one, other = found
        assert _without_times(one) == _without_times(other)
        assert one["weights_sha256"] == other["weights_sha256"] and one["selected_phase"]
        assert _metrics(tmp_path / first) == _metrics(tmp_path / second)
        for side in ("train", "validation"):
            expected, received = (_events(tmp_path / name, side) for name in (first, second))
            for tag in ("images_per_second", "waiting_for_data"):
                expected.pop(tag, None)
                received.pop(tag, None)
            assert received == expected
            for tag, records in received.items():
                assert len({step for step, _ in records}) == len(records), tag

    return check
