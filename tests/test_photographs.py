"""The photographs of tf_flowers in the folder that TL_RESEARCH_FLOWERS names: what no drawn image
shows.
"""

import collections
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tl_research import experiment
from tl_research.config import Config
from tl_research.data import dataset, split
from tl_research.run.directory import RunDirectory

_FLOWERS = os.environ.get("TL_RESEARCH_FLOWERS")
pytestmark = pytest.mark.skipif(
    not _FLOWERS, reason="TL_RESEARCH_FLOWERS does not name the folder of the photographs"
)
# without the one photograph that is among the roses and the tulips
_COUNTS = {"daisy": 633, "dandelion": 898, "roses": 640, "sunflowers": 699, "tulips": 798}


def test_all_photographs_are_used_and_split_in_shares_of_each_class(tmp_path):
    with RunDirectory(
        Config(data_dir=_FLOWERS, image_size=16, workdir=str(tmp_path / "run"))
    ) as directory:
        data = dataset.load(Config(data_dir=_FLOWERS, image_size=16), directory)
        files = directory.read_json("split.json")["files"]
    assert (tmp_path / "run" / "bad_images.csv").read_text().splitlines()[1:] == [
        "roses/15922772266_1167a06620.jpg,"
        '"is in class tulips too, as tulips/15922772266_1167a06620.jpg"',
        "tulips/15922772266_1167a06620.jpg,"
        '"is in class roses too, as roses/15922772266_1167a06620.jpg"',
    ]
    assert (
        data.classes == tuple(_COUNTS)
        and collections.Counter(file["class"] for file in files) == _COUNTS
    )
    assert {side: len(getattr(data, side)) for side in split.SIDES} == collections.Counter(
        file["side"] for file in files
    )
    sides = collections.defaultdict(set)
    for file in files:
        sides[file["group"] or file["path"]].add(file["side"])
    assert all(len(found) == 1 for found in sides.values())
    assert 20 <= len({file["group"] for file in files if file["group"]}) <= 40
    # within an image, or a group of up to three, of each class
    for name, count in _COUNTS.items():
        of_class = collections.Counter(file["side"] for file in files if file["class"] == name)
        for side, share in zip(split.SIDES, (0.8, 0.1, 0.1)):
            assert abs(of_class[side] - share * count) < 3


def test_recipe_learns_from_a_few_photographs_and_names_what_it_learned(tmp_path, capsys):
    for name in _COUNTS:
        os.makedirs(tmp_path / "few" / name)
        for file in sorted(os.listdir(os.path.join(_FLOWERS, name)))[:60]:
            shutil.copy(os.path.join(_FLOWERS, name, file), tmp_path / "few" / name / file)
    experiment.run(
        Config(
            dataset="directory",
            data_dir=str(tmp_path / "few"),
            backbone="EfficientNetLite0",
            image_size=128,
            epochs=(8, 1),
            split=(0.6, 0.3, 0.1),
            precision="float32",
            workdir=str(tmp_path / "run"),
        )
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(phase["audit"]["frozen_changed"] == 0 for phase in results["phases"])
    chosen = next(
        phase for phase in results["phases"] if phase["name"] == results["selected_phase"]
    )
    assert chosen["val_accuracy"] > 0.6  # chance is 0.2; of 85 images, two standard errors are 0.1
    model = tf.keras.models.load_model(tmp_path / "run" / "export" / "model.keras")
    paths = [
        os.path.join(_FLOWERS, name, sorted(os.listdir(os.path.join(_FLOWERS, name)))[i])
        for name in _COUNTS
        for i in range(60, 70)
    ]
    images = tf.stack(
        [tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path)), (128, 128)) for path in paths]
    )
    answers = np.argmax(model(images), axis=1)  # of photographs that the run never had
    assert (answers == np.repeat(np.arange(5), 10)).mean() > 0.5
