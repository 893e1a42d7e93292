"""examples/cutmix.py: the box, its share, and what it needs."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tl_research import extension
from tl_research.errors import UserError

EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "cutmix.py")
LIVE = {"augment": "flip,cutmix=1.0"}


def _mixing(alpha=1.0):
    return extension.load(EXAMPLE).augmentations["cutmix"](alpha)


def test_share_is_what_is_left_of_each_image():
    mixing, size = _mixing(), 16
    mix = mixing.draws(3, 5, 40, size)
    own = np.zeros((40, size, size, 3), np.float32)
    blended = mixing.blend(
        tf.constant(own), tf.constant(own + 1), tf.nest.map_structure(tf.constant, mix)
    ).numpy()
    np.testing.assert_array_equal(mix.shares, (blended[..., 0] == 0).mean(axis=(1, 2)))
    assert 0 < mix.shares.min() < 0.3 and mix.shares.max() > 0.9
    for image, first, last in zip(blended, *mix.details):
        expected = np.zeros((size, size, 3))
        expected[first[0] : last[0], first[1] : last[1]] = 1
        np.testing.assert_array_equal(image, expected)


def test_box_has_the_area_of_the_paper_until_the_border_cuts_it():
    """The share lambda is uniform, as Beta(1, 1) is."""
    size = 1000
    mix = _mixing().draws(0, 1, 4000, size)
    first, last = mix.details
    whole = ((first > 0) & (last < size)).all(axis=1)
    sides = (last - first)[whole]
    assert np.abs(sides[:, 0] - sides[:, 1]).max() <= 1  # W sqrt(1 - lambda), H sqrt(1 - lambda)
    # A box of side s = sqrt(1 - lambda), with density 2 s on [0, 1], whose center is uniform keeps
    # on average s - s^2 / 4 of each side: E[(s - s^2/4)^2] = 2 (1/4 - 1/10 + 1/96) = 0.3208.
    area = 1 - mix.shares
    assert abs(area.mean() - 0.3208) < 4 * area.std() / np.sqrt(4000)
    again, other = _mixing().draws(0, 1, 4000, size), _mixing().draws(0, 2, 4000, size)
    np.testing.assert_array_equal(mix.shares, again.shares)
    assert sorted(mix.partners) == list(range(4000)) and (mix.partners != other.partners).any()


def test_run_is_live_and_resumed_bit_for_bit(assert_resumes, capsys):
    results, _ = assert_resumes("cutmix.py", precision="mixed_float16", verbose=True, **LIVE)
    said = capsys.readouterr().out
    assert "training live, since CutMix blends them anew every epoch" in said
    assert "CutMix: images and labels are blended\n" in said
    assert results["feature_cache"] == "off"


def test_what_cannot_be_blended_is_one_line(tiny_run):
    with pytest.raises(UserError, match="CutMix with .* training images that do not fit into"):
        tiny_run("streamed", "cutmix.py", cache_pixels=0, **LIVE)
    for name, settings in (("both", {"mixup": 0.4}), ("memory", {"feature_cache": "memory"})):
        with pytest.raises(UserError, match="CutMix with --feature_cache=.*expected one that"):
            tiny_run(name, "cutmix.py", **settings, **LIVE)
