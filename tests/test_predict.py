"""`python -m tl_research.predict`: the calibrated probabilities of the saved model, in order,
whatever else lies among the images.
"""

import csv
import io
import json
import os
import pty

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research import predict as tool
from tl_research import trained
from tl_research.answers import ANSWERS
from tl_research.errors import DataError, UserError
from tl_research.predict import PredictConfig, predict

_PREDICT = "tl_research.predict"


def _expected(run, path):
    """The probabilities by Keras, from pixels read and resized here."""
    pixels = np.asarray(PIL.Image.open(path).convert("RGB"), np.float32)
    resized = np.round(tf.image.resize(pixels, (32, 32)))[None]
    logits = keras.saving.load_model(os.path.join(run, "export", "model.keras"), compile=False)(
        resized
    ).numpy()
    with open(os.path.join(run, "results.json")) as file:
        temperature = json.load(file)["calibration"]["temperature"]
    assert abs(temperature - 1) > 0.1
    return keras.ops.softmax(logits / temperature).numpy()[0]


def test_images_of_any_size_get_the_probabilities_of_the_saved_model(tiny_finished_run, tmp_path):
    paths = []
    for number, size in enumerate(((20, 50), (64, 64), (33, 31))):
        paths.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(
            np.random.RandomState(number).randint(0, 255, (*size, 3), np.uint8)
        ).save(paths[-1])
    run, predictions = predict(PredictConfig(run=tiny_finished_run, batch_size=2), paths)
    predictions = list(predictions)
    assert run.classes == ("ant", "bee", "cat") and [path for path, _, _ in predictions] == paths
    for path, reason, probabilities in predictions:
        assert reason is None
        np.testing.assert_allclose(probabilities, _expected(tiny_finished_run, path), atol=1e-4)


