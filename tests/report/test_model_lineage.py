"""The lineage chart: arrows as in the ledger, everything inside the drawing, nothing overlapping."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from demo_run import PROMOTED, write_demo

from samtrain.report import write_report
from samtrain.report.model_lineage import lineage_chart

Line = dict[str, Any]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    run_dir = write_demo(tmp_path_factory.mktemp("demo") / "run", rounds=11)
    return [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]


def svg(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.S)[0])


def size(figure: str) -> tuple[float, float]:
    _, _, width, height = map(float, svg(figure).attrib["viewBox"].split())
    return width, height


def parents(figure: str) -> dict[int, int]:
    """Returns the round from which each round's arrow comes, by its tooltip."""
    titles = [path.findtext("title") or "" for path in svg(figure).iter("path")]
    pairs = [re.fullmatch(r"model of round (\d+), trained from that of round (\d+)", title) for title in titles]
    return {int(pair[1]): int(pair[2]) for pair in pairs if pair}


def rows(figure: str, rounds: int) -> list[list[str]]:
    """The numbers below the bars, a list a round."""
    texts = list(svg(figure).iter("text"))[-rounds * 3 :]
    words = [text.text or "" for text in texts]
    return [words[i : i + 3] for i in range(0, len(words), 3)]


def test_arrows_come_only_from_promoted_models(ledger: list[Line]) -> None:
    found = parents(lineage_chart(ledger))
    assert found == {n: max(m for m in range(n) if PROMOTED[m]) for n in range(1, 12)}
    assert not set(found.values()) & {3, 9}, "a model that was not promoted has no descendants"


def test_rings_are_the_models_that_were_not_promoted(ledger: list[Line]) -> None:
    groups = [(g.findtext("title") or "", g.find("circle").attrib["class"]) for g in svg(lineage_chart(ledger)).iter("g")]
    assert ["ring" not in kind for _, kind in groups] == PROMOTED
    assert all(("not better" in title) == ("ring" in kind) for title, kind in groups)
    assert "vit_tiny, val/miou_1 0.540, not better" in groups[3][0]
    heights = {circle.attrib["cy"] for circle in svg(lineage_chart(ledger)).iter("circle")}
    assert len(heights) == 2, "they are lower"


def test_numbers_are_those_of_the_ledger(ledger: list[Line]) -> None:
    figure = lineage_chart(ledger)
    found = rows(figure, 11)
    assert found[0] == ["195", "–", "0"] and found[3] == ["330", "–", "2"] and found[10] == ["513", "132", "10"]
    heights = [float(bar.attrib["height"]) for bar in svg(figure).iter("rect") if "band" not in bar.attrib["class"]]
    pairs = list(zip(heights[::2], heights[1::2], strict=True))
    assert sum(pairs[-1]) == max(map(sum, pairs)) and pairs[0][1] == 0 < pairs[-1][1]


@pytest.mark.parametrize("rounds", [1, 6, 11, 25])
def test_everything_is_inside_and_nothing_overlaps(ledger: list[Line], rounds: int) -> None:
    stages = ["assisted_manual"] * 7 + ["semi_automatic"] * 20
    lines = [{**ledger[n % 12], "round": n, "stage": stages[n]} for n in range(rounds + 1)]
    figure = lineage_chart(lines)
    width, height = size(figure)
    assert width <= 1114 or rounds > 11, "fits a desktop page"
    assert width <= 338 or rounds > 1, "fits a phone"
    assert f"width:{width:.0f}px" in figure and 'class="scroll"' in figure, "scrolls rather than shrinks"
    columns = sorted(float(circle.attrib["cx"]) for circle in svg(figure).iter("circle"))
    assert all(b - a >= 80 for a, b in zip(columns, columns[1:], strict=False))
    for text in svg(figure).iter("text"):
        assert 0 < float(text.attrib["x"]) < width and 0 < float(text.attrib["y"]) <= height
    for bar in svg(figure).iter("rect"):
        left, wide = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert left >= 0 and left + wide <= width and float(bar.attrib["height"]) >= 0


def test_stages_are_bands_with_names(ledger: list[Line]) -> None:
    figure = lineage_chart(ledger)
    words = [text.text for text in svg(figure).iter("text")]
    assert figure.count('class="band"') == 2
    assert "first stage: assisted-manual" in words and "second stage: semi-automatic" in words and "first model" in words
    one = lineage_chart(ledger[:2])
    words = [text.text for text in svg(one).iter("text")]
    assert "assisted-manual" in words and "not better" not in words and "automatic" not in words


def test_missing_parents_and_rounds_are_not_drawn(ledger: list[Line]) -> None:
    assert lineage_chart([]) == lineage_chart(ledger[:1]) == ""
    lost = [*ledger[:2], {**ledger[2], "parent": "gone", "model": "<b>"}]
    figure = lineage_chart(lost)
    assert parents(figure) == {1: 0} and "<b>" not in figure
    nothing = lineage_chart([ledger[0], {**ledger[1], "masks": 0, "metrics_after": {}}])
    assert svg(nothing) is not None and "val/miou_1 0.42" in nothing


def test_it_comes_before_the_charts_of_the_rounds(tmp_path: Path) -> None:
    page = write_report(write_demo(tmp_path / "run", rounds=1)).read_text()
    assert page.index("Rounds of the data engine") < page.index("Which model made which masks") < page.index("Quality by round")
