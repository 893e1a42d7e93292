"""`python -m tl_research.export`: what it writes answers as the saved model does, in a process that
knows nothing of us.
"""

import json
import os
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_research import artefacts, experiment
from tl_research.answers import ANSWERS
from tl_research.config import Config
from tl_research.errors import DataError, ExportError, StorageError, UserError
from tl_research.evaluate import EvaluateConfig, evaluate
from tl_research.export import ExportConfig, export

_SIZES = ((20, 50), (32, 32), (64, 64))
_TEMPERATURE = 0.2


@pytest.fixture(scope="module")
def images():
    return [
        np.random.RandomState(number).randint(0, 255, (1, *size, 3)).astype(np.uint8)
        for number, size in enumerate(_SIZES)
    ]


@pytest.fixture
def calibrated_run(finished_run):
    """A finished run whose temperature is clearly not 1."""
    with open(os.path.join(finished_run, "export", "calibration.json"), "w") as file:
        json.dump({"temperature": _TEMPERATURE}, file)
    return finished_run


def _expected(run, images):
    """[N, K]: the calibrated probabilities of the Keras model, from pixels resized here."""
    model = keras.saving.load_model(os.path.join(run, "export", "model.keras"), compile=False)
    return np.concatenate(
        [
            tf.nn.softmax(model(np.round(tf.image.resize(image, (32, 32)))) / _TEMPERATURE)
            for image in images
        ]
    )


