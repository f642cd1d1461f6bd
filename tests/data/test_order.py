from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from samtrain.data.order import EndlessBatchSampler


def sampler(**changes) -> EndlessBatchSampler:
    options = {"shard_lengths": [[7, 5, 0, 9]], "batch_size": 4, "seed": 3, **changes}
    return EndlessBatchSampler(**options)


def test_each_epoch_shows_each_sample_once():
    order = sampler()
    assert order.epoch_length == 21
    epochs = [[order.at(position) for position in range(e * 21, e * 21 + 21)] for e in range(3)]
    for e, pairs in enumerate(epochs):
        assert sorted(pairs) == [(e, index) for index in range(21)]
    assert len({tuple(index for _, index in pairs) for pairs in epochs}) == 3, "each epoch has an order of its own"


def test_iteration_is_the_function_of_position_and_start_step_skips():
    order = sampler()
    batches = list(islice(order, 12))
    assert batches == [order.batch(step) for step in range(12)] == [sampler().batch(step) for step in range(12)]
    assert list(islice(sampler(start_step=5), 7)) == batches[5:]
    assert order.batch(10**12) == sampler().batch(10**12), "any position at once"
    assert list(islice(sampler(seed=4), 12)) != batches


def test_the_number_of_shards_changes_nothing():
    whole = sampler(shard_lengths=[[21]], weights=[2.0])
    for lengths in ([7, 5, 0, 9], [1] * 12 + [9], [20, 1]):
        order = sampler(shard_lengths=[lengths], weights=[2.0], block_shards=26)
        assert [order.batch(step) for step in range(30)] == [whole.batch(step) for step in range(30)]


def test_ranks_share_the_global_batch():
    whole = sampler(batch_size=8)
    for step in (0, 3, 77):
        parts = [sampler(batch_size=2, rank=rank, world_size=4).batch(step) for rank in range(4)]
        assert sum(parts, []) == whole.batch(step)


def test_weights_are_repeat_factors():
    order = sampler(shard_lengths=[[10, 20], [4, 6], [100]], weights=[1.0, 2.5, 0.07])
    assert order.epoch_length == 30 + 25 + 7
    halves = set()
    for e in range(20):
        pairs = [order.at(position) for position in range(e * 62, e * 62 + 62)]
        assert len(set(pairs)) == 62, "no two draws alike"
        counts = Counter(index for _, index in pairs)
        assert all(counts[index] == 1 for index in range(30))
        assert all(counts[index] in (2, 3) for index in range(30, 40))
        halves |= {index for index in range(40, 140) if counts[index]}
        assert {epoch // 3 for epoch, _ in pairs} == {e}
    assert len(halves) > 60, "the fraction is drawn anew each epoch"


def test_a_small_fraction_of_a_small_set_is_still_shown():
    order = sampler(shard_lengths=[[3], [50]], weights=[0.01, 1])
    seen = Counter(index for position in range(51 * 30) for _, index in [order.at(position)])
    assert all(seen[index] for index in range(3))


def test_reads_stay_in_a_block_of_shards():
    order = sampler(shard_lengths=[[10] * 40], block_shards=4)
    for start in range(0, 400, 40):
        shards = {order.at(position)[1] // 10 for position in range(start, start + 40)}
        assert len(shards) == 4
    firsts = [order.at(position)[1] // 10 for position in range(40)]
    assert firsts != sorted(firsts), "shuffled inside the block"


def test_sources_are_mixed_evenly():
    order = sampler(shard_lengths=[[10] * 90, [10]], weights=[1, 10], block_shards=5)
    for start in range(0, 1000, 200):
        few = sum(order.at(position)[1] >= 900 for position in range(start, start + 200))
        assert 0 < few <= 50


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"weights": [0]}, "give each source a weight above 0"),
        ({"weights": [1, 1]}, "for 1 sources"),
        ({"shard_lengths": [[0, 0]]}, "all shards of data.train are empty"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_weights_and_sizes_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        sampler(**changes)
