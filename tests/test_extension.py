"""A file of one's own: how it is read, what is refused, and that a run belongs to it."""

import hashlib
import json
import os
import shutil

import pytest

from tl_research import experiment, extension
from tl_research.config import Config
from tl_research.data.mixing import MixUp
from tl_research.errors import CheckpointError, UserError
from tl_research.training.compiler import needs_autograph
from tl_research.training.events import EpochEnded
from tl_research.training.objective import CrossEntropy

DOUBLED = """
from tl_research.training.objective import CrossEntropy

SCALE = 2.0


class _Doubled(CrossEntropy):
    def loss(self, logits, labels):
        return SCALE * super().loss(logits, labels)


def make_objective(config, train):
    return _Doubled(config.label_smoothing)
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a file and returns its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def settings(tiny_backbone, tiny_settings, tmp_path):
    """Settings of a run of 2 + 1 epochs of 5 steps, in a directory that a test names."""
    settings = tiny_settings(tmp_path, epochs=(2, 1), learning_rate=(1e-2, 1e-3))
    return {name: value for name, value in settings.items() if name != "workdir"}


def test_parts_are_read_with_the_hash_of_the_file(write):
    path = write(DOUBLED)
    parts = extension.load(path)
    assert list(parts.parts()) == ["make_objective"]
    sha256 = hashlib.sha256(DOUBLED.encode()).hexdigest()
    assert parts.record == {"file": path, "sha256": sha256, "parts": ["make_objective"]}
    assert extension.load(None).parts() == {} and extension.load(None).record is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("def make_objectiv(config, train):\n    pass", "did you mean make_objective"),
        ("class Focal:\n    pass", "defines Focal, which is no part of a run"),
        ("augmentation = {}\n", "defines augmentation, .*; did you mean augmentations"),
        ("def make_objective(:\n", "line 1: "),
        ("X = 1\nY = 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("def _make_objective(config, train):\n    pass\n", "defines no part of a run"),
        ("make_objective = 3\n", "make_objective is 3; expected a function"),
        ("Step = lambda *args: None\n", "Step is .*; expected a subclass of TrainStep"),
    ],
)
def test_file_that_cannot_be_used_is_named_in_one_line(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        extension.load(write(text))
    assert error.value.exit_code == 1 and "\n" not in str(error.value)


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="--extension=.*nothing.py cannot be read"):
        extension.load(str(tmp_path / "nothing.py"))


def test_imports_helpers_and_constants_are_no_parts(write):
    path = write(
        "import os\nfrom math import pi\nA_CONSTANT = 1\n\ndef _helper():\n    pass\n\n"
        "def epoch_ends(run, row, logits):\n    return {}\n"
    )
    assert list(extension.load(path).parts()) == ["epoch_ends"]


def test_objects_from_python_have_the_hash_of_their_sources():
    def epoch_ends(run, row, logits):
        return {"one": 1.0}

    def other(run, row, logits):
        return {"two": 2.0}

    first = extension.Extension(epoch_ends=epoch_ends)
    assert first.sha256 == extension.Extension(epoch_ends=epoch_ends).sha256 is not None
    assert first.sha256 != extension.Extension(epoch_ends=other).sha256 and first.file is None

    def scaled(by):
        return lambda run, row, logits: {"one": by * 1.0}

    assert (
        extension.Extension(epoch_ends=scaled(1)).sha256
        != extension.Extension(epoch_ends=scaled(2)).sha256
    )
    unseen = eval("lambda run, row, logits: {}")  # nobody can read its source again
    with pytest.raises(UserError, match="the source of epoch_ends cannot be read"):
        extension.Extension(epoch_ends=unseen)


def test_flag_files_may_not_name_a_file_and_the_command_line_may(run_train, write, tmp_path):
    path = write("def make_objectiv(config, train):\n    pass\n")
    flags = write(f"--extension={path}\n", "flags")
    (refused, _, said), (wrong, _, wrong_said) = run_train(
        (f"--flagfile={flags}",), ("--dataset=drawn_flowers", f"--extension={path}")
    )
    assert refused == 1 and "--extension is not a flag that a file may set" in said
    assert wrong == 1 and "did you mean make_objective" in wrong_said


def test_run_belongs_to_its_file(settings, copies_at, write, tmp_path, capsys):
    path, place = write(DOUBLED), tmp_path / "run"
    plain = experiment.run(Config(workdir=str(tmp_path / "plain"), **settings))
    # in `run`, broken off in the second epoch
    whole = experiment.run(
        Config(workdir=str(tmp_path / "whole"), extension=path, **settings),
        observers=[copies_at(6, tmp_path / "whole", place)],
    )
    assert whole["weights_sha256"] != plain["weights_sha256"] and plain["extension"] is None

    # Without it, or with another one, it does not go on, and nothing is lost.
    other = write(DOUBLED.replace("2.0", "3.0"), "other.py")
    for extension_file in (None, other):
        with pytest.raises(CheckpointError, match="was made with .*extension of SHA-256") as error:
            experiment.run(Config(workdir=str(place), extension=extension_file, **settings))
        assert error.value.exit_code == 7

    moved = str(tmp_path / "moved.py")  # the same file may lie elsewhere
    shutil.move(path, moved)
    result = experiment.run(Config(workdir=str(place), extension=moved, **settings))
    assert result["weights_sha256"] == whole["weights_sha256"]
    sha256 = hashlib.sha256(DOUBLED.encode()).hexdigest()
    assert result["extension"] == {"file": moved, "sha256": sha256, "parts": ["make_objective"]}
    assert result["run"] == str(place)
    recorded = json.loads((place / "run.json").read_text())
    assert recorded["extension"] == {"file": path, "sha256": sha256, "parts": ["make_objective"]}
    assert recorded["package"]["sha256"] == extension.package_sha256()
    assert (place / "extension.py").read_text() == DOUBLED  # for the record only
    lines = (place / "flags.txt").read_text().splitlines()
    assert f"# extension {moved} of SHA-256 {sha256}" in lines
    assert not any(line.startswith("--extension") for line in lines)
    assert f"extension: make_objective from {path}" in (place / "plan.txt").read_text()


def test_command_that_goes_on_names_the_file(settings, write, tmp_path):
    config = Config(workdir=str(tmp_path / "run"), extension=write(DOUBLED), **settings)
    with experiment.opened(config) as place:
        assert place.signals.resume.endswith(f" --extension={config.extension}")


def test_numbers_of_epoch_ends_are_columns_and_may_be_selected_by(settings, tmp_path):
    """The worst column is chosen on purpose: the epoch that is kept follows it, not val_loss."""
    seen = []

    def epoch_ends(run, row, logits):
        assert logits.shape == (len(run.validation), 3)
        # Also where it is tried before training all columns are there, and numbers.
        gap = (row["val_loss"] - row["train_loss"]) / row["epoch"]
        assert isinstance(gap, float) and row["seconds"] > 0 and row["learning_rate"] > 0
        return {"lateness_error": -row["epoch"], "val_loss_again": row["val_loss"]}

    parts = extension.Extension(epoch_ends=epoch_ends)
    config = Config(
        workdir=str(tmp_path / "run"), select_by="lateness_error", patience=1, **settings
    )
    results = experiment.run(
        config,
        extension=parts,
        observers=[lambda event: seen.append(event) if isinstance(event, EpochEnded) else None],
    )
    assert [phase["best_epoch"] for phase in results["phases"]] == [2, 3]
    assert results["selected_phase"] == "finetune"
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert header.endswith(",learning_rate,lateness_error,val_loss_again")
    assert [float(row.split(",")[-2]) for row in rows] == [-1.0, -2.0, -3.0]
    assert [event.row["val_loss_again"] == event.row["val_loss"] for event in seen] == 3 * [True]
    assert CrossEntropy.counted == {"correct": "accuracy"} and os.path.isabs(results["run"])


LOSSES = """
import tensorflow as tf
from tl_research.training.objective import CrossEntropy


