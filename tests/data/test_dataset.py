"""What of the images is trained on."""

import json

import numpy as np
import pytest

from tl_research.config import Config
from tl_research.data import dataset
from tl_research.errors import UserError
from tl_research.run.directory import RunDirectory


@pytest.fixture
def load(write_images, tmp_path):
    photos = write_images(tmp_path / "photos", count=40, size=16)

    def load(**settings):
        config = Config(
            dataset="directory",
            data_dir=photos,
            image_size=16,
            workdir=str(tmp_path / "run"),
            resume="never",
            **settings,
        )
        with RunDirectory(config) as directory:
            return dataset.load(config, directory), directory.read_json("split.json")

    return load


def test_class_share_leaves_out_training_images_of_that_class_by_their_content(load):
    (whole, manifest), (half, same) = load(), load(class_share=("bee=0.5", "cat=0.1"))
    assert (
        manifest == same
        and whole.validation.names == half.validation.names
        and whole.test.names == half.test.names
    )
    sha256 = {file["path"]: file["sha256"] for file in manifest["files"]}
    kept = [
        name
        for name in whole.train.names
        if int(sha256[name], 16) / 2**256 < {"ant": 1.0, "bee": 0.5, "cat": 0.1}[name[:3]]
    ]
    assert list(half.train.names) == kept and 0 < sum(name[:3] == "bee" for name in kept) < sum(
        name[:3] == "bee" for name in whole.train.names
    )
    np.testing.assert_array_equal(
        half.train.pixels[-1], whole.train.pixels[whole.train.names.index(kept[-1])]
    )
    counts = np.bincount(half.train.labels)
    assert half.notes[-2:] == (
        f"{counts[1]} training images of bee kept by --class_share",
        f"{counts[2]} training images of cat kept by --class_share",
    )


def test_class_share_that_cannot_be_is_one_line(load):
    with pytest.raises(
        UserError,
        match="--class_share=dee=0.5 names no class; expected one of ant, bee, cat; "
        "did you mean bee?",
    ):
        load(class_share=("dee=0.5",))
    with pytest.raises(UserError, match="leaves none of its"):
        load(class_share=("bee=1e-9",))
    for wrong in ("bee", "=0.5", "bee=x", "bee=0", "bee=1.5"):
        with pytest.raises(UserError, match="--class_share"):
            load(class_share=(wrong,))
    assert json.dumps(Config(class_share=("a=b=0.5",)).class_shares) == '{"a=b": 0.5}'
