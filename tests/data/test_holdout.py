"""Holding back: groups are not divided, no split is empty without need, and the same call gives the same result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from samtrain.data.prepare.holdout import grouping, hold_back, joined_groups

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
    names = ["x/a.png", "sub/b.png", "c.png", "d.png"]
    by_csv = grouping("images.csv:patient", tmp_path / "images", names)  # beside the folder of images
    assert [by_csv(name) for name in names] == ["p1", "p2", None, None]
    assert grouping(r"^(\w+?)_", tmp_path, [])("slide7_04.png") == "slide7"
    assert grouping(r"^[a-z]+\d", tmp_path, [])("slide7_04.png") == "slide7"
    assert grouping(r"^(\w+?)_", tmp_path, [])("alone.png") is None
    assert grouping(None, tmp_path, [])("alone.png") == "alone.png"


def test_a_csv_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_bytes("file_name,patient\na.png,Müller\n".encode("latin-1"))
    with pytest.raises(ValueError, match="images.csv is not in UTF-8.*save it as CSV UTF-8"):
        grouping("images.csv:patient", tmp_path, ["a.png"])


def test_a_row_of_the_csv_belongs_to_one_image(tmp_path: Path) -> None:
    """day2/p0.png once took the patient of day1/p0.png, so that one patient could be in two splits."""
    (tmp_path / "images.csv").write_text("file_name,patient\np0.png,a\nday1/p1.png,b\n")
    names = ["day1/p0.png", "day2/p0.png", "day1/p1.png", "day2/p1.png"]
    by_csv = grouping("images.csv:patient", tmp_path, names)
    assert [by_csv(name) for name in names] == [None, None, "b", None]


def test_an_image_with_two_groups_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("file_name,patient\na.png,p1\na.png,p2\n")
    with pytest.raises(ValueError, match="a.png in the groups 'p1' and 'p2'"):
        grouping("images.csv:patient", tmp_path, ["a.png"])


def test_groups_that_share_an_image_become_one() -> None:
    images = [("a", "1"), ("b", "2"), ("c", "3"), ("b", "1"), ("d", "3"), ("e", "4"), ("c", "2")]
    assert joined_groups(images) == {"a": "a", "b": "a", "c": "a", "d": "a", "e": "e"}


@pytest.mark.parametrize(
    ("group_by", "message"),
    [("images.csv:slide", "no column 'slide'.*patient"), ("none.csv:patient", "was not found"), ("(", "expression")],
)
def test_a_wrong_group_by_is_refused(tmp_path: Path, group_by: str, message: str) -> None:
    (tmp_path / "images.csv").write_text("file_name,patient\na.png,p1\n")
    with pytest.raises(ValueError, match=message):
        grouping(group_by, tmp_path, [])