class _Mine(CrossEntropy):
    def loss(self, logits, labels):
        return {}


def make_objective(config, train):
    return _Mine.from_config(config, train)
"""


@pytest.mark.parametrize(
    "body, message",
    [
        ("super().loss(logits, labels)[:, None]", r"_Mine: received losses \(8, 1\); .*\(8,\)"),
        ("tf.reduce_mean(super().loss(logits, labels))", r"_Mine: received losses \(\)"),
        ("None", "_Mine: received losses None"),
    ],
)
def test_losses_that_would_broadcast_are_refused(settings, write, tmp_path, body, message):
    config = Config(workdir=str(tmp_path / "run"), extension=write(LOSSES.format(body)), **settings)
    with pytest.raises(UserError, match=message):
        experiment.run(config)


CONDITION = """
import tensorflow as tf
from tl_research.training.objective import CrossEntropy
from tl_research.training.steps import TrainStep


class _Capped(CrossEntropy):
    def loss(self, logits, labels):
        losses = super().loss(logits, labels)
        if tf.reduce_mean(losses) > 0.0:
            losses = 0.0 * losses + 2.0
        return losses


def make_objective(config, train):
    return _Capped()


class Step(TrainStep):
    def gradients(self, batch, scale):
        gradients, loss, sums = super().gradients(batch, scale)
        if loss == 2.0:
            sums["loss_sum"] += batch.weights.shape[0]
        return gradients, loss, sums


