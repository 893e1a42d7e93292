"""`python -m tl_research.predict`: the calibrated probabilities of the saved model, in order,
whatever else lies among the images.
"""

import csv
import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research import predict as tool
from tl_research.errors import DataError
from tl_research.predict import PredictConfig, predict


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


def test_images_of_any_size_get_the_probabilities_of_the_saved_model(finished_run, tmp_path):
    paths = []
    for number, size in enumerate(((20, 50), (64, 64), (33, 31))):
        paths.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(
            np.random.RandomState(number).randint(0, 255, (*size, 3), np.uint8)
        ).save(paths[-1])
    run, predictions = predict(PredictConfig(run=finished_run, batch_size=2), paths)
    predictions = list(predictions)
    assert run.classes == ("ant", "bee", "cat") and [path for path, _, _ in predictions] == paths
    for path, reason, probabilities in predictions:
        assert reason is None
        np.testing.assert_allclose(probabilities, _expected(finished_run, path), atol=1e-4)


def _run(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "tl_research.predict", *arguments],
        capture_output=True,
        text=True,
        **kwargs,
    )


def test_folder_with_bad_images_prints_a_row_for_each_good_one(finished_run, tmp_path):
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    photos = os.path.join(os.path.dirname(finished_run), "photos")
    for number, name in enumerate(("a.png", "deep/c,d.png", "e.png")):
        os.link(os.path.join(photos, "bee", f"{number:02d}.png"), folder / name)
    (folder / "b.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    (folder / "deep" / "notes.txt").write_text("no image")
    (folder / "outside.png").symlink_to(os.path.join(photos, "ant", "00.png"))
    done = _run(f"--run={finished_run}", str(folder), "--batch_size=2")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
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
    named, linked, counted, others = done.stderr.splitlines()
    assert named == f"{folder}/b.jpg: no known image format named .jpg"
    assert linked.startswith(f"{folder}/outside.png: link that leaves the data directory")
    assert counted.startswith("3 images in ") and counted.endswith("s, 2 could not be used")
    assert others == "2 other files are not used: 2 .txt"


def test_photograph_of_a_phone_gets_the_probabilities_of_the_upright_one(finished_run, tmp_path):
    upright = np.random.RandomState(0).randint(0, 255, (40, 30, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored a quarter counterclockwise
    PIL.Image.fromarray(upright).save(tmp_path / "upright.png")
    PIL.Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    names = ("upright.png", "turned.png")
    _, predictions = predict(
        PredictConfig(run=finished_run), [str(tmp_path / name) for name in names]
    )
    (_, _, expected), (_, _, received) = predictions
    np.testing.assert_array_equal(received, expected)


def test_pictures_are_bounded_as_in_training(finished_run, tmp_path):
    flags = os.path.join(finished_run, "flags.txt")
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
        PredictConfig(run=finished_run), [str(tmp_path / name) for name in names]
    )
    (_, reason, _), (_, reduced, _) = predictions
    assert reason == "40 x 40 pixels; at most --max_image_pixels, 1,000" and reduced is None


def test_file_of_rows_is_written_whole_and_nothing_usable_is_exit_2(finished_run, tmp_path):
    out, photo = (
        tmp_path / "out.csv",
        os.path.join(os.path.dirname(finished_run), "photos", "ant", "00.png"),
    )
    done = _run(f"--run={finished_run}", photo, f"--csv={out}")
    assert done.returncode == 0 and done.stdout == "" and len(out.read_text().splitlines()) == 2
    assert not [name for name in os.listdir(tmp_path) if ".tmp-" in name]
    (tmp_path / "bad.png").write_text("no image")
    done = _run(f"--run={finished_run}", str(tmp_path / "bad.png"))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "error: none of 1 images can be used"
    )
    done = _run(f"--run={finished_run}", photo, f"--csv={tmp_path}/nowhere/out.csv")
    assert (
        done.returncode == 9
        and "No such file or directory" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_only_a_few_batches_are_in_memory_at_once(finished_run, tmp_path, monkeypatch):
    photo = os.path.join(os.path.dirname(finished_run), "photos", "ant", "00.png")
    taken = []

    def images(places, others):
        for number in range(1000):
            taken.append(number)
            yield photo, None

    monkeypatch.setattr(tool, "image_files", images)
    _, predictions = predict(PredictConfig(run=finished_run, batch_size=4), [photo])
    next(predictions)
    assert len(taken) <= 4 + 4 * 4 + 1
    predictions.close()


def test_paths_that_do_not_exist_are_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"1 of 2 paths do not exist \(/nowhere\)") as error:
        predict(PredictConfig(run="no run"), [str(tmp_path), "/nowhere"])
    assert error.value.exit_code == 2


def test_classes_called_as_other_columns_have_columns_of_their_own():
    first = ("path", "class", "probability")
    assert tool._columns(first, ("ant", "class", "path", "probability path")) == [
        *first,
        *("ant", "probability class", "probability probability path", "probability path"),
    ]
