"""Tests what a terminal shows: the log above a progress bar, and a closing table that fits its width."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from samtrain import terminal
from samtrain.run.closing import closing, show_closing

METRICS = {
    "val/miou_1": 0.5, "test/miou_1": 0.612, "test/start_miou_1": 0.4, "test/box_miou": None, "test/box_ap": 0.3,
    "time/seconds": 120.0, "memory/peak_gb": 1.25,
}  # fmt: skip


def said(metrics: dict, run_dir: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(closing(metrics, run_dir, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_table_by_split(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    lines = said(METRICS, tmp_path, 200).splitlines()
    assert lines[1].split() == ["test", "before", "the", "rounds", "validation"]
    assert lines[2].split() == ["1", "click", "0.612", "0.400", "0.500"]
    assert lines[3].split() == ["box", "AP", "0.300"]
    assert lines[4:] == ["2 min, 1.2 GB at most", str(tmp_path / "report.html")]


def test_in_a_narrow_terminal_the_test_split_comes_first(tmp_path: Path) -> None:
    text = said(METRICS, tmp_path, 46)
    assert "0.612" in text and "0.500" not in text and "2 more columns in the report" in text
    assert max(map(len, text.splitlines()[:4])) <= 46


def test_sets_are_columns(tmp_path: Path) -> None:
    lines = said({"a/miou_1": 0.1, "b/miou_1": 0.2, "mean/miou_1": 0.15, "a/miou_1_low": 0.0}, tmp_path, 120).splitlines()
    assert lines[1].split() == ["mean", "a", "b"] and lines[2].split() == ["1", "click", "0.150", "0.100", "0.200"]
    groups = said({"test/men/miou_1": 0.6, "test/women/miou_1": 0.5}, tmp_path, 120).splitlines()
    assert groups[1].split() == ["test/men", "test/women"]


def test_nothing_is_added_without_a_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    show_closing(console, METRICS, tmp_path)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    show_closing(shown := Console(file=io.StringIO(), force_terminal=True), METRICS, tmp_path)
    assert "0.612" in shown.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_log_goes_through_the_shared_console(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    screen = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
    monkeypatch.setattr(terminal, "console", lambda: screen)
    root = logging.Logger("root")
    monkeypatch.setattr(logging, "getLogger", lambda name=None: root)
    plain = logging.StreamHandler(sys.stdout)
    root.addHandler(plain)
    terminal.log_through_console()
    assert (plain in root.handlers) is not is_terminal
    root.info("round 1: [bold] is no markup")
    assert ("round 1: [bold] is no markup" in screen.file.getvalue()) is is_terminal  # type: ignore[attr-defined]
    root.warning("left out")
    assert ("warning: left out" in screen.file.getvalue()) is is_terminal  # type: ignore[attr-defined]
    assert list(terminal.follow([1, 2, 3], "counting", 3)) == [1, 2, 3]


@pytest.mark.parametrize(("number", "words"), [(0, "0 masks"), (1, "1 mask"), (2, "2 masks")])
def test_one_thing_is_not_several(number: int, words: str) -> None:
    assert terminal.counted(number, "mask") == words


def test_long_work_is_logged_without_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(terminal, "console", lambda: Console(file=io.StringIO(), force_terminal=False))
    assert list(terminal.follow("abc", "counting", 3)) == ["a", "b", "c"] and not caplog.text
    monkeypatch.setattr(terminal, "LINE_EVERY", -1.0)
    assert list(terminal.follow("abc", "counting", 3)) == ["a", "b", "c"]
    assert "counting: 2 of 3" in caplog.text
