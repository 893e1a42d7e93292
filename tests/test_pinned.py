"""What tiny runs in six forms did when this was recorded: the code may be rewritten, this may not
change.

Each form has a file `golden/pinned/<form>.json`: the SHA-256 of the final weights, `metrics.csv`
without times, the keys of `results.json`, what was printed, and which tags TensorBoard has at which
steps. The run in `golden/pinned/interrupted` has the settings of the form `cached` and was ended by
a signal in the middle of an epoch of its second phase; whatever the code is then, it must go on
with it and end as the unbroken run did.

The last bits of floating-point numbers depend on the processor and on the libraries. So each file
has the SHA-256 of a computation that is not ours, `arithmetic`. Where it comes out the same,
weights and metrics are compared bit for bit; where it does not, metrics must be close and weights
are not compared. All else must be equal everywhere.

To record again:

    TL_RESEARCH_RECORD=1 python -m pytest tests/test_pinned.py

It writes the files of the forms anew, from the code as it is. Do so when what a run computes,
prints or writes is meant to change, or when a new version of a library changes the last bits; look
at the difference before it is committed, and say in the commit why it is right. The interrupted run
is not written again: it stands for all runs that older code left unfinished.
"""

import csv
import functools
import glob
import hashlib
import json
import os
import re
import shutil

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research import experiment
from tl_research.config import Config

_GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "pinned")
_RECORD = os.environ.get("TL_RESEARCH_RECORD") == "1"
_TIMES = ("seconds", "images_per_second")
_SIDES = ("train", "validation")

_COMMON = {
    "dataset": "directory",
    "backbone": "Tiny",
    "weights": "none",
    "image_size": 16,
    "batch_size": 8,
    "split": (0.75, 0.125, 0.125),
    "epochs": (2, 2),
    "unfreeze": ("0%", "block3"),
    "learning_rate": (0.1, 3e-2),
    "lr_schedule": "constant",
    "warmup": 0,
    "label_smoothing": 0,
    "augment": ("flip", "rotation=0.1"),
    "augment_views": 2,
    "precision": "float32",
    "xla": "off",
    "data_audit": "off",
    "verbose": True,
}
_FORMS = {
    "cached": {"feature_cache": "memory", "checkpoint_every_steps": 2, "data_audit": "on"},
    "live": {"feature_cache": "off", "augment_views": 0},
    "streamed": {"feature_cache": "off", "cache_pixels": 0},
    "float16": {"precision": "mixed_float16"},
    "mixup": {"mixup": 0.4},
    "ema": {"ema_decay": 0.9, "class_weights": "balanced"},
}


# The runs.


@pytest.fixture
def photos(tmp_path):
    """A directory of 16 BMP files in each of three classes.

    Their bytes, which decide the split, do not depend on a library that compresses.
    """
    for label, name in enumerate(("ant", "bee", "cat")):
        os.makedirs(tmp_path / "photos" / name)
        for i in range(16):
            draw = np.random.RandomState(1000 * label + i)
            pixels = draw.randint(0, 140, (20, 20, 3)).astype(np.uint8)
            pixels[5:, :, label] += 110
            PIL.Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i:02d}.bmp")
    return str(tmp_path / "photos")


@pytest.fixture
def run(tiny_backbone, photos, tmp_path, capsys):
    """A function of a form's name that runs it in `run`; returns (what it did, its stderr)."""

    def run(form):
        settings = {**_COMMON, **_FORMS[form]}
        experiment.run(Config(data_dir=photos, workdir=str(tmp_path / "run"), **settings))
        said = capsys.readouterr()
        return _what_it_did(tmp_path / "run", said.out, str(tmp_path)), said.err

    yield run
    keras.config.set_dtype_policy("float32")


def _what_it_did(path, stdout, place):
    """Returns what is pinned of the finished run in a directory, as a JSON value."""
    with open(path / "results.json") as file:
        results = json.load(file)
    with open(path / "metrics.csv") as file:
        rows = [
            {name: value for name, value in row.items() if name not in _TIMES}
            for row in csv.DictReader(file)
        ]
    return {
        "weights_sha256": results["weights_sha256"],
        "metrics": rows,
        "results_keys": _keys(results),
        "lines": [_without_times(line, place) for line in stdout.splitlines()],
        "tensorboard": {side: _steps_of_tags(path, side) for side in _SIDES},
    }


def _keys(value):
    """Returns the keys of dicts, in their order, with those inside them; None for what has none."""
    if isinstance(value, dict):
        return {key: _keys(item) for key, item in value.items()}
    if isinstance(value, list):
        inside = [_keys(item) for item in value]
        return inside if any(inside) else None
    return None


def _without_times(line, place):
    """Returns a printed line without what differs from run to run or from machine to machine."""
    line = re.sub(r"^RESULT .*", "RESULT <results>", line)
    line = re.sub(r"^device: .*", "device: <device>", line)
    line = re.sub(r"^\d+\.\d% of the training time", "<share> of the training time", line)
    line = line.replace(os.path.realpath(place), "<place>").replace(place, "<place>")
    line = re.sub(r"^  \D.*", "  <command>", line)
    line = re.sub(r"^(time: .*) \(.*\)$", r"\1 (<parts of it>)", line)
    return re.sub(r"( >)? +\d+(\.\d)? (s|min)\b", r"\1 <time>", re.sub(" +> ", " > ", line))


def _steps_of_tags(path, side):
    """Returns {tag: its steps} of the event files of one side."""
    found = {}
    for file in sorted(glob.glob(os.path.join(path, side, "*tfevents*"))):
        for record in tf.data.TFRecordDataset(file):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return dict(sorted(found.items()))


# The machine's arithmetic.


