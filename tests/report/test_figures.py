"""Charts: well-formed, named axes, everything inside the frame."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from samtrain.report.figures import HEIGHT, WIDTH, Axis, Marks, Series, line_chart, short, stacked_bars, ticks

X, Y = Axis("round"), Axis("mean <IoU>")


def svg(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.S)[0])


def words(figure: str) -> str:
    return " ".join("".join(svg(figure).itertext()).split())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0.42, 0.69, [0.4, 0.5, 0.6, 0.7]), (0, 3140, [0, 1000, 2000, 3000, 4000])],
)
def test_ticks_are_round_numbers_that_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == expected


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 5), (-3, 7), (1e-7, 2e-7), (0, 1e9)])
def test_ticks_of_any_range(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 9 and found[0] <= low and found[-1] >= high


def test_axes_are_named_and_words_are_escaped() -> None:
    figure = line_chart("<Title>", X, Y, [Series("a<b", [[(0, 0.1), (1, 0.5)]], dots=True), Series("c", [[(1, 1)]])])
    assert "round" in words(figure) and "mean <IoU>" in words(figure)
    assert "<Title>" not in figure and "a<b" not in figure and "&lt;Title&gt;" in figure
    assert "a<b, round 1: 0.5" in words(figure), "dots tell their numbers"


def test_everything_is_inside_the_drawing() -> None:
    values = [(float(i), (-1) ** i * 10.0**i) for i in range(7)]
    figure = line_chart("t", X, Y, [Series("a", [values[:3], values[3:]])], Marks([(2.0, "1"), (99.0, "far")]))
    for path in svg(figure).iter("path"):
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", path.attrib["d"])]
        assert all(0 <= x <= WIDTH for x in numbers[::2]) and all(0 <= y <= HEIGHT for y in numbers[1::2])
    assert len(list(svg(figure).iter("path"))) == 2, "pieces are not joined"
    assert "far" not in words(figure)


def test_labels_replace_numbers_at_their_places() -> None:
    axis = Axis("round", {0.0: "start\ntiny", 1.0: "1"})
    figure = line_chart("t", axis, Axis("y", zero=True), [Series("a", [[(0, 3), (1, 4)]])])
    assert "start" in words(figure) and "tiny" in words(figure)
    assert re.search(r">0</text>", figure), "an axis that begins at zero"


def test_hollow_points_are_rings_and_one_series_needs_no_legend() -> None:
    series = Series("a", [[(0, 1)], [(1, 2)]], dots=True, hollow=frozenset({1}))
    figure = line_chart("t", X, Y, [series])
    assert figure.count(" ring") == 1 and 'class="legend"' not in figure
    figure = line_chart("t", X, Y, [series, Series("b", [[(0, 1), (1, 1)]]), Series("c", [[(0, 2)], [(1, 2)]], colour=2)])
    for key in ("k1 dot", "k1 line", "k2 dot"):  # as they are drawn: pieces of one point are no line
        assert f'class="key {key}"' in figure


def test_bars_are_stacked() -> None:
    figure = stacked_bars("t", X, Axis("min", zero=True), ["a", "b"], {1.0: [1, 2], 2.0: [3, 0]})
    heights = [float(bar.attrib["height"]) for bar in svg(figure).iter("rect")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2) and heights[2] == pytest.approx(
        sum(heights[:2]), abs=0.2
    )


def test_without_points_there_is_no_figure() -> None:
    assert line_chart("t", X, Y, [Series("a", [[], []])]) == ""
    assert stacked_bars("t", X, Y, ["a"], {1.0: [0.0]}) == ""


def test_short_numbers() -> None:
    assert [short(v) for v in (0.5, 1000, 20000, 3e6, 2e9)] == ["0.5", "1000", "20k", "3M", "2G"]
