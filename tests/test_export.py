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
import PIL.Image
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tl_research import artefacts, experiment, serving
from tl_research.answers import ANSWERS
from tl_research.config import Config
from tl_research.errors import DataError, ExportError, StorageError, UserError
from tl_research.evaluate import EvaluateConfig, evaluate
from tl_research.export import ExportConfig, export
from tl_research.predict import PredictConfig, predict

_SIZES = ((20, 50), (32, 32), (64, 64))
_TEMPERATURE = 0.2


@pytest.fixture(scope="module")
def images():
    return [
        np.random.RandomState(number).randint(0, 200, (1, *size, 3)).astype(np.uint8)
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
def test_full_disk_is_exit_9_and_leaves_nothing(tiny_finished_run, name):
    before = sorted(os.listdir(os.path.join(tiny_finished_run, "export")))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with pytest.raises(StorageError, match="could not write .*: File too large") as error:
            export(ExportConfig(run=tiny_finished_run, format=name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.exit_code == 9
    assert sorted(os.listdir(os.path.join(tiny_finished_run, "export"))) == before


_SERVE = """
import json, sys
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("tl_research")]
answers = []
for path in sys.argv[2:]:
    if path.endswith(".npy"):
        answer = loaded.signatures["serving_default"](images=tf.constant(np.load(path)))
    else:
        content = open(path, "rb").read()
        answer = loaded.signatures["image_bytes"](image_bytes=tf.constant([content]))
    classes = [name.decode() for name in answer["class"].numpy()]
    answers.append([answer["probabilities"].numpy().tolist(), classes])
print(json.dumps(answers))
"""


def _in_another_process(script, *arguments, place):
    """Returns what a script prints that is run where our package is not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _photographs(place):
    """Returns paths of JPEG and PNG files, one for each way in which they are to be turned."""
    pixels = np.random.RandomState(5).randint(0, 255, (9, 12, 3)).astype(np.uint8)
    image = PIL.Image.fromarray(pixels).resize((120, 90), PIL.Image.Resampling.BICUBIC)
    image.save(place / "plain.jpg", quality=90)
    for orientation in range(10):  # 1 to 8 mean something
        exif = PIL.Image.Exif()
        exif.endian = "<>"[orientation % 2]
        exif[0x010F], exif[0x0112] = "a camera", orientation
        image.save(place / f"{orientation}.jpg", quality=90, exif=exif)
    exif[0x0112] = 6
    image.save(place / "turned.png", exif=exif)
    image.convert("L").save(place / "gray.jpg", quality=75)
    return sorted(str(path) for path in place.glob("*.[jp][pn]g"))


def test_saved_model_answers_images_and_files_without_our_package(
    calibrated_run, images, tmp_path, capsys
):
    files = {
        path: os.stat(os.path.join(calibrated_run, "export", path)).st_mtime_ns
        for path in ("model.keras", "classes.json")
    }
    served = os.path.join(calibrated_run, "export", "saved_model", "1")
    assert export(ExportConfig(run=calibrated_run, format="saved_model")) == {"saved_model": served}
    for path, time in files.items():
        assert os.stat(os.path.join(calibrated_run, "export", path)).st_mtime_ns == time
    assert sorted(os.listdir(os.path.join(calibrated_run, "export"))) == [
        "README.md",
        "calibration.json",
        "classes.json",
        "labels.txt",
        "model.keras",
        "saved_model",
        "saved_model.json",
    ]
    assert os.listdir(os.path.dirname(served)) == ["1"]  # versions alone
    out = capsys.readouterr().out
    for part in (
        "saved_model: ",
        " MB; differs from model.keras by at most a relative ",
        ", with the same class for 23 of 23 validation images; accuracy ",
        " ms per image of 64 x 64 (median of 50, ",
    ):
        assert part in out
    paths = []
    for number, image in enumerate([*images, np.concatenate([images[0], images[0][:, ::-1]])]):
        paths.append(str(tmp_path / f"{number}.npy"))
        np.save(paths[-1], image)
    photographs = _photographs(tmp_path)
    assert len(photographs) == 13
    answers = _in_another_process(_SERVE, served, *paths, *photographs, place=tmp_path)
    single, pair, of_files = answers[:3], answers[3], answers[4:]
    expected = _expected(calibrated_run, images)
    np.testing.assert_allclose(
        [probabilities[0] for probabilities, _ in single], expected, atol=1e-4
    )
    assert [names[0] for _, names in single] == [
        ["ant", "bee", "cat"][place] for place in expected.argmax(axis=1)
    ]
    assert np.shape(pair[0]) == (2, 3) and len(pair[1]) == 2
    np.testing.assert_allclose(pair[0][0], expected[0], atol=1e-4)
    _, predictions = predict(PredictConfig(run=calibrated_run), photographs)
    expected = np.array([outputs for _, _, outputs in predictions])
    received = np.array([probabilities[0] for probabilities, _ in of_files])
    np.testing.assert_allclose(received, expected, atol=1e-4)
    assert np.ptp(received[:9], axis=0).max() > 0.01  # a turn would be seen
    with open(os.path.join(calibrated_run, "export", "labels.txt")) as file:
        assert file.read() == "ant\nbee\ncat\n"


def test_network_that_is_checked_is_compiled_and_given_no_more_images_than_in_training():
    images, sizes = tf.cast(tf.random.uniform([10, 4, 4, 3], 0, 256, tf.int32), tf.uint8), []

    def means(batch):
        sizes.append(len(batch))
        return batch.mean(axis=(1, 2))

    def network(batch):
        assert not tf.executing_eagerly()  # where every intermediate result is kept
        return tf.ensure_shape(tf.numpy_function(means, [batch], tf.float32), [None, 3])

    received = artefacts.in_batches(network, images, batch_size=4)
    np.testing.assert_allclose(received, tf.cast(images, tf.float32).numpy().mean(axis=(1, 2)))
    assert sizes == [4, 4, 2]


def test_batchnorm_augmentation_and_dropout_are_gone(finished_run):
    path = os.path.join(finished_run, "export", "model.keras")
    model = keras.saving.load_model(path, compile=False)
    module = serving.serving_module(model, ANSWERS["class"], ("ant", "bee", "cat"), 1.0)
    graph = module.serve.get_concrete_function().graph.as_graph_def()
    operations = [node.op for node in graph.node] + [
        node.op for function in graph.library.function for node in function.node_def
    ]
    assert operations.count("Conv2D") + operations.count("DepthwiseConv2dNative") == 49
    assert "Rsqrt" not in operations and not [name for name in operations if "Random" in name]
    assert operations.count("ReadVariableOp") == 2  # the head's


def test_run_without_its_images_is_exported_also_where_it_cannot_be_written(
    tiny_finished_run, read_only, tmp_path, capsys
):
    photos = os.path.join(os.path.dirname(tiny_finished_run), "photos")
    os.rename(photos, f"{photos}-moved")
    read_only(tiny_finished_run)
    settings = {
        "run": tiny_finished_run,
        "format": "saved_model",
        "output_dir": str(tmp_path / "out"),
    }
    assert export(ExportConfig(**settings)) == {
        "saved_model": str(tmp_path / "out" / "export" / "saved_model" / "1")
    }
    said = capsys.readouterr()
    assert "with the same class for 20 of 20 drawn images; " in said.out
    assert "note: the validation images cannot be read: --data_dir=" in said.err
    export(ExportConfig(**settings, data_dir=f"{photos}-moved"))
    assert " validation images; " in capsys.readouterr().out
    with pytest.raises(DataError, match="--data_dir=/nowhere cannot be read"):
        export(ExportConfig(**settings, data_dir="/nowhere"))
    with pytest.raises(DataError, match=" cannot be read"):  # no others are calibrated on
        export(ExportConfig(**{**settings, "format": "litert"}, quantize="int8"))


_ASK = """
import json, sys
import numpy as np
images = [np.load(path) for path in sys.argv[2:]]
if sys.argv[1].endswith("onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    names = [output.name for output in session.get_outputs()]
    ask = lambda images: dict(zip(names, session.run(None, {"images": images})))
else:
    from ai_edge_litert.interpreter import Interpreter
    ask = Interpreter(sys.argv[1]).get_signature_runner()
answers = [ask(images=image) for image in images]
assert not [name for name in sys.modules if name.startswith(("tl_research", "tensorflow"))]
names = [answer["class"][0] for answer in answers]
names = [name.decode() if isinstance(name, bytes) else name for name in names]
print(json.dumps([[answer["probabilities"][0].tolist() for answer in answers], names]))
"""
_FILES = {
    ("litert", "none"): ("model.tflite", 1e-2),
    ("litert", "float16"): ("model_float16.tflite", 2e-2),
    ("litert", "int8"): ("model_int8.tflite", 0.1),
    ("onnx", "none"): ("model.onnx", 1e-2),
}


def test_files_answer_images_of_any_size_without_tensorflow(calibrated_run, images, tmp_path):
    photo = os.path.join(os.path.dirname(calibrated_run), "photos", "bee", "03.png")
    images = [*images, np.asarray(PIL.Image.open(photo))[None]]
    expected, paths, sizes = _expected(calibrated_run, images), [], {}
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.npy"))
        np.save(paths[-1], image)
    for (name, quantize), (file, tolerance) in _FILES.items():
        settings = {"format": name, "quantize": quantize, "max_accuracy_drop": 1}
        path = export(ExportConfig(run=calibrated_run, **settings))[name]
        assert path == os.path.join(calibrated_run, "export", file)
        sizes[quantize] = os.path.getsize(path)
        answers, names = _in_another_process(_ASK, path, *paths, place=tmp_path)
        some = slice(3 * (quantize == "int8"), None)  # it is calibrated on such
        np.testing.assert_allclose(answers[some], expected[some], atol=tolerance)
        assert names == [["ant", "bee", "cat"][place] for place in np.argmax(answers, axis=1)]
    assert sizes["int8"] < 0.35 * sizes["none"] and sizes["float16"] < 0.55 * sizes["none"]


def test_what_there_is_to_know_of_a_file_stands_beside_it(calibrated_run, tmp_path):
    settings = {"run": calibrated_run, "format": "litert", "fixed_size": True}
    path = export(ExportConfig(**settings, output_dir=str(tmp_path)))["litert"]
    with open(f"{path}.json") as file:
        known = json.load(file)
    compared, latency = known.pop("compared"), known.pop("latency")
    assert known.pop("versions")["tensorflow"] == tf.__version__
    assert known == {
        "format": "litert",
        "quantize": "none",
        "bytes": os.path.getsize(path),
        "images": {
            "type": "uint8",
            "shape": [1, 32, 32, 3],
            "values": "RGB, 0 to 255, upright",
        },
        "outputs": "probabilities",
        "classes": ["ant", "bee", "cat"],
        "temperature": _TEMPERATURE,
    }
    details = Interpreter(path).get_signature_runner().get_input_details()["images"]
    assert details["shape_signature"].tolist() == [1, 32, 32, 3]
    assert (latency["height"], latency["width"], latency["answers"]) == (32, 32, 50)
    assert latency["median_ms"] > 0 and latency["median_cpu_ms"] > 0
    # nothing is resized, so that only rounding is left
    assert compared["relative_difference"] < 1e-4 and compared["largest_difference"] < 1e-4
    assert compared["same_class"] == compared["images"] == 23
    with open(os.path.join(calibrated_run, "results.json")) as file:
        expected = json.load(file)["phases"][0]["val_accuracy"]
    assert compared["measured"]["accuracy"] == compared["keras"]["accuracy"] == expected


@pytest.mark.parametrize(
    "name, expected, received, count, said",
    [
        ("accuracy", 0.93, 0.92, 1000, None),
        ("accuracy", 0.93, 0.90, 1000, "accuracy of m is 0.9000, of model.keras 0.9300, on 1000 "),
        ("accuracy", 1.0, 0.95, 20, None),  # one image
        ("accuracy", 1.0, 0.90, 20, " at most --max_accuracy_drop, 0.05; the file was removed"),
        ("accuracy", 0.9, 1.0, 20, None),
        ("mean_absolute_error", 10.0, 10.1, 1000, None),
        ("mean_absolute_error", 10.0, 10.3, 1000, "mean_absolute_error of m is 10.3000, of model."),
    ],
)
def test_file_that_is_less_accurate_is_refused(name, expected, received, count, said):
    facts = {"images": count, "keras": {name: expected}, "measured": {name: received}}
    found = serving.less_accurate("m", facts, 0.02)
    assert said in found if said else not found


def test_format_whose_packages_are_not_there_names_them(finished_run, monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        export(ExportConfig(run=finished_run, format="saved_model,litert"))
    assert str(error.value) == (
        "--format=litert needs ai_edge_litert, which is not installed; expected it; pip install "
        "ai_edge_litert"
    )
    with pytest.raises(UserError, match="; pip install tf2onnx onnxruntime$"):
        export(ExportConfig(run=finished_run, format="onnx"))


_LOAD = """
import json, sys
import keras
try:
    keras.saving.load_model(sys.argv[1])
except Exception as error:
    print(json.dumps(str(error)))
"""


def test_model_that_cannot_be_loaded_says_what_to_import(finished_run, tmp_path):
    path = os.path.join(finished_run, "export", "model.keras")
    said = _in_another_process(_LOAD, path, place=tmp_path)
    assert "'to_load': 'import tl_research.models before keras.saving.load_model'" in said


def test_artefact_that_differs_is_deleted_and_the_one_before_stays(tiny_finished_run, monkeypatch):
    folder = os.path.join(tiny_finished_run, "export")
    export(ExportConfig(run=tiny_finished_run, format="saved_model"))
    model = os.path.join(folder, "saved_model", "1", "saved_model.pb")
    before = os.stat(model).st_mtime_ns
    monkeypatch.setattr(
        serving.image_check,
        "resized",
        lambda images, size: tf.image.resize(images, [size, size]) * 0.9,
    )
    with pytest.raises(
        ExportError, match="the logits of saved_model/1 differ by .* expected at most 0.001"
    ) as error:
        export(ExportConfig(run=tiny_finished_run, format="saved_model"))
    assert error.value.exit_code == 6
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "calibration.json",
        "classes.json",
        "labels.txt",
        "model.keras",
        "saved_model",
        "saved_model.json",
    ]
    assert os.stat(model).st_mtime_ns == before


def test_format_that_is_not_there_is_exit_1_and_one_that_cannot_hold_the_model_exit_6(
    tiny_finished_run, monkeypatch
):
    with pytest.raises(UserError, match="=coreml; expected one of saved_model, litert, onnx"):
        ExportConfig(run=tiny_finished_run, format="coreml")
    with pytest.raises(
        UserError, match="=int8 with --format=saved_model; expected litert, the only format"
    ):
        ExportConfig(run=tiny_finished_run, format="saved_model", quantize="int8")

    def convert(self):
        raise RuntimeError("no such operation\nand so on")

    for of_converter, why in (
        (convert, "no such operation"),
        (lambda self: b"no model", "its interpreter ends with exit code 1"),
    ):
        monkeypatch.setattr(
            tf.lite.TFLiteConverter,
            "from_concrete_functions",
            lambda *args: type("C", (), {"convert": of_converter})(),
        )
        with pytest.raises(ExportError, match=rf"litert cannot hold this model \({why}\)"):
            export(ExportConfig(run=tiny_finished_run, format="litert"))
    assert sorted(os.listdir(os.path.join(tiny_finished_run, "export"))) == [
        "README.md",
        "calibration.json",
        "classes.json",
        "model.keras",
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_run_with_a_class_whose_name_is_not_utf8_is_shown_evaluated_and_exported(
    tiny_backbone, tiny_settings, tmp_path, capsys
):
    sys.stdout.reconfigure(errors="backslashreplace")  # as the programs do
    settings = tiny_settings(tmp_path, 12, ("ant", "caf\udce9"), epochs=(1, 0))
    run, results = settings["workdir"], experiment.run(Config(**settings))
    assert results["classes"] == ["ant", "caf\udce9"] and "warning" not in capsys.readouterr().err
    assert evaluate(EvaluateConfig(run=run))["n"] > 0
    assert "caf\\xe9" in open(os.path.join(run, "report", "validation", "per_class.csv")).read()
    (path,) = export(ExportConfig(run=run, format="saved_model")).values()
    answers = tf.saved_model.load(path).signatures["serving_default"](
        images=tf.zeros([1, 16, 16, 3], tf.uint8)
    )
    assert answers["class"].numpy()[0] in (b"ant", b"caf\xe9")
