"""Order, augmentation draws and batches are functions of integers.

Pixels are the same from memory and from files.
"""

import dataclasses
import hashlib
import os
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from tl_research.config import Config
from tl_research.data import catalog, decoding, image_check, pipeline
from tl_research.errors import DataError


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    np.random.seed(1)
    first = pipeline.epoch_order(3, 5, 100)
    np.random.seed(2)
    np.testing.assert_array_equal(first, pipeline.epoch_order(3, 5, 100))
    assert sorted(first) == list(range(100))
    for other in (pipeline.epoch_order(3, 6, 100), pipeline.epoch_order(4, 5, 100)):
        assert (first != other).sum() > 80


def test_order_is_the_same_on_every_machine():
    assert pipeline.epoch_order(0, 1, 8).tolist() == [3, 0, 1, 6, 7, 2, 5, 4]


def test_draws_belong_to_the_example_and_the_view():
    draws = pipeline.augmentation_draws(0, 2, 50, 7)
    assert (
        draws.shape == (50, 7)
        and draws.dtype == np.float32
        and draws.min() >= 0
        and draws.max() < 1
    )
    # more examples move no draw
    np.testing.assert_array_equal(draws[:20], pipeline.augmentation_draws(0, 2, 20, 7))
    for other in (
        pipeline.augmentation_draws(0, 3, 50, 7),
        pipeline.augmentation_draws(1, 2, 50, 7),
    ):
        assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.2
    assert len(np.unique(draws)) == draws.size


def test_operation_of_another_name_draws_other_numbers_and_changes_none():
    built_in = pipeline.augmentation_draws(0, 2, 500, 7)
    jitter, other = (pipeline.augmentation_draws(0, 2, 500, 3, name) for name in ("jitter", "blur"))
    assert jitter.shape == (500, 3)
    for one, two in ((built_in[:, :3], jitter), (built_in[:, :3], other), (jitter, other)):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1
    again = pipeline.augmentation_draws(0, 2, 500, 3, "jitter")
    np.testing.assert_array_equal(jitter, again)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 16])
