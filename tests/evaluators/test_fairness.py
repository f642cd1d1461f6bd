"""Metrics of groups, and the two ways to say an object's group."""

from __future__ import annotations

from pathlib import Path

import pytest

from samtrain.evaluators import Fairness, Part
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.fairness import read_groups
from tests.evaluators.records import record_with


def row(key: str, group: str | None, one: float, three: float) -> dict:
    return {"key": key, "object": 0, "group": group, "iou_1": one, "iou_3": three}


def test_means_and_gaps_of_groups() -> None:
    rows = [row("a", "x", 0.2, 0.8), row("b", "x", 0.4, 0.9), row("a", "y", 0.9, 0.9), row("b", None, 0.0, 0.0)]
    evaluator = Fairness(ZeroShotConfig(protocol="fairness", group_by="site"))
    found = evaluator.summary(rows)
    assert found["x/miou_1"] == pytest.approx(0.3) and found["x/miou_3"] == pytest.approx(0.85)
    assert (found["x/objects"], found["y/objects"], found["ungrouped"]) == (2, 1, 1)
    assert found["gap_1"] == pytest.approx(0.6) and found["gap_3"] == pytest.approx(0.05)
    # two images, drawn twice with replacement: the mean is 0.2, 0.3 or 0.4, the ends with a probability of a quarter each
    assert (found["x/miou_1_low"], found["x/miou_1_high"]) == (pytest.approx(0.2), pytest.approx(0.4))
    assert found["y/miou_1_low"] == found["y/miou_1_high"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="zero_shot.group_by"):
        evaluator.summary([row("a", None, 0.1, 0.1)])


def test_groups_are_fields_or_columns(tmp_path: Path) -> None:
    annotation = {"id": 2, "site": "north/west", "empty": " "}
    one = record_with(annotation)
    assert read_groups("site", None)(one, annotation) == "north west"  # a slash would separate names of metrics
    assert read_groups("empty", None)(one, annotation) is None
    assert read_groups("nothing", None)(one, annotation) is None
    table = tmp_path / "groups.csv"
    table.write_text("key,id,site\nimage,2,north\nother,2,south\n")
    assert read_groups("site", table)(one, annotation) == "north"
    assert read_groups("site", table)(one, {"id": 5}) is None
    table.write_text("key,id,site\nimage,2,north\nimage,2,south\n")
    with pytest.raises(ValueError, match="object 2 of image twice"):
        read_groups("site", table)


def test_a_table_names_images_by_file_and_ids_of_any_type(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("key,id,site\n day/a.jpg,2,north\nday/a.jpg,x1,south\n")
    one = record_with({"id": 2.0}, {"id": "x1"})
    one.annotation["image"]["source_name"] = "day/a.jpg"
    group_of = read_groups("site", table)
    assert [group_of(one, each) for each in one.annotation["annotations"]] == ["north", "south"]


def test_a_table_that_fits_no_object_is_refused_with_both_kinds_of_ids(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "groups.csv").write_text("key,id,site\na.jpg,2,north\n")
    config = ZeroShotConfig(protocol="fairness", group_by="site", groups=str(tmp_path / "groups.csv"))
    monkeypatch.setattr("samtrain.evaluators.evaluator.records", lambda *_: iter([record_with({"id": 2}, {"id": 3})]))
    with pytest.raises(ValueError, match="the table has a.jpg 2, and the set has image 2, image 3"):
        Fairness(config).check(Part("one", [], ""))
    (tmp_path / "groups.csv").write_text("key,id,site\nimage,2,north\n")
    Fairness(config).check(Part("one", [], ""))
    assert "1 of the 2 objects of one have no group" in caplog.text