def _dark(images, draws, factor):
    for _ in range(2):
        if tf.reduce_mean(images) > 0.0:
            images = tf.zeros_like(images)
    return images


augmentations = {"dark": (1, _dark)}
"""


@pytest.mark.parametrize("feature_cache", ["memory", "off"])
def test_conditions_on_tensors_may_be_written_in_python(settings, write, tmp_path, feature_cache):
    more = {"augment": "dark=1", "augment_views": 2, "feature_cache": feature_cache}
    settings = {**settings, **more, "epochs": (1, 0)}
    config = Config(workdir=str(tmp_path / "run"), extension=write(CONDITION), **settings)
    seen = []
    experiment.run(config, observers=[seen.append])
    (row,) = [event.row for event in seen if isinstance(event, EpochEnded)]
    assert row["train_loss"] > 2.0


def test_code_of_ours_is_traced_without_autograph():
    assert not needs_autograph(CrossEntropy(), MixUp(0.2))
    assert needs_autograph(CrossEntropy(), lambda images, draws, factor: images)
    assert needs_autograph(type("Own", (CrossEntropy,), {})())


STATE = """
import tensorflow as tf
from tl_research.training.steps import TrainStep


class Step(TrainStep):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count = tf.Variable(0.0)
"""


def test_step_that_keeps_variables_of_its_own_is_refused(settings, write, tmp_path):
    config = Config(workdir=str(tmp_path / "run"), extension=write(STATE), **settings)
    with pytest.raises(UserError, match="Step.count is a variable of its own, which a resumed run"):
        experiment.run(config)


@pytest.mark.parametrize(
    "returned, message",
    [
        ({"val_loss": 1.0}, "returned 1.0 as 'val_loss'; expected {name: number}, with names that"),
        ({"x": "good"}, "returned 'good' as 'x'"),
        ({"x": [1.0, 2.0]}, "returned .* as 'x'"),
        ({3: 1.0}, "returned 1.0 as 3"),
        (None, "returned None as None"),
    ],
)
def test_what_is_no_number_of_its_own_is_refused_before_training(
    settings, tmp_path, returned, message
):
    def epoch_ends(run, row, logits):
        return returned

    config = Config(workdir=str(tmp_path / "run"), **settings)
    parts = extension.Extension(epoch_ends=epoch_ends)
    with pytest.raises(UserError, match=message):
        experiment.run(config, extension=parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_traced_error_names_the_line_of_the_file(run_train, write_images, write, tmp_path):
    photos = write_images(tmp_path / "photos", count=6, size=32)
    path = write(LOSSES.format("no_such_name"))
    ((code, _, said),) = run_train(
        (
            "--dataset=directory",
            f"--data_dir={photos}",
            "--backbone=MobileNetV2",
            "--weights=none",
            "--image_size=32",
            "--epochs=1,0",
            "--unfreeze=0%",
            f"--extension={path}",
        )
    )
    assert code == 1 and f"{path}:8: " in said and "name 'no_such_name' is not defined" in said
    assert len(said.splitlines()[-1]) < 300 + len(path)


def test_code_that_runs_is_the_code_that_was_read(write):
    """Python keeps compiled files by size and time of change, and would read the source again."""
    for value in (2, 3):
        path = write(f"def make_optimizer(group):\n    return {value}\n")
        os.utime(path, (1, 1))
        found = extension.load(path)
        assert found.make_optimizer(None) == value
        with open(path, "rb") as file:
            assert found.sha256 == hashlib.sha256(file.read()).hexdigest()
    assert not os.path.exists(os.path.join(os.path.dirname(path), "__pycache__"))
