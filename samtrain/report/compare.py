"""Compares runs on one page: their commands, final numbers, settings and curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from samtrain.report.compare_charts import (
    MAX_LETTERS,
    Compared,
    click_comparison,
    round_comparison,
    training_comparison,
)  # fmt: skip
from samtrain.report.compare_tables import metrics_tables, runs_table, settings_tables
from samtrain.report.frame import charts, document, facts, section, write_page
from samtrain.report.run_files import RunFiles, read_run


def write_comparison(runs: Sequence[RunFiles], run_dir: Path) -> Path:
    """Writes `<run_dir>/report.html` about other runs, and returns its path; its charts show the first `MAX_RUNS` of them."""
    assert 0 < len(runs) <= MAX_LETTERS, len(runs)
    own = read_run(run_dir)
    return write_page(run_dir / "report.html", comparison_page(runs, str(own.environment.get("command") or "")))


def comparison_page(runs: Sequence[RunFiles], command: str = "") -> str:
    """Returns the page as HTML."""
    known = [Compared(run, i, len(runs)) for i, run in enumerate(runs)]
    drawn = [each for each in known if each.drawn]
    sections = [
        section("Runs", runs_table(known)),
        section("Results", charts(click_comparison(drawn)) + metrics_tables(known)),
        section("Learning", charts(training_comparison(drawn))),
        section("Rounds of the data engine", charts(round_comparison(drawn))),
        section("Settings that differ", settings_tables(known)),
    ]
    title = f"{len(runs)} runs side by side" if len(runs) > 1 else "One run"
    return document(f"{title} · samtrain", _header(known, title, command), sections)


def _header(known: Sequence[Compared], title: str, command: str) -> str:
    """Returns the title, the command, and a warning that names runs without final numbers."""
    unfinished = [each.letter for each in known if not each.run.metrics]
    names = " and ".join(filter(None, [", ".join(unfinished[:-1]), *unfinished[-1:]]))
    verb = "has" if len(unfinished) == 1 else "have"
    text = f"{names} {verb} not ended, so there are curves but no final numbers yet."
    warning = f'<p class="warning">{text}</p>' if unfinished else ""
    listed = facts([("command", f"<code>{escape(command)}</code>")]) if command else ""
    return f"<header><p>samtrain compare</p><h1>{title}</h1>{warning}{listed}</header>"
