"""Which images a process holds, and that batches are the same whichever process holds them."""

import hashlib

import numpy as np
import pytest

from tl_research.data import mixing, pipeline, shards
from tl_research.data.shards import Members, Shards


def _sha256s(count):
    return tuple(hashlib.sha256(str(i).encode()).hexdigest() for i in range(count))


def _own(count, sha256s):
    """The images of each of `count` processes of four shards."""
    size = 4 // count
    parts = [Shards(4, range(i * size, (i + 1) * size)) for i in range(count)]
    return [Members(part, sha256s, len(sha256s)).own.tolist() for part in parts]


def test_shard_is_the_hash_of_the_content_modulo_their_number():
    sha256s = ("0" * 15 + "7" + "f" * 48, "f" * 16 + "0" * 48, "0" * 15 + "c" + "0" * 48)
    assert Shards(4).of(sha256s).tolist() == [3, 3, 0]
    assert Shards(5).of(sha256s).tolist() == [2, (2**64 - 1) % 5, 2]
    assert Shards(4, range(0, 2)).held(sha256s).tolist() == [2]
    assert Shards(4, range(4)).held(sha256s).tolist() == [0, 1, 2]


def test_processes_divide_the_images_and_those_of_two_have_what_two_of_four_had():
    sha256s = _sha256s(50)
    of_four, of_two = _own(4, sha256s), _own(2, sha256s)
    assert sorted(sum(of_four, [])) == list(range(50))
    assert of_two == [sorted(of_four[0] + of_four[1]), sorted(of_four[2] + of_four[3])]
    assert all(len(own) > 5 for own in of_four)


@pytest.mark.parametrize(
    "processes, index, count, own",
    [(1, 0, 4, range(4)), (2, 1, 4, range(2, 4)), (4, 2, 4, range(2, 3)), (3, 1, 4, range(4))],
)
def test_process_holds_its_shards_or_all_where_they_cannot_be_divided(
    monkeypatch, processes, index, count, own
):
    monkeypatch.setattr(shards.distribution, "num_processes", lambda: processes)
    monkeypatch.setattr(shards.distribution, "process_index", lambda: index)
    assert shards.of_process(count) == Shards(count, own)


def test_rows_are_places_among_the_own_images_and_no_process_holds_more_than_said():
    sha256s = _sha256s(21)
    members = [Members(Shards(4, range(i, i + 1)), sha256s, 21) for i in range(4)]
    for one in members:
        assert one.rows[one.own].tolist() == list(range(len(one.own)))
        assert (np.delete(one.rows, one.own) == -1).all()
        assert one.most_held == max(len(other.own) for other in members)
    assert Members(Shards(4, range(4)), sha256s, 21).rows is None


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_batches_have_equal_rows_of_each_shard_and_each_image_once(batch_size):
    members = Members(Shards(4, range(4)), _sha256s(61), 61)
    orders = pipeline.epoch_orders(3, 2, members)
    assert [sorted(order) for order in orders] == [part.tolist() for part in members.of_shard]
    indices, weights = pipeline.sharded_batches(orders, batch_size)
    assert indices.shape == weights.shape
    assert sorted(indices[weights > 0]) == list(range(61)) and weights.sum() == 61
    for shard, columns in enumerate(np.split(indices, 4, axis=1)):
        assert np.isin(columns, members.of_shard[shard]).all()
    longest = max(map(len, members.of_shard))
    assert len(indices) == -(-longest // min(batch_size // 4, -(-longest // 8) * 8))


def test_order_of_several_shards_depends_on_seed_epoch_and_shard_alone():
    members = Members(Shards(2, range(2)), _sha256s(30), 30)
    first, again = (pipeline.epoch_orders(0, 1, members) for _ in range(2))
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)
    by_hand = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, 1, 1, 2, 1])))
    part = members.of_shard[1]
    assert first[1].tolist() == part[by_hand.permutation(len(part))].tolist()
    assert pipeline.epoch_orders(0, 2, members)[0].tolist() != first[0].tolist()
    assert pipeline.epoch_orders(1, 1, members)[0].tolist() != first[0].tolist()


def test_one_shard_has_the_order_and_batches_of_all_images():
    members = Members(Shards(), None, 30)
    (order,) = pipeline.epoch_orders(5, 3, members)
    np.testing.assert_array_equal(order, pipeline.epoch_order(5, 3, 30))
    for one, other in zip(
        pipeline.sharded_batches([order], 8), pipeline.make_batches(order, 8), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_images_are_blended_with_others_of_their_shard():
    members = Members(Shards(3, range(3)), _sha256s(40), 40)
    draws = mixing.draws_of_shards(mixing.MixUp(0.4), 0, 1, members, 16)
    assert draws.partners.dtype == np.int32 and draws.shares.dtype == np.float32
    for part in members.of_shard:
        assert sorted(draws.partners[part]) == part.tolist()
    assert len(np.unique(draws.shares)) > 35  # no two shards share their draws
    whole = mixing.draws_of_shards(mixing.MixUp(0.4), 0, 1, Members(Shards(), None, 40), 16)
    np.testing.assert_array_equal(whole.partners, mixing.MixUp(0.4).draws(0, 1, 40, 16).partners)
