"""The pool: which images each round and the probe get."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pretend_predictor import write_pool

from samtrain.data_engine.pool import Pool, divide_pool


def test_no_image_is_taken_twice_and_the_seed_decides(tmp_path: Path) -> None:
    pool = Pool(write_pool(tmp_path, 20, num=1))
    chosen = pool.select([4, 5, 6], probe_images=3, seed=1)
    parts = [chosen.probe, *chosen.rounds]
    assert [len(part) for part in parts] == [3, 4, 5, 6]
    assert len({item for part in parts for item in part}) == 18
    assert chosen == pool.select([4, 5, 6], probe_images=3, seed=1)
    assert chosen != pool.select([4, 5, 6], probe_images=3, seed=2)
    item = chosen.rounds[0][0]
    assert pool.read(item).key == pool.key(item)


def test_a_small_pool_is_divided_in_proportion() -> None:
    assert divide_pool(100, [10, 20], 5) == (5, [10, 20])
    assert divide_pool(20, [10, 20, 10], 10) == (4, [4, 8, 4])
    probe, counts = divide_pool(53, [30, 30, 30, 30, 30, 30], 20)
    assert probe == 10 and sum(counts) == 43 and min(counts) == 7


def test_a_pool_with_fewer_images_than_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 3 images, too few for 6 rounds"):
        divide_pool(3, [10] * 6, 0)


def test_names_have_to_be_unique(tmp_path: Path) -> None:
    (tar, _) = write_pool(tmp_path, 4, num=1)
    again = str(shutil.copy(tar, tmp_path / "again.tar"))
    with pytest.raises(ValueError, match="holds 2 names twice, such as 'scene_000'"):
        Pool([tar, again])


def test_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="copy the tars to a disk"):
        Pool(["https://example.org/a.tar"])


def test_annotated_images_come_last_and_never_in_the_probe(tmp_path: Path) -> None:
    pool = Pool(write_pool(tmp_path, 20, num=1))
    first = pool.select([6], probe_images=4, seed=1)
    used = {pool.key(item) for item in first.rounds[0]}
    second = pool.select([5, 8], probe_images=4, seed=1, annotated=used)
    assert second.probe == first.probe
    order = [pool.key(item) for part in second.rounds for item in part]
    assert not set(order[:10]) & used and set(order[10:]) <= used and len(set(order)) == 13
    # all but the probe taken: the probe again, whatever the seed
    rest = {pool.key(item) for item in pool.select([16], probe_images=4, seed=1).rounds[0]}
    again = pool.select([16], probe_images=9, seed=5, annotated=rest)
    assert {pool.key(item) for item in again.probe} == {pool.key(item) for item in first.probe}
    assert {pool.key(item) for item in again.rounds[0]} == rest