def test_batches_hold_every_example_once_at_weight_1(batch_size):
    order = pipeline.epoch_order(0, 1, 10)
    indices, weights = pipeline.make_batches(order, batch_size)
    assert indices.shape == weights.shape == (-(-10 // batch_size), batch_size)
    assert indices.dtype == np.int32 and weights.dtype == np.float32
    np.testing.assert_array_equal(indices[weights == 1], order)
    assert weights.sum() == 10 and set(np.unique(weights)) <= {0, 1}
    # filling is an example, so that nothing odd is computed
    assert set(indices[weights == 0]) <= {order[-1]}


@pytest.mark.parametrize("count, places", [(1, 8), (8, 8), (9, 16), (32, 32), (100, 96)])
def test_batch_costs_no_more_than_its_images(count, places):
    indices, weights = pipeline.make_batches(np.arange(count), 96)
    assert indices.shape == (-(-count // 96), places) and weights.sum() == count


def test_images_and_draws_of_an_example_do_not_depend_on_the_batch_size(
    make_examples, tiny_backbone
):
    from tl_research.models.classifier import Classifier
    from tl_research.training import features

    examples = make_examples(11)
    classifier = Classifier(
        Config(backbone="Tiny", weights="none", image_size=16, augment="flip,rotation=0.1"), 3
    )
    source = features.LiveSource(
        classifier, examples, classifier.head_boundary, features.Views(0, 2, True)
    )
    small, large = (
        [features.compute_features(source, batch_size).kept(view)[0].numpy() for view in (0, 1)]
        for batch_size in (2, 8)
    )
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-5)
    assert len(small[0]) == 11 and np.abs(small[0] - small[1]).max() > 1e-2  # the views differ


@pytest.fixture
def files(tmp_path):
    """Paths of seven images of many kinds."""
    pixels = [
        np.random.RandomState(i).randint(0, 256, (20 + i, 30, 3)).astype(np.uint8) for i in range(7)
    ]
    images, turned = list(map(PIL.Image.fromarray, pixels)), PIL.Image.Exif()
    turned[0x0112] = 6
    images[2] = PIL.Image.fromarray(pixels[2][..., 0].astype(np.uint16) * 257)
    images[3] = images[3].convert("CMYK")
    images[4] = images[4].convert("P")
    kinds = ("png", "jpg", "png", "jpg", "png", "webp", "gif")
    paths = [str(tmp_path / f"{i}.{kind}") for i, kind in enumerate(kinds)]
    for i, (image, path) in enumerate(zip(images, paths)):
        image.save(path, **({"exif": turned} if i in (1, 5) else {}))
    return tuple(paths)


def _examples(files, in_memory):
    pixels = None
    if in_memory:
        images = [catalog.ImageFile(path, path, 0, None) for path in files]
        found = catalog.Catalog(("a",), tuple(images), {}, (), ())
        pixels = tf.constant(image_check.check_images(found, 16, keep_pixels_bytes=1 << 30).pixels)
    return pipeline.Examples(files, files, np.zeros(7, np.int32), 16, pixels)


def test_streamed_images_equal_those_in_memory_in_order(files):
    indices, _ = pipeline.make_batches(np.array([6, 0, 3, 2, 5, 1, 4]), 3)
    memory, streamed = _examples(files, True), _examples(files, False)
    batches = list(streamed.stream(indices))
    assert len(batches) == 3
    for row, batch in zip(indices, batches):
        assert batch.shape == (3, 16, 16, 3) and batch.dtype == tf.uint8
        np.testing.assert_array_equal(batch, tf.gather(memory.pixels, row))
    np.testing.assert_array_equal(streamed.images([4, 1]), memory.images([4, 1]))
    assert len({bytes(image.numpy().tobytes()) for image in memory.pixels}) == 7


def test_image_that_is_gone_when_it_is_needed_is_named(files):
    os.remove(files[1])
    with pytest.raises(
        DataError,
        match=f"image '{re.escape(files[1])}' was good when the run began and cannot be used now "
        r"\(No such file or directory\)",
    ):
        list(_examples(files, False).stream(np.array([[0, 1], [0, 0]])))


def test_image_that_is_another_one_when_it_is_needed_is_named(files):
    sha256s = tuple(hashlib.sha256(open(file, "rb").read()).hexdigest() for file in files)
    examples = dataclasses.replace(_examples(files, False), sha256s=sha256s)
    assert len(list(examples.stream(np.array([[0, 1]])))) == 1
    shutil.copy(files[0], files[1])
    expected = f"image '{re.escape(files[1])}' was good .* now \\(its content has changed\\)"
    for read in (lambda: list(examples.stream(np.array([[0, 1]]))), lambda: examples.original(1)):
        with pytest.raises(DataError, match=expected):
            read()
    with pytest.raises(DataError, match="at most --max_image_pixels, 9"):
        dataclasses.replace(examples, max_pixels=9).original(0)


def test_file_that_becomes_a_pipe_or_grows_while_it_is_read_is_not_waited_for(
    tmp_path, monkeypatch
):
    path, real = str(tmp_path / "a.png"), os.stat
    os.mkfifo(path)
    (tmp_path / "file").write_bytes(b"x" * 99)
    monkeypatch.setattr(decoding.os, "stat", lambda *_, **__: real(tmp_path / "file"))
    with pytest.raises(decoding.BadImage, match="empty file"):
        decoding.read_file(path)
    monkeypatch.setattr(decoding, "MAX_BYTES", 99)
    (tmp_path / "large").write_bytes(b"x" * 1000)
    assert len(decoding.read_file(str(tmp_path / "large"))) == 99


def test_stream_reads_names_that_are_not_utf8(tmp_path):
    path = bytes(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        PIL.Image.new("RGB", (16, 16), (1, 2, 3)).save(file, "PNG")

    examples = pipeline.Examples(("x",), (os.fsdecode(path),), np.zeros(1, np.int32), 16, None)
    assert (examples.images([0]).numpy() == [1, 2, 3]).all()
