"""Holding back: groups are not divided, no split is empty without need, and the same call gives the same result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from samtrain.data.prepare.holdout import grouping, hold_back

FRACTIONS = {"val": 0.15, "test": 0.15}


@pytest.mark.parametrize("seed", range(8))
def test_shares_are_kept_and_nothing_is_empty(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [f"scene{i}" for i in range(rng.integers(3, 60)) for _ in range(rng.integers(1, 9))]
    chosen = hold_back(groups, fractions=FRACTIONS, seed=seed)
    assert chosen == hold_back(groups[::-1], fractions=FRACTIONS, seed=seed)
    assert set(chosen) == set(groups) and set(chosen.values()) == {"pool", "val", "test"}
    if len(chosen) > 15:
        images = Counter(chosen[group] for group in groups)
        for split in FRACTIONS:
            assert abs(images[split] / len(groups) - 0.15) < 0.08


def test_another_seed_holds_back_other_images() -> None:
    groups = [str(i) for i in range(50)]
    assert hold_back(groups, fractions=FRACTIONS, seed=0) != hold_back(groups, fractions=FRACTIONS, seed=1)


@pytest.mark.parametrize(
    ("groups", "want"), [(["a"], {"pool"}), (["a", "b"], {"pool", "test"}), (["a", "b", "c"], {"pool", "test", "val"})]
)
def test_with_few_groups_the_pool_comes_first_then_test(groups: list[str], want: set[str]) -> None:
    for seed in range(10):
        assert set(hold_back(groups, fractions=FRACTIONS, seed=seed).values()) == want


def test_one_giant_group_goes_to_the_pool() -> None:
    groups = ["giant"] * 90 + ["a", "b", "c", "d"]
    for seed in range(10):
        chosen = hold_back(groups, fractions=FRACTIONS, seed=seed)
        assert chosen["giant"] == "pool" and set(chosen.values()) == {"pool", "val", "test"}


def test_a_share_of_zero_stays_empty() -> None:
    chosen = hold_back(list("abcdef"), fractions={"val": 0.2, "test": 0.0}, seed=0)
    assert set(chosen.values()) == {"pool", "val"}


def test_groups_by_csv_and_by_expression(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("id,file_name,patient\n1,a.png,p1\n2,sub/b.png,p2\n3,c.png,\n")
    by_csv = grouping("images.csv:patient", tmp_path / "images")  # beside the folder of images
    assert [by_csv(name) for name in ("x/a.png", "sub/b.png", "c.png", "d.png")] == ["p1", "p2", None, None]
    assert grouping(r"^(\w+?)_", tmp_path)("slide7_04.png") == "slide7"
    assert grouping(r"^[a-z]+\d", tmp_path)("slide7_04.png") == "slide7"
    assert grouping(r"^(\w+?)_", tmp_path)("alone.png") is None
    assert grouping(None, tmp_path)("alone.png") == "alone.png"


@pytest.mark.parametrize(
    ("group_by", "message"),
    [("images.csv:slide", "no column 'slide'.*patient"), ("none.csv:patient", "was not found"), ("(", "expression")],
)
def test_a_wrong_group_by_is_refused(tmp_path: Path, group_by: str, message: str) -> None:
    (tmp_path / "images.csv").write_text("file_name,patient\na.png,p1\n")
    with pytest.raises(ValueError, match=message):
        grouping(group_by, tmp_path)
