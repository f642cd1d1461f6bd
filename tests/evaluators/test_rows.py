"""Rows on disk: shares of several processes, order, half-written lines, and data sets that are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from samtrain.evaluators import Evaluator, Part, Row
from samtrain.evaluators.config import KnownSet
from samtrain.evaluators.rows import check_inputs, finished_images, measure_images, rows_by_part
from samtrain.evaluators.sets import find_sets

PARTS = [Part("one", ["a", "b", "c"], "weights"), Part("two", ["a"], "weights"), Part("three", ["x"], "other weights")]


@dataclass
class Image:
    key: str


class Counting(Evaluator):
    """Measures images that are only keys, and counts the models that it is given."""

    loaded = 0

    def open(self, part: Part) -> Iterator[Image]:
        return map(Image, part.sources)

    def load(self, sam: object) -> None:
        self.loaded += 1

    def rows(self, image: Image) -> list[Row]:
        return [{"key": image.key, "value": float("nan")}] * 2

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        return {"rows": float(len(rows))}


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtrain.evaluators.rows.load_sam", lambda path: torch.nn.Identity())


def measure(folder: Path, index: int = 0, count: int = 1) -> Counting:
    evaluator, finished = Counting(), finished_images(folder)
    path = folder / f"rows_{index}.jsonl"
    measure_images(evaluator, PARTS, path, finished=finished, device=torch.device("cpu"), index=index, count=count)
    return evaluator


def test_processes_share_the_images_and_the_rows_keep_their_order(tmp_path: Path) -> None:
    for index in (1, 0):
        measure(tmp_path, index, count=2)
    rows = rows_by_part(tmp_path)
    assert [row["key"] for row in rows["one"]] == ["a", "a", "b", "b", "c", "c"]
    assert finished_images(tmp_path) == {("one", "a"), ("one", "b"), ("one", "c"), ("two", "a"), ("three", "x")}


def test_a_model_is_loaded_once_per_checkpoint_and_only_for_missing_images(tmp_path: Path) -> None:
    assert measure(tmp_path).loaded == 2
    assert measure(tmp_path).loaded == 0


def test_a_half_written_line_is_measured_again(tmp_path: Path) -> None:
    measure(tmp_path)
    path = tmp_path / "rows_0.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-10])
    assert ("three", "x") not in finished_images(tmp_path)
    assert measure(tmp_path).loaded == 1 and path.read_text() == whole
    assert len(whole.splitlines()) == 5 and set(json.loads(whole.splitlines()[0])) == {"set", "number", "image", "rows"}


def test_two_images_with_one_key_are_refused(tmp_path: Path) -> None:
    parts = [Part("one", ["a", "a"], "weights")]
    with pytest.raises(ValueError, match="one has two images with the key 'a'"):
        measure_images(Counting(), parts, tmp_path / "rows.jsonl", finished=set(), device=torch.device("cpu"))


def test_rows_belong_to_their_inputs(tmp_path: Path) -> None:
    check_inputs(tmp_path, {"weights": "1", "a.tar": "2"})
    check_inputs(tmp_path, {"weights": "1", "a.tar": "2"})
    with pytest.raises(ValueError, match="a.tar has changed"):
        check_inputs(tmp_path, {"weights": "1", "a.tar": "3"})


def known(shards: str) -> KnownSet:
    return KnownSet(shards, "test", 1, 2, "CC0", "https://example.org", "Download it.")


def locate(given: str | list[str]) -> list[str]:
    if given == "nowhere":
        raise ValueError("no shard matches 'nowhere'")
    return [given] if isinstance(given, str) else given


def test_known_sets_may_be_missing_and_others_may_not(caplog: pytest.LogCaptureFixture) -> None:
    found, missing = find_sets({"here": known("1.tar"), "not_here": known("nowhere"), "mine": ["2.tar"]}, locate)
    assert found == {"here": ["1.tar"], "mine": ["2.tar"]} and list(missing) == ["not_here"]
    assert "not_here was not found at nowhere. Its licence: CC0. How to get it: Download it." in caplog.text
    with pytest.raises(ValueError, match="none of the 1 datasets was found"):
        find_sets({"not_here": known("nowhere")}, locate)
    with pytest.raises(ValueError, match="no shard matches"):
        find_sets({"mine": "nowhere"}, locate)