@functools.cache
def _arithmetic():
    """Returns the SHA-256 of what this machine computes from fixed numbers, none of it by our code.

    Its parts are those of a run, at the sizes of one: convolutions and their gradients in both
    precisions, functions of TensorFlow, of its compiler and of NumPy.
    """
    digest = hashlib.sha256()
    draw = np.random.RandomState(0)
    images, kernel = draw.uniform(-1, 1, (8, 16, 16, 3)), draw.uniform(-1, 1, (3, 3, 3, 8))
    depthwise, dense = draw.uniform(-1, 1, (3, 3, 8, 1)), draw.uniform(-1, 1, (8, 3))
    for dtype in (tf.float32, tf.float16):
        arrays = [tf.constant(array, dtype) for array in (images, kernel, depthwise, dense)]
        for value in _network(*arrays):
            digest.update(value.numpy().tobytes())
    for value in _compiled(tf.constant(images, tf.float32)):
        digest.update(value.numpy().tobytes())
    for dtype in (np.float32, np.float64):
        exponentials = np.exp(images.astype(dtype))
        for value in (exponentials, np.log(exponentials.sum(axis=3)), exponentials.mean(axis=0)):
            digest.update(value.tobytes())
    shares = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, 3, 1])))
    digest.update(shares.beta(0.4, 0.4, 100).astype(np.float32).tobytes())
    return digest.hexdigest()


@tf.function
def _network(images, kernel, depthwise, dense):
    """Returns a small network's output and gradients, and what Adam would do with one of them."""
    with tf.GradientTape() as tape:
        tape.watch((images, kernel, depthwise, dense))
        hidden = tf.nn.relu(tf.nn.conv2d(images, kernel, 2, "SAME"))
        hidden = tf.nn.depthwise_conv2d(hidden, depthwise, [1, 1, 1, 1], "SAME")
        logits = tf.matmul(tf.reduce_mean(hidden, axis=(1, 2)), dense)
        loss = tf.reduce_mean(tf.square(tf.nn.softmax(logits)) + tf.exp(-logits))
    gradients = tape.gradient(loss, (images, kernel, depthwise, dense))
    moved = gradients[1] / (tf.sqrt(0.001 * tf.square(gradients[1])) + tf.cast(0.001, images.dtype))
    return (logits, tf.nn.log_softmax(logits), loss, *gradients, moved)


@tf.function(jit_compile=True)
def _compiled(images):
    """Returns sums, products and angles in the compiler's order."""
    angles = 0.3 * images + 0.7
    mixed = images + (tf.cos(angles) - images) * tf.sin(angles)
    return mixed, tf.reduce_sum(mixed, axis=(1, 2))


# The comparison.


def _golden(name):
    with open(os.path.join(_GOLDEN, f"{name}.json")) as file:
        return json.load(file)


def _assert_same_numbers(received, recorded, exact):
    """Compares weights and metrics: bit for bit, or, where the arithmetic is another, nearly."""
    if exact:
        assert received["weights_sha256"] == recorded["weights_sha256"]
        assert received["metrics"] == recorded["metrics"]
        return
    (counts,) = filter(
        None, (re.search(r"\(train (\d+), .*\)", line) for line in recorded["lines"])
    )
    images = dict(part.split() for part in counts.group()[1:-1].split(", "))
    slack = {
        "train_accuracy": 1 / int(images["train"]),
        "val_accuracy": 1 / int(images["validation"]),
    }
    assert len(received["metrics"]) == len(recorded["metrics"])
    for row, expected in zip(received["metrics"], recorded["metrics"]):
        assert list(row) == list(expected)
        assert row.pop("phase") == expected.pop("phase")
        for name, value in row.items():
            wanted = pytest.approx(float(expected[name]), rel=1e-3, abs=slack.get(name, 0) + 1e-9)
            assert float(value) == wanted, name


def _without_decimals(line):
    """Returns a printed line without the numbers that hang on the last bits."""
    return re.sub(r"\(\d+/(\d+)\)", r"(<hits>/\1)", re.sub(r"\d+\.\d+|\d+e-\d+", "<number>", line))


@pytest.mark.parametrize("form", _FORMS)
def test_run_does_what_was_recorded(form, run):
    received, _ = run(form)
    if _RECORD:
        with open(os.path.join(_GOLDEN, f"{form}.json"), "w") as file:
            json.dump({"arithmetic": _arithmetic(), **received}, file, indent=1)
            file.write("\n")
    recorded = _golden(form)
    exact = recorded["arithmetic"] == _arithmetic()
    _assert_same_numbers(received, recorded, exact)
    lines, expected = received["lines"], recorded["lines"]
    if not exact:
        lines, expected = (
            list(map(_without_decimals, lines)),
            list(map(_without_decimals, expected)),
        )
    assert lines == expected
    assert json.dumps(received["results_keys"]) == json.dumps(recorded["results_keys"])  # in order
    assert received["tensorboard"] == recorded["tensorboard"]


def test_run_that_older_code_left_unfinished_ends_as_the_unbroken_one(run, tmp_path):
    """It goes on in mid-epoch of the second phase, with its images in another place."""
    shutil.copytree(os.path.join(_GOLDEN, "interrupted"), tmp_path / "run")
    recorded, interrupted = _golden("cached"), _golden("interrupted")
    received, stderr = run("cached")
    assert f"resumed {interrupted['position']}\n" in stderr
    exact = recorded["arithmetic"] == interrupted["arithmetic"] == _arithmetic()
    _assert_same_numbers(received, recorded, exact)
    # the audit of the images is the one that the older code made
    del recorded["results_keys"]["cross_validation"]["validation_accuracy"]
    assert json.dumps(received["results_keys"]) == json.dumps(recorded["results_keys"])