def test_folder_with_bad_images_prints_a_row_for_each_good_one(
    tiny_finished_run, run_program, tmp_path
):
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    photos = os.path.join(os.path.dirname(tiny_finished_run), "photos")
    for number, name in enumerate(("a.png", "deep/c,d.png", "e.png")):
        os.link(os.path.join(photos, "bee", f"{number:02d}.png"), folder / name)
    (folder / "b.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    (folder / "deep" / "notes.txt").write_text("no image")
    (folder / "outside.png").symlink_to(os.path.join(photos, "ant", "00.png"))
    code, stdout, stderr = run_program(
        _PREDICT, f"--run={tiny_finished_run}", folder, "--batch_size=2"
    )
    assert code == 0, stderr
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert [row["path"] for row in rows] == [
        f"{folder}/a.png",
        f"{folder}/e.png",
        f"{folder}/deep/c,d.png",
    ]
    assert list(rows[0]) == ["path", "class", "probability", "ant", "bee", "cat"]
    for row in rows:
        assert row["class"] == max(
            ("ant", "bee", "cat"), key=lambda name: float(row[name])
        ) and float(row[row["class"]]) == float(row["probability"])
    named, linked, counted, others = stderr.splitlines()
    assert named == f"{folder}/b.jpg: not in a known image format, named .jpg"
    assert linked.startswith(f"{folder}/outside.png: link that leaves the data directory")
    assert counted.startswith("3 images in ") and counted.endswith("s, 2 could not be used")
    assert others == "2 other files are not used: 2 .txt"


def test_photograph_of_a_phone_gets_the_probabilities_of_the_upright_one(
    tiny_finished_run, tmp_path
):
    upright = np.random.RandomState(0).randint(0, 255, (40, 30, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored a quarter counterclockwise
    PIL.Image.fromarray(upright).save(tmp_path / "upright.png")
    PIL.Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    names = ("upright.png", "turned.png")
    _, predictions = predict(
        PredictConfig(run=tiny_finished_run, batch_size=1), [str(tmp_path / name) for name in names]
    )
    (_, _, expected), (_, _, received) = predictions
    np.testing.assert_array_equal(received, expected)


def test_pictures_are_bounded_as_in_training(tiny_finished_run, tmp_path):
    flags = os.path.join(tiny_finished_run, "flags.txt")
    with open(flags) as file:
        text = file.read()
    assert "--max_image_pixels=0\n" in text
    with open(flags, "w") as file:
        file.write(text.replace("--max_image_pixels=0\n", "--max_image_pixels=1000\n"))
    square = PIL.Image.new("RGB", (40, 40), (9, 90, 200))
    for name in ("large.png", "large.jpg"):
        square.save(tmp_path / name)
    names = ("large.png", "large.jpg")
    _, predictions = predict(
        PredictConfig(run=tiny_finished_run), [str(tmp_path / name) for name in names]
    )
    (_, reason, _), (_, reduced, _) = predictions
    assert reason == "40 x 40 pixels; at most --max_image_pixels, 1,000" and reduced is None


def test_file_of_rows_is_written_whole_and_nothing_usable_is_exit_2(
    tiny_finished_run, run_program, tmp_path
):
    out, run = tmp_path / "out.csv", f"--run={tiny_finished_run}"
    photo = os.path.join(os.path.dirname(tiny_finished_run), "photos", "ant", "00.png")
    code, stdout, _ = run_program(_PREDICT, run, photo, f"--csv={out}")
    assert (code, stdout) == (0, "") and len(out.read_text().splitlines()) == 2
    assert not [name for name in os.listdir(tmp_path) if ".tmp-" in name]
    (tmp_path / "bad.png").write_text("no image")
    code, _, stderr = run_program(_PREDICT, run, tmp_path / "bad.png")
    assert code == 2
    assert stderr.splitlines()[-1].startswith("error: none of 1 images can be used")
    code, _, stderr = run_program(_PREDICT, run, photo, f"--csv={tmp_path}/nowhere/out.csv")
    assert code == 9 and "No such file or directory" in stderr and stderr.count("\n") == 1


def test_only_a_few_batches_are_in_memory_at_once(tiny_finished_run, tmp_path, monkeypatch):
    photo = os.path.join(os.path.dirname(tiny_finished_run), "photos", "ant", "00.png")
    taken = []

    def images(places, others):
        for number in range(1000):
            taken.append(number)
            yield photo, photo, None

    monkeypatch.setattr(tool, "image_files", images)
    _, predictions = predict(PredictConfig(run=tiny_finished_run, batch_size=4), [photo])
    next(predictions)
    assert len(taken) <= 4 + 4 * 4 + 1
    predictions.close()


def test_paths_that_do_not_exist_are_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"1 of 2 paths do not exist \(/nowhere\)") as error:
        predict(PredictConfig(run="no run"), [str(tmp_path), "/nowhere"])
    assert error.value.exit_code == 2


def test_classes_called_as_other_columns_have_columns_of_their_own():
    file, classes = io.StringIO(), ("ant", "class", "path", "probability path")
    tool.FORMS["csv"](file, ANSWERS["class"], classes, 3)
    assert file.getvalue() == (
        "path,class,probability,ant,probability class,probability probability path,"
        "probability path\n"
    )


def test_arrays_pictures_and_bytes_get_the_probabilities_of_their_file(tiny_finished_run, tmp_path):
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    pixels = np.random.RandomState(3).randint(0, 255, (40, 30, 3), np.uint8)
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(pixels).save(path, exif=turned)
    upright = np.rot90(pixels, -1)
    given = [
        path,
        path.read_bytes(),
        PIL.Image.open(path),
        PIL.Image.fromarray(upright).convert("RGBA"),
        np.array(upright),
        tf.constant(upright),
        np.float32(upright),
        b"no image",
        upright[..., 0],
    ]
    _, predictions = predict(PredictConfig(run=tiny_finished_run), given)
    names, reasons, outputs = zip(*predictions)
    assert names == (str(path), *(f"image {number}" for number in range(1, 9)))
    for received in outputs[1:6]:
        np.testing.assert_allclose(received, outputs[0], rtol=1e-5)
    assert reasons == (
        *[None] * 6,
        "array of float32 [30, 40, 3]; expected uint8 [H, W, 3]",
        "not in a known image format, named without a suffix",
        "array of uint8 [30, 40]; expected uint8 [H, W, 3]",
    )
    assert outputs[6:] == (None, None, None)


def test_no_image_is_computed_that_was_not_given(tiny_finished_run, monkeypatch):
    sizes, load = [], trained.TrainedRun.load_classifier

    def watched(run, extension):
        classifier = load(run, extension)
        return lambda images: (sizes.append(len(images)), classifier(images))[1]

    monkeypatch.setattr(trained.TrainedRun, "load_classifier", watched)
    images = [np.zeros((8, 8, 3), np.uint8)] * 5
    _, predictions = predict(PredictConfig(run=tiny_finished_run, batch_size=4), images)
    assert len(list(predictions)) == 5 and sizes == [4, 1]


def test_terminal_shows_the_most_probable_classes(tiny_finished_run, run_program):
    photo = os.path.join(os.path.dirname(tiny_finished_run), "photos", "ant", "00.png")
    terminal, end = pty.openpty()
    arguments = [f"--run={tiny_finished_run}", photo, "--top_k=2"]
    code, _, stderr = run_program(_PREDICT, *arguments, stdout=os.ttyname(end))
    os.close(end)
    assert code == 0, stderr
    (_, _, outputs), *_ = predict(PredictConfig(run=tiny_finished_run), [photo])[1]
    (first, p), (second, q), _ = sorted(zip(["ant", "bee", "cat"], outputs), key=lambda c: -c[1])
    said = f"{photo}   {first} {100 * p:.0f} %   {second} {100 * q:.0f} %\r\n"
    assert os.read(terminal, 1000).decode() == said
    assert stderr.startswith("1 image in ")


_OUTPUTS = {"class": (0.003, 0.107, 0.89), "set": (0.002, 0.9, 0.75), "number": (1234.5678,)}


@pytest.mark.parametrize(
    "kind, text, cells",
    [
        (
            "class",
            "cat 89 %   bee 11 %",
            {"class": "cat", "probability": 0.89, "probabilities": (0.003, 0.107, 0.89)},
        ),
        (
            "set",
            "bee 90 %   cat 75 %",
            {"classes": "bee;cat", "probability": 0.67365, "probabilities": (0.002, 0.9, 0.75)},
        ),
        ("number", "ant 1235", {"numbers": (1234.57,)}),
    ],
)
def test_lines_of_each_kind_of_answer(kind, text, cells):
    classes, outputs = ["ant", "bee", "cat"], np.array(_OUTPUTS[kind])
    names = classes[: len(outputs)]
    file = io.StringIO()
    write = tool.FORMS["text"](file, ANSWERS[kind], names, 3)
    for path in ("photo.jpg", "a.jpg"):  # columns stay where they are
        write(path, outputs)
    assert file.getvalue() == f"photo.jpg   {text}\na.jpg       {text}\n"
    file = io.StringIO()
    tool.FORMS["jsonl"](file, ANSWERS[kind], names, 3)("photo.jpg", outputs)
    *_, (key, values) = cells.items()
    expected = {"path": "photo.jpg", **cells, key: dict(zip(names, values))}
    assert json.loads(file.getvalue()) == expected and file.getvalue().endswith("}\n")


def test_two_kinds_of_lines_at_once_are_refused():
    with pytest.raises(UserError, match="--csv=a and --jsonl=b; expected one of them; leave one"):
        PredictConfig(run="x", csv="a", jsonl="b")
