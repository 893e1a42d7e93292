"""examples/tfds_catalog.py, on a data set that is made here and not downloaded."""

import json
import os

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

IMAGES = np.random.RandomState(0).randint(0, 256, (45, 18, 14, 3)).astype(np.uint8)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Builds the data set `tiny_images`, of 45 images in two splits, where TFDS looks for it."""

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
                }
            )
            return self.dataset_info_from_configs(
                features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, manager):
            return {"train": self._images(range(30)), "test": self._images(range(30, 45))}

        def _images(self, places):
            for i in places:
                yield i, {"image": IMAGES[i][: 10 + i % 5], "label": i % 3}

        def _generate_examples(self):
            raise NotImplementedError

    TinyImages(data_dir=str(tmp_path / "tfds")).download_and_prepare()
    monkeypatch.setenv("TFDS", "tiny_images")
    monkeypatch.setattr(
        tfds,
        "load",
        lambda *args, _load=tfds.load, **rest: _load(
            *args, data_dir=str(tmp_path / "tfds"), **rest
        ),
    )


def test_run_reads_all_splits_and_is_resumed_bit_for_bit(built, assert_resumes, tmp_path):
    results, _ = assert_resumes(
        "tfds_catalog.py", dataset="tf_flowers", data_dir=None, epochs=(2, 0), crashes=(3,)
    )
    assert results["classes"] == ["ant", "bee", "cat"]
    files = json.loads((tmp_path / "broken" / "split.json").read_text())["files"]
    assert len(files) == 45 and len({file["sha256"] for file in files}) == 45
    assert [sum(file["class"] == name for file in files) for name in results["classes"]] == [15] * 3
    assert os.path.isfile(tmp_path / "broken" / "export" / "model.keras")