@pytest.mark.parametrize("name", ["saved_model", "litert"])
def test_full_disk_is_exit_9_and_leaves_nothing(calibrated_run, name):
    before = sorted(os.listdir(os.path.join(calibrated_run, "export")))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(StorageError, match="could not write .*: File too large") as error:
            export(ExportConfig(run=calibrated_run, format=name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.exit_code == 9
    assert sorted(os.listdir(os.path.join(calibrated_run, "export"))) == before


_SERVE = """
import json, sys
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
assert not [name for name in sys.modules if name.startswith("tl_research")]
answers = []
for path in sys.argv[2:]:
    answer = serve(images=tf.constant(np.load(path)))
    classes = [name.decode() for name in answer["class"].numpy()]
    answers.append([answer["probabilities"].numpy().tolist(), classes])
print(json.dumps(answers))
"""


def test_saved_model_answers_images_of_any_size_without_our_package(
    calibrated_run, images, tmp_path, capsys
):
    files = {
        path: os.stat(os.path.join(calibrated_run, "export", path)).st_mtime_ns
        for path in ("model.keras", "classes.json")
    }
    assert export(ExportConfig(run=calibrated_run, format="saved_model")) == {
        "saved_model": os.path.join(calibrated_run, "export", "saved_model")
    }
    for path, time in files.items():
        assert os.stat(os.path.join(calibrated_run, "export", path)).st_mtime_ns == time
    assert sorted(os.listdir(os.path.join(calibrated_run, "export"))) == [
        "calibration.json",
        "classes.json",
        "model.keras",
        "saved_model",
    ]
    out = capsys.readouterr().out
    for part in (
        "saved_model: ",
        " MB; logits equal to ",
        " validation images; ",
        " ms for an image of 64 x 64 (median of 20, ",
    ):
        assert part in out
    paths = []
    for number, image in enumerate([*images, np.concatenate([images[0], images[0][:, ::-1]])]):
        paths.append(str(tmp_path / f"{number}.npy"))
        np.save(paths[-1], image)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _SERVE,
            os.path.join(calibrated_run, "export", "saved_model"),
            *paths,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    *single, pair = json.loads(done.stdout.splitlines()[-1])
    expected = _expected(calibrated_run, images)
    np.testing.assert_allclose(
        [probabilities[0] for probabilities, _ in single], expected, atol=1e-4
    )
    assert [names[0] for _, names in single] == [
        ["ant", "bee", "cat"][place] for place in expected.argmax(axis=1)
    ]
    assert np.shape(pair[0]) == (2, 3) and len(pair[1]) == 2
    np.testing.assert_allclose(pair[0][0], expected[0], atol=1e-4)


def test_network_that_is_checked_is_compiled_and_given_no_more_images_than_in_training():
    images, sizes = tf.cast(tf.random.uniform([10, 4, 4, 3], 0, 256, tf.int32), tf.uint8), []

    def means(batch):
        sizes.append(len(batch))
        return batch.mean(axis=(1, 2))

    def network(batch):
        assert not tf.executing_eagerly()  # where every intermediate result is kept
        return tf.ensure_shape(tf.numpy_function(means, [batch], tf.float32), [None, 3])

    received = artefacts._in_batches(network, images, batch_size=4)
    np.testing.assert_allclose(received, tf.cast(images, tf.float32).numpy().mean(axis=(1, 2)))
    assert sizes == [4, 4, 2]


def test_batchnorm_augmentation_and_dropout_are_gone(finished_run):
    module = artefacts.serving_module(
        keras.saving.load_model(os.path.join(finished_run, "export", "model.keras"), compile=False),
        ANSWERS["class"],
        ["ant", "bee", "cat"],
        32,
        None,
        1.0,
    )
    graph = module.serve.get_concrete_function().graph.as_graph_def()
    operations = [node.op for node in graph.node] + [
        node.op for function in graph.library.function for node in function.node_def
    ]
    assert operations.count("Conv2D") + operations.count("DepthwiseConv2dNative") == 49
    assert "Rsqrt" not in operations and not [name for name in operations if "Random" in name]
    assert operations.count("ReadVariableOp") == 2  # the head's


def test_run_without_its_images_is_exported_also_where_it_cannot_be_written(
    calibrated_run, read_only, tmp_path, capsys
):
    photos = os.path.join(os.path.dirname(calibrated_run), "photos")
    os.rename(photos, f"{photos}-moved")
    read_only(calibrated_run)
    settings = {"run": calibrated_run, "format": "saved_model", "output_dir": str(tmp_path / "out")}
    assert export(ExportConfig(**settings)) == {
        "saved_model": str(tmp_path / "out" / "export" / "saved_model")
    }
    said = capsys.readouterr()
    assert "the class to that of model.keras for 20 of 20 drawn images; " in said.out
    assert "note: the validation images cannot be read: --data_dir=" in said.err
    export(ExportConfig(**settings, data_dir=f"{photos}-moved"))
    assert " validation images; " in capsys.readouterr().out
    with pytest.raises(DataError, match="--data_dir=/nowhere cannot be read"):
        export(ExportConfig(**settings, data_dir="/nowhere"))


def test_litert_file_answers_images_of_any_size(calibrated_run, images):
    path = export(ExportConfig(run=calibrated_run, format="litert"))["litert"]
    serve = tf.lite.Interpreter(path).get_signature_runner()
    answers = [serve(images=image) for image in images]
    expected = _expected(calibrated_run, images)
    np.testing.assert_allclose(
        [answer["probabilities"][0] for answer in answers], expected, atol=1e-2
    )
    assert [answer["class"][0].decode() for answer in answers] == [
        ["ant", "bee", "cat"][i] for i in expected.argmax(axis=1)
    ]


def test_artefact_that_differs_is_deleted_and_the_one_before_stays(finished_run, monkeypatch):
    folder = os.path.join(finished_run, "export")
    export(ExportConfig(run=finished_run, format="saved_model"))
    before = os.stat(os.path.join(folder, "saved_model", "saved_model.pb")).st_mtime_ns
    monkeypatch.setattr(
        artefacts.image_check,
        "resized",
        lambda images, size: tf.image.resize(images, [size, size]) * 0.9,
    )
    with pytest.raises(
        ExportError, match="the logits of saved_model differ by .* expected at most 0.001"
    ) as error:
        export(ExportConfig(run=finished_run, format="saved_model"))
    assert error.value.exit_code == 6
    assert sorted(os.listdir(folder)) == [
        "calibration.json",
        "classes.json",
        "model.keras",
        "saved_model",
    ]
    assert os.stat(os.path.join(folder, "saved_model", "saved_model.pb")).st_mtime_ns == before


def test_format_that_is_not_there_is_exit_1_and_one_that_cannot_hold_the_model_exit_6(
    finished_run, monkeypatch
):
    with pytest.raises(UserError, match="--format=onnx; expected one of saved_model, litert"):
        ExportConfig(run=finished_run, format="onnx")

    def convert(self):
        raise RuntimeError("no such operation\nand so on")

    monkeypatch.setattr(
        tf.lite.TFLiteConverter,
        "from_concrete_functions",
        lambda *args: type("C", (), {"convert": convert})(),
    )
    with pytest.raises(ExportError, match=r"litert cannot hold this model \(no such operation\)"):
        export(ExportConfig(run=finished_run, format="litert"))
    assert sorted(os.listdir(os.path.join(finished_run, "export"))) == [
        "calibration.json",
        "classes.json",
        "model.keras",
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_run_with_a_class_whose_name_is_not_utf8_is_shown_evaluated_and_exported(
    tiny_backbone, write_images, tmp_path, capsys
):
    sys.stdout.reconfigure(errors="backslashreplace")  # as the programs do
    photos = write_images(tmp_path / "photos", classes=("ant", "caf\udce9"), count=12, size=16)
    run = str(tmp_path / "run")
    results = experiment.run(
        Config(
            dataset="directory",
            data_dir=photos,
            image_size=16,
            backbone="Tiny",
            weights="none",
            epochs=(1, 0),
            batch_size=8,
            workdir=run,
        )
    )
    assert results["classes"] == ["ant", "caf\udce9"] and "warning" not in capsys.readouterr().err
    assert evaluate(EvaluateConfig(run=run))["n"] > 0
    assert "caf\\xe9" in open(os.path.join(run, "report", "validation", "per_class.csv")).read()
    (path,) = export(ExportConfig(run=run, format="saved_model")).values()
    answers = tf.saved_model.load(path).signatures["serving_default"](
        images=tf.zeros([1, 16, 16, 3], tf.uint8)
    )
    assert answers["class"].numpy()[0] in (b"ant", b"caf\xe9")
