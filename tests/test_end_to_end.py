"""`python train.py` as a user runs it: from a folder of images to a model that another process
loads.
"""

import csv
import glob
import hashlib
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tl_research import __version__
from tl_research.extension import package_sha256

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_images):
    """A directory with 3 x 20 images, of which one is broken and two are equal."""
    place = tmp_path_factory.mktemp("end_to_end")
    photos = write_images(place / "photos", classes=_CLASSES, strength=12)
    with open(os.path.join(photos, "bee", "07.png"), "r+b") as file:
        file.truncate(300)
    with (
        open(os.path.join(photos, "cat", "00.png"), "rb") as file,
        open(os.path.join(photos, "cat", "copy.png"), "wb") as copy,
    ):
        copy.write(file.read())
    return place


# train.py with flowers enough for the test side, which take seconds to draw
_FEW_FLOWERS = f"""
import runpy, sys
from tl_research.data import drawn_flowers

drawn_flowers.IMAGES_PER_CLASS = 48
sys.argv[0] = {os.path.join(_ROOT, "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def first(place, run_program, run_train):
    """{name: (exit code, stdout, stderr)} of a run in a process of its own and, meanwhile, of two
    that reach no host.
    """
    offline = [
        f"--flagfile={_ROOT}/flowers.flags",
        "--image_size=32",
        "--batch_size=64",
        "--phases=head,finetune",
        "--epochs=1,0",
        "--augment_views=0",
    ]
    command = [
        sys.executable,
        os.path.join(_ROOT, "train.py"),
        "--dataset=directory",
        f"--data_dir={place}/photos",
        "--backbone=EfficientNetLite0",
        "--image_size=64",
        "--batch_size=16",
        "--epochs=1",
        "--on_bad_image=skip",
        f"--workdir={place}/run",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place
    ) as main:
        (place / "few_flowers.py").write_text(_FEW_FLOWERS)
        flags = [*offline, f"--workdir={place}/embedded"]
        embedded = run_program(place / "few_flowers.py", *flags, home=place)
        (stop,) = run_train([*offline, "--if_offline=stop", f"--workdir={place}/stop"], home=place)
        stdout, stderr = main.communicate(timeout=300)
    return {"main": (main.returncode, stdout, stderr), "embedded": embedded, "stop": stop}


@pytest.fixture(scope="module")
def trained(first, place):
    """(run directory, stdout, stderr) of the main run."""
    code, stdout, stderr = first["main"]
    assert code == 0, stderr
    return place / "run", stdout, stderr


def _json(path):
    with open(path) as file:
        return json.load(file, parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


def test_result_is_the_last_line_and_equals_the_file(trained):
    run, stdout, stderr = trained
    last = stdout.splitlines()[-1]
    assert last.startswith("RESULT ") and json.loads(last.removeprefix("RESULT ")) == _json(
        run / "results.json"
    )
    # no progress bar where there is no terminal
    assert stdout.count("RESULT ") == 1 and "\r" not in stderr
    assert "Traceback" not in stderr and "error" not in stderr


def test_results_have_the_keys_of_the_contract(trained):
    summary = _json(trained[0] / "results.json")
    assert set(summary) == {
        "phases",
        "selected_phase",
        "test",
        "head_start",
        "time_limit",
        "cross_validation",
        "data_audit",
        "calibration",
        "classes",
        "substitutions",
        "precision",
        "xla",
        "feature_cache",
        "augment_views",
        "run",
        "extension",
        "seconds",
        "weights_sha256",
    }
    assert summary["run"] == str(trained[0]) and summary["extension"] is None
    assert [phase["name"] for phase in summary["phases"]] == ["head", "finetune"]
    for number, phase in enumerate(summary["phases"], 1):
        assert set(phase) == {
            "name",
            "epochs",
            "best_epoch",
            "val_accuracy",
            "val_loss",
            "trainable_parameters",
            "frozen_parameters",
            "traces",
            "compile_seconds",
            "images_per_second",
            "seconds",
            "audit",
        }
        assert phase["epochs"] == 1 and phase["best_epoch"] == number
        assert (
            phase["trainable_parameters"] + phase["frozen_parameters"] == 3_413_024 + 1280 * 3 + 3
        )
        assert (
            phase["images_per_second"] > 0 and phase["seconds"] > 0 and phase["compile_seconds"] > 0
        )
    assert summary["phases"][0]["trainable_parameters"] == 1280 * 3 + 3
    assert set(summary["test"]) == {"accuracy", "loss", "n", "ci95", "reads"}
    seconds = dict(summary["seconds"])
    kinds = {"start", "data", "features", "compile", "train", "evaluate", "export", "figures"}
    total = seconds.pop("total")
    assert set(seconds) == kinds and min(seconds.values()) > 0
    assert 0.8 * total < sum(seconds.values()) < total
    assert (
        summary["classes"] == _CLASSES
        and summary["substitutions"] == []
        and summary["augment_views"] == 4
    )
    assert (
        summary["selected_phase"] in ("head", "finetune") and len(summary["weights_sha256"]) == 64
    )
    assert (
        summary["feature_cache"] == "memory"
        and summary["seconds"]["total"] > summary["seconds"]["train"] > 0
    )


def test_each_phase_was_traced_once_and_its_audit_is_exact(trained):
    for phase, trainable in zip(_json(trained[0] / "results.json")["phases"], (2, 47)):
        assert phase["traces"] == 1
        assert phase["audit"] == {
            "trainable_changed": trainable,
            "trainable_total": trainable,
            "frozen_changed": 0,
            "frozen_total": 247 - trainable,
            "batchnorm_stats_changed": 0,
        }


def test_test_number_is_read_once_over_the_test_side(trained):
    run, stdout, _ = trained
    test = _json(run / "results.json")["test"]
    count = sum(file["side"] == "test" for file in _json(run / "split.json")["files"])
    assert test["n"] == count > 0 and test["reads"] == 1
    assert test["accuracy"] * count == pytest.approx(round(test["accuracy"] * count))
    p, z = test["accuracy"], 1.959963984540054
    center, half = (
        (p + z * z / (2 * count)) / (1 + z * z / count),
        z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2)),
    )
    assert test["ci95"] == pytest.approx([max(0, center - half), min(1, center + half)])
    hits = round(p * count)
    low, high = (100 * share for share in test["ci95"])
    assert (
        f"test accuracy {100 * p:.1f} % ({hits} of {count} images), 95 % interval {low:.1f} to "
        f"{high:.1f} %\n"
    ) in stdout


def test_split_has_shares_of_each_class_and_equal_images_on_one_side(trained, place):
    manifest = _json(trained[0] / "split.json")
    assert (
        manifest["seed"] == 0
        and manifest["fractions"] == [0.8, 0.1, 0.1]
        and manifest["classes"] == _CLASSES
    )
    assert len(manifest["files"]) == 60  # 61, less the broken one
    for file in manifest["files"]:
        with open(place / "photos" / file["path"], "rb") as image:
            content = image.read()
        assert (
            file["sha256"] == hashlib.sha256(content).hexdigest()
            and file["class"] == file["path"].split("/")[0]
        )
    sides = {file["path"]: file["side"] for file in manifest["files"]}
    assert sides["cat/00.png"] == sides["cat/copy.png"]
    (group,) = {file["group"] for file in manifest["files"] if file["group"]}
    (sha256,) = {file["sha256"] for file in manifest["files"] if file["group"]}
    assert group == sha256[:16]
    # 20 ants, 19 bees (cut at 15.2 and 17.1) and 21 cats, where equal ones are two of 21 (cut at
    # 16.8 and 18.9, or one off if the two are at the border)
    of_class = {
        name: [
            sum(path.startswith(name) and found == side for path, found in sides.items())
            for side in ("train", "validation", "test")
        ]
        for name in _CLASSES
    }
    assert of_class["ant"] == [16, 2, 2] and of_class["bee"] == [15, 2, 2]
    assert sum(of_class["cat"]) == 21 and of_class["cat"][0] in (16, 17, 18)
    assert "split: bee  train 15, validation  2, test  2" in (trained[0] / "plan.txt").read_text()


def test_bad_image_is_named_and_left_out(trained):
    run, stdout, _ = trained
    with open(run / "bad_images.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == "bee/07.png" and row["reason"]
    assert (
        "1 bad image left out, see bad_images.csv" in stdout
        and "1 duplicate image (see duplicates.csv), on the same side" in stdout
    )


def test_metrics_have_a_row_an_epoch(trained):
    run, _, _ = trained
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "phase",
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "images_per_second",
        "seconds",
        "learning_rate",
    ]
    train = sum(file["side"] == "train" for file in _json(run / "split.json")["files"])
    per_epoch = math.ceil(train / 16)
    assert [(row["phase"], row["epoch"], row["step"]) for row in rows] == [
        ("head", "1", str(per_epoch)),
        ("finetune", "2", str(2 * per_epoch)),
    ]
    # cosine, at its last step, after warm-up
    left = per_epoch - round(0.3 * per_epoch)
    last = 3e-4 * (1 - math.cos(math.pi / left)) / 2
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, last])
    for row, phase in zip(rows, _json(run / "results.json")["phases"]):
        assert (
            float(row["val_loss"]) == phase["val_loss"]
            and float(row["val_accuracy"]) == phase["val_accuracy"]
        )
        assert float(row["train_accuracy"]) * train == pytest.approx(
            round(float(row["train_accuracy"]) * train)
        )


def test_run_json_says_what_was_resolved(trained):
    record = _json(trained[0] / "run.json")
    assert set(record["versions"]) >= {"python", "tensorflow", "keras", "numpy"}
    assert (
        record["precision"] == _json(trained[0] / "results.json")["precision"]
        and record["substitutions"] == []
    )
    assert record["package"] == {"version": __version__, "sha256": package_sha256()}
    assert record["extension"] is None
    assert record["machine"]["devices"] and "cache: " in record["feature_cache"]


def test_flags_leave_out_the_place_of_the_run(trained, place):
    lines = (trained[0] / "flags.txt").read_text().splitlines()
    assert f"--data_dir={place}/photos" in lines and "--epochs=1" in lines
    assert not [line for line in lines if line.startswith(("--workdir", "--resume", "--debug"))]


def test_checkpoints_figure_and_event_files_are_there_and_nothing_half_written(trained):
    run, _, _ = trained
    for name in ("curves.png", "calibration.png"):
        assert (run / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert len(os.listdir(run / "checkpoints")) == 2
    assert len(os.listdir(run / "train")) == len(os.listdir(run / "validation")) == 1
    assert not [
        path
        for path in glob.glob(f"{run}/**", recursive=True)
        if ".tmp-" in path or "tmp-" in os.path.basename(path)
    ]


def test_plan_is_told_before_training(trained):
    run, stdout, _ = trained
    plan = (run / "plan.txt").read_text()
    for part in (
        "device: ",
        "data: 60 images in 3 classes",
        "model: EfficientNetLite0",
        "cache: ",
        "plan: head",
        "plan: finetune",
        "phase head: ",
        "phase finetune: 43 of 141 backbone layers unfrozen, ",
        ", 2,597,475 of 3,416,867 parameters trained; first unfrozen: block6a_dwconv; learning "
        "rates: ",
    ):
        assert part in plan
    told, _, rest = stdout.partition("head: training the head, backbone frozen; up to 1 epoch\n")
    assert "60 images in 3 classes: " in told
    assert "\nEfficientNetLite0 with ImageNet weights at 64 px, on " in told
    assert "finetune: training the head and the top 43 of 141 backbone layers" in rest
    assert re.findall(r"^ +(\d/2  \w+)", rest, re.MULTILINE) == ["1/2  head", "2/2  finetune"]


_PREDICT = """
import json, sys
import keras, numpy as np
import tl_research.models
model = keras.saving.load_model(sys.argv[1])
assert model.input_shape == (None, 64, 64, 3)
assert model.input.dtype == "float32" and model.output.dtype == "float32"
images = np.load(sys.argv[2])
before = {v.path: v.numpy() for v in model.variables if "seed" not in v.path}
predicted = model.predict(images, batch_size=8, verbose=0)
print(json.dumps([predicted.tolist(), model(images, training=False).numpy().tolist()]))
model(images, training=True)  # must not move a statistic, whoever calls it and however
assert all((v.numpy() == before[v.path]).all() for v in model.variables if v.path in before)
"""


def test_exported_model_gives_the_recorded_predictions_in_another_process(trained, place, tmp_path):
    """The test accuracy and loss of `results.json` come out of the file, from pixels that this test
    decodes itself.
    """
    import PIL.Image

    run, _, _ = trained
    files = [file for file in _json(run / "split.json")["files"] if file["side"] == "test"]
    images = np.stack(
        [np.asarray(PIL.Image.open(place / "photos" / file["path"])) for file in files]
    ).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PREDICT,
            str(run / "export" / "model.keras"),
            str(tmp_path / "images.npy"),
        ],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    predicted, called = map(np.array, json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(predicted, called, rtol=1e-4, atol=1e-4)
    classes = _json(run / "export" / "classes.json")
    assert classes == _CLASSES and predicted.shape == (len(files), 3)
    labels = np.array([classes.index(file["class"]) for file in files])
    log_p = predicted - predicted.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    test = _json(run / "results.json")["test"]
    assert (predicted.argmax(axis=1) == labels).mean() == pytest.approx(test["accuracy"])
    assert -log_p[np.arange(len(labels)), labels].mean() == pytest.approx(test["loss"], rel=1e-3)
    calibration = _json(run / "results.json")["calibration"]
    temperature = _json(run / "export" / "calibration.json")["temperature"]
    assert temperature == calibration["temperature"]
    assert calibration["log_loss_before"] == test["loss"]
    shares = np.exp(predicted / temperature)
    shares = shares[np.arange(len(labels)), labels] / shares.sum(axis=1)
    assert -np.log(shares).mean() == pytest.approx(calibration["log_loss_after"], rel=1e-3)


@pytest.fixture(scope="module")
def later(trained, place, run_train):
    """What is asked of train.py after the run, each in a process of its own: {name: (exit code,
    stdout, stderr)}.
    """
    run, _, _ = trained
    with open(run / "flags.txt") as file:
        same = [line.rstrip("\n") for line in file if not line.startswith("#")]
    cases = {
        "replay": [
            f"--flagfile={run}/flags.txt",
            f"--workdir={place}/replay",
            "--min_test_accuracy=1.0",
        ],
        "again": [*same, f"--workdir={run}"],
        "changed": [*same, "--seed=1", f"--workdir={run}"],
    }
    return dict(zip(cases, run_train(*cases.values(), home=place)))


def test_replayed_flags_give_the_same_weights_and_the_gate_exit_3(trained, place, later):
    code, stdout, stderr = later["replay"]
    one, other = _json(trained[0] / "results.json"), _json(place / "replay" / "results.json")
    assert other["weights_sha256"] == one["weights_sha256"] and other["test"] == one["test"]
    assert one["test"]["accuracy"] < 1.0 and code == 3
    assert (
        stderr.splitlines()[-1].startswith("error: test accuracy ")
        and "--min_test_accuracy=1.0" in stderr
    )
    assert stdout.splitlines()[-1].startswith("RESULT ")
    for name in ("split.json", "bad_images.csv"):
        assert (place / "replay" / name).read_bytes() == (trained[0] / name).read_bytes()


def test_finished_run_prints_its_result_again(trained, later):
    code, stdout, stderr = later["again"]
    assert code == 0 and stdout == trained[1].splitlines()[-1] + "\n" and "is finished" in stderr


def test_changed_seed_in_the_directory_of_a_run_is_exit_7(later):
    code, stdout, stderr = later["changed"]
    assert code == 7 and stdout == "" and stderr.count("\n") == 1
    assert "was made with --seed=0, this command has --seed=1" in stderr


def test_instant_recipe_exports_the_closed_form_head(run_train, one_layer, place):
    flags = [
        "--dataset=directory",
        f"--data_dir={place}/photos",
        f"--extension={one_layer}",
        "--image_size=32",
        "--on_bad_image=skip",
        f"--flagfile={_ROOT}/recipes/instant.flags",
        f"--workdir={place}/instant",
    ]
    ((code, stdout, stderr),) = run_train(flags)
    assert code == 0, stderr
    assert "plan: nothing is trained; the closed-form head is exported\n" in stdout
    assert "epochs" not in stdout.split("RESULT")[0] and "exported " in stdout
    results = _json(place / "instant" / "results.json")
    assert results["phases"] == [] and results["selected_phase"] == "start"
    assert results["seconds"]["train"] == results["seconds"]["compile"] == 0
    report = set(os.listdir(place / "instant" / "report"))
    assert "confusion.png" in report and "curves.png" not in report


def test_example_of_the_readme_runs(tmp_path, write_images, monkeypatch, capsys):
    with open(os.path.join(_ROOT, "README.md")) as file:
        (example,) = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
    write_images(tmp_path / "photos", classes=_CLASSES, count=5, strength=12)
    monkeypatch.chdir(tmp_path)
    exec(example.replace("epochs=(8, 10)", "epochs=(1, 0), image_size=32"), {})
    lines = capsys.readouterr().out.splitlines()
    predicted = [line.split() for line in lines if line.startswith("photos/")]
    assert len(predicted) == 15 and {name for _, name in predicted} <= set(_CLASSES)
    assert _json(tmp_path / "runs" / "mine" / "results.json")["phases"][0]["epochs"] == 1


def test_offline_run_goes_on_with_what_is_embedded_and_records_it(place, first):
    code, stdout, stderr = first["embedded"]
    assert code == 0, stderr
    summary = json.loads(stdout.splitlines()[-1].removeprefix("RESULT "))
    assert summary["substitutions"] == [
        {"what": "dataset", "asked": "tf_flowers", "used": "drawn_flowers"},
        {
            "what": "weights",
            "asked": "imagenet weights of EfficientNetV2B0",
            "used": "EfficientNetLite0",
        },
    ]
    assert _json(place / "embedded" / "run.json")["substitutions"] == summary["substitutions"]
    for line in (
        "data set tf_flowers could not be reached; used drawn_flowers instead",
        "imagenet weights of EfficientNetV2B0 could not be reached; used EfficientNetLite0 "
        "with its packaged ImageNet weights instead",
    ):
        assert f"note: {line} (" in stderr  # when it happens, with the reason
        assert stdout.count(line) == 1  # at the end
        assert f"note: {line}\n" in stdout.split("test accuracy")[0]
    # what was asked for
    assert "--dataset=tf_flowers" in (place / "embedded" / "flags.txt").read_text()
    assert summary["classes"] and summary["test"]["n"] > 20
    assert {phase["traces"] for phase in summary["phases"]} == {1}


def test_offline_run_that_must_stop_says_which_file_to_place(place, first):
    code, stdout, stderr = first["stop"]
    assert code == 2 and "RESULT" not in stdout
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert f"put it at {place}/.cache/tl_research/flower_photos.tgz" in stderr


def test_two_classes_in_the_layout_of_their_archive_without_a_network(
    run_train, write_images, tmp_path
):
    for side, count in (("train", 20), ("validation", 12)):
        write_images(
            tmp_path / "photos" / side, classes=("cats", "dogs"), count=count, size=32 + count
        )
    flags = [
        f"--flagfile={_ROOT}/cats_vs_dogs.flags",
        "--image_size=32",
        "--batch_size=16",
        "--epochs=0,1",
        f"--workdir={tmp_path}/run",
    ]
    ((code, stdout, stderr),) = run_train([*flags, f"--data_dir={tmp_path}/photos"])
    assert code == 0, stderr
    results, split = (
        _json(tmp_path / "run" / "results.json"),
        _json(tmp_path / "run" / "split.json"),
    )
    assert results["classes"] == ["cats", "dogs"]
    assert {file["side"] for file in split["files"] if file["path"].startswith("train/")} == {
        "train"
    }
    assert {file["side"] for file in split["files"] if file["path"].startswith("validation/")} == {
        "validation",
        "test",
    }
    # From layer 100 of 154 up, 35.06 %, of a backbone that could not be had: 50 of 141 layers of
    # the one that is used instead.
    assert (
        "finetune: training the head and the top 50 of 141 backbone layers" in stdout
        and "MobileNetV2 could not be reached" in stdout
    )
