"""MixUp: its draws are functions of integers, and its blend is the one of the paper."""

import numpy as np
import tensorflow as tf

from tl_research.data import mixing
from tl_research.data.mixing import Mix, MixUp


def test_draws_follow_from_seed_and_epoch():
    partners, shares, _ = MixUp(0.4).draws(3, 5, 1000, 16)
    again, other = MixUp(0.4).draws(3, 5, 1000, 224), MixUp(0.4).draws(3, 6, 1000, 16)
    np.testing.assert_array_equal(partners, again.partners)
    assert sorted(partners) == list(range(1000)) and (partners != other.partners).mean() > 0.9
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)) = 0.1389; its sample of 1000 is within
    # 4 standard errors.
    assert (
        abs(shares.mean() - 0.5) < 4 * np.sqrt(0.1389 / 1000) and abs(shares.var() - 0.1389) < 0.012
    )


def test_draws_are_those_of_all_earlier_versions():
    stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, 3, 5])))
    partners, shares, details = MixUp(0.4).draws(3, 5, 10, 16)
    np.testing.assert_array_equal(partners, stream.permutation(10))
    np.testing.assert_array_equal(shares, stream.beta(0.4, 0.4, 10).astype(np.float32))
    assert partners.dtype == np.int32 and shares.dtype == np.float32 and details == ()


def test_features_of_any_rank_are_blended_in_their_type():
    shares = tf.constant([0.25, 1.0])
    for shape in ([2, 3], [2, 4, 4, 5]):
        rows, others = tf.fill(shape, 8.0), tf.fill(shape, 16.0)
        blend = mixing.blended(*(tf.cast(t, tf.bfloat16) for t in (rows, others)), shares)
        assert blend.dtype == tf.bfloat16 and blend.shape == shape
        np.testing.assert_array_equal(tf.reshape(blend, [2, -1])[:, -1], [14, 8])  # 2 + 12; 8 + 0


def test_blend_is_in_shares():
    images, others = np.full((2, 4, 4, 3), 100, np.float32), np.full((2, 4, 4, 3), 20, np.float32)
    mix = Mix(np.array([1, 0]), tf.constant([0.25, 1.0]))
    blended = MixUp(1.0).blend(tf.constant(images), tf.constant(others), mix)
    np.testing.assert_array_equal(blended[:, 0, 0, 0], [0.25 * 100 + 0.75 * 20, 100])
