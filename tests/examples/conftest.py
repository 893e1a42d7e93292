"""Small runs with a file of `examples/`, whole or cut off and resumed."""

import csv
import json
import os

import keras
import pytest

from tl_research import experiment
from tl_research.config import Config
from tl_research.training.events import CallEnded

EXAMPLES = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "examples"
)


class Crash(BaseException):
    """Stands for the process's sudden end."""


def _crash_at(step):
    """Returns an observer that ends a run at the first call that reaches a step."""

    def observer(event):
        if isinstance(event, CallEnded) and event.step >= step:
            raise Crash

    return observer


def _read_json(path):
    with open(path) as file:
        return json.load(file)


@pytest.fixture
def read_json():
    """A function of a path that returns what the file holds."""
    return _read_json


def _read(place):
    results = _read_json(place / "results.json")
    with open(place / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    times = ("seconds", "images_per_second")
    return results, [{key: row[key] for key in row if key not in times} for row in rows]


@pytest.fixture
def tiny_run(tiny_backbone, tiny_settings, tmp_path):
    """A function that runs the tiny backbone on 45 images of 16 px; returns (results, metrics).

    The images are not audited. Its arguments are the name of the run's directory in `tmp_path`,
    the file name of an example (or None), the steps at which the run crashes and is resumed,
    objects for `experiment.run` (`parts`, `observers`), and settings of `Config`.
    """
    ours = tiny_settings(
        tmp_path,
        epochs=(2, 2),
        learning_rate=(1e-2, 1e-3),
        checkpoint_every_steps=2,
        data_audit="off",
    )

    def run(name, example=None, crashes=(), parts=None, observers=(), **settings):
        extension = os.path.join(EXAMPLES, example) if example else None
        more = {"extension": extension, "workdir": str(tmp_path / name), **settings}
        config = Config(**{**ours, **more})
        for step in crashes:
            with pytest.raises(Crash):
                experiment.run(config, extension=parts, observers=[*observers, _crash_at(step)])
        experiment.run(config, extension=parts, observers=observers)
        return _read(tmp_path / name)

    yield run
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def assert_resumes(tiny_run, copies_at, tmp_path):
    """A function that asserts that a run cut off in both phases ends as an unbroken one, which it
    is up to the first of the steps where it is cut off.

    Returns (results, metrics) of the unbroken one; arguments are those of `tiny_run`.
    """

    def check(*args, crashes=(3, 14), observers=(), **settings):
        first, *crashes = crashes
        copying = copies_at(first, tmp_path / "unbroken", tmp_path / "broken")
        results, rows = tiny_run("unbroken", *args, observers=[*observers, copying], **settings)
        broken, broken_rows = tiny_run(
            "broken", *args, crashes=crashes, observers=observers, **settings
        )
        assert broken["weights_sha256"] == results["weights_sha256"]
        assert broken_rows == rows
        return results, rows

    return check
