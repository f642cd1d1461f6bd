"""`report.html`: one file with everything in it, to be opened without a network."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from samtrain.report.curves import round_charts, training_charts
from samtrain.report.generated import audit_section, dataset_charts, generated_tables, truth_charts
from samtrain.report.run_files import Panel, RunFiles, read_run
from samtrain.report.tables import duration, key_numbers, ledger_table, metrics_table, other_metrics, paper_table
from samtrain.report.zero_shot import zero_shot_table

MAX_PANELS = 4  # sheets are some hundred KB each, and the page carries them inside
GENERATED = """<p class="note">The first pictures that were written, each with its masks, the smaller ones on top.</p>"""
KEY = """<p class="note">Pictures of the validation, a row an object: first the object itself, then the prediction after each
click with its IoU. White line: the ground truth. Filled: the model's mask. Green clicks: on the object, red: off it.</p>"""
STYLE = Path(__file__).with_name("style.css")


def write_report(run_dir: Path) -> Path:
    """Write `<run_dir>/report.html` from the files of the run, whatever of them is there; returns its path.

    Raises ValueError where there is no such directory or a file in it is damaged.
    """
    run_dir = Path(run_dir)
    page = build_page(read_run(run_dir))
    path = run_dir / "report.html"
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def build_page(run: RunFiles) -> str:
    """The whole page."""
    title = escape(f"{run.name} · samtrain")
    sections = [
        _section("", key_numbers(run)),
        _section("Results", metrics_table(run)),
        _section("Zero-shot", zero_shot_table(run)),
        _section("Rounds of the data engine", _charts(round_charts(run)) + ledger_table(run)),
        _section("Beside the paper", paper_table(run)),
        _section("Automatic masks", _charts(dataset_charts(run.generated)) + generated_tables(run.generated)),
        _section("Automatic masks against ground truth", _charts(truth_charts(run.generated.get("truth")))),
        _section("Audit", audit_section(run.audit)),
        _section("Learning", _charts(training_charts(run))),
        _section("Masks", _panels(run.panels)),
        _section("Settings", _settings(run)),
    ]
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head>\n<body><main>\n{_header(run)}\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _header(run: RunFiles) -> str:
    """What was run, from which commit, on what, for how long."""
    known = run.environment
    commit = str(known.get("commit") or "not recorded") + (
        " with uncommitted changes" if known.get("uncommitted") else ""
    )
    seconds = run.metrics.get("time/seconds") or sum(sum(line["wall"].values()) for line in run.ledger)
    versions = [f"{name} {known[name]}" for name in ("python", "torch", "timm", "pytorch-lightning") if known.get(name)]
    facts = [
        ("command", f"<code>{escape(str(known.get('command', 'not recorded')))}</code>"),
        ("commit", f"<code>{escape(commit)}</code>"),
        ("hardware", escape(_hardware(run))),
        ("time", escape(duration(seconds) if seconds else "not recorded")),
        ("versions", escape(", ".join(versions) or "not recorded")),
        ("directory", f"<code>{escape(run.run_dir.resolve().name)}</code>"),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    unfinished = "" if run.metrics else '<p class="warning">This run has not ended: there are no final numbers yet.</p>'
    return f"<header><p>samtrain run</p><h1>{escape(run.name)}</h1>{unfinished}<dl>{listed}</dl></header>"


def _hardware(run: RunFiles) -> str:
    known = run.environment
    parts = [f"{known['cpus']} CPU cores" if known.get("cpus") else "", str(known.get("gpu") or "")]
    parts.append(f"host {known['host']}" if known.get("host") else "")
    return ", ".join(part for part in parts if part) or "not recorded"


def _section(title: str, body: str) -> str:
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f"<section>{heading}{body}</section>" if body else ""


def _charts(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _panels(panels: Sequence[Panel]) -> str:
    """Some sheets of the run's story, the first and the last among them."""
    chosen = _spread(panels, MAX_PANELS)
    sheets = "".join(
        f'<figure class="panel"><figcaption>{escape(panel.caption)}</figcaption><div class="scroll">'
        f'<img alt="masks at {escape(panel.caption)}" src="data:image/png;base64,{_base64(panel.path)}"></div></figure>'
        for panel in chosen
    )
    hidden = len(panels) - len(chosen)
    note = f'<p class="note">{hidden} more sheets lie in the run\'s panels folders.</p>' if hidden else ""
    key = GENERATED if all(panel.path.stem == "generated" for panel in panels) else KEY
    return key + sheets + note if sheets else ""


def _spread(panels: Sequence[Panel], count: int) -> list[Panel]:
    """Evenly over their order, first and last included."""
    if len(panels) <= count:
        return list(panels)
    return [panels[round(i * (len(panels) - 1) / (count - 1))] for i in range(count)]


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _settings(run: RunFiles) -> str:
    """The resolved config and the numbers that stand nowhere else, folded away."""
    parts = []
    if run.config_text:
        parts.append(f"<details><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>")
    if others := other_metrics(run):
        parts.append(f"<details><summary>all other numbers</summary>{others}</details>")
    return "".join(parts)
