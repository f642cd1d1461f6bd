"""`report.html` is one self-contained file that opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from samtrain.report.advice import advice
from samtrain.report.clicks import clicks_charts, zero_shot_clicks
from samtrain.report.curves import training_charts
from samtrain.report.frame import charts, document, facts, section, write_page
from samtrain.report.generated import audit_section, dataset_charts, generated_tables, truth_charts
from samtrain.report.key_numbers import key_numbers
from samtrain.report.learning_curve import learning_curve_charts
from samtrain.report.model_lineage import lineage_chart
from samtrain.report.paper import paper_table
from samtrain.report.people import people_section
from samtrain.report.round_charts import round_charts
from samtrain.report.run_files import Panel, RunFiles, read_run
from samtrain.report.tables import duration, ledger_table, metrics_table, other_metrics, text_table
from samtrain.report.tuning import tuning_section
from samtrain.report.zero_shot import missing_sets, zero_shot_table

MAX_PANELS = 4  # a sheet has some hundred KB and is embedded in the page
GENERATED = """<p class="note">The first images that were written, each with its masks and smaller masks on top.</p>"""
KEY = """<p class="note">Objects of the validation images, one per row: first the object, then the prediction after each click
with its IoU. The white line is the ground truth and the filled area is the model's mask. Green clicks are on the object, red
clicks are outside.</p>"""


def write_report(run_dir: Path) -> Path:
    """Writes `<run_dir>/report.html` from those files of the run that exist, and returns its path.

    Raises ValueError if there is no such directory or a file in it is damaged.
    """
    run_dir = Path(run_dir)
    return write_page(run_dir / "report.html", build_page(read_run(run_dir)))


def build_page(run: RunFiles) -> str:
    """Returns the page as HTML."""
    clicked = charts([*zero_shot_clicks(run), *learning_curve_charts(run)])
    rounds = lineage_chart(run.ledger) + charts(round_charts(run)) + ledger_table(run)
    sections = [
        section("", key_numbers(run)),
        section("Sweep", tuning_section(run.tune)),
        section("Results", metrics_table(run) + _advice(run) + charts(clicks_charts(run))),
        section("Zero-shot", zero_shot_table(run) + clicked + missing_sets(run)),
        section("Text prompts", text_table(run)),
        section("Rounds of the data engine", rounds),
        section("People", people_section(run)),
        section("Beside the paper", paper_table(run)),
        section("Automatic masks", charts(dataset_charts(run.generated)) + generated_tables(run.generated)),
        section("Automatic masks against ground truth", charts(truth_charts(run.generated.get("truth")))),
        section("Audit", audit_section(run.audit)),
        section("Learning", charts(training_charts(run))),
        section("Masks", _panels(run.panels)),
        section("Settings", _settings(run)),
    ]
    return document(f"{run.name} · samtrain", _header(run), sections)


def _header(run: RunFiles) -> str:
    """Returns the title, and a list of the command, the commit, the hardware and the time."""
    known = run.environment
    versions = [f"{name} {known[name]}" for name in ("python", "torch", "timm", "pytorch-lightning") if known.get(name)]
    listed = [
        ("command", f"<code>{escape(str(known.get('command', 'not recorded')))}</code>"),
        ("commit", f"<code>{escape(run.commit or 'not recorded')}</code>"),
        ("hardware", escape(run.hardware or "not recorded")),
        ("time", escape(duration(run.seconds) if run.seconds else "not recorded")),
        ("versions", escape(", ".join(versions) or "not recorded")),
        ("directory", f"<code>{escape(run.run_dir.resolve().name)}</code>"),
    ]
    unfinished = "" if run.metrics else '<p class="warning">This run has not ended, so there are no final numbers yet.</p>'
    return f"<header><p>samtrain run</p><h1>{escape(run.name)}</h1>{unfinished}{facts(listed)}</header>"


def _advice(run: RunFiles) -> str:
    """Returns what is wrong with the trained model, in words."""
    return "".join(f'<p class="warning">{escape(sentence)}</p>' for sentence in advice(run.metrics))


def _panels(panels: Sequence[Panel]) -> str:
    """Returns some of the run's sheets, including the first and the last one."""
    chosen = _evenly(panels, MAX_PANELS)
    sheets = "".join(
        f'<figure class="panel"><figcaption>{escape(panel.caption)}</figcaption><div class="scroll">'
        f'<img alt="masks at {escape(panel.caption)}" src="data:image/png;base64,{_base64(panel.path)}"></div></figure>'
        for panel in chosen
    )
    hidden = len(panels) - len(chosen)
    note = f'<p class="note">{hidden} more sheets are in the panels/ folders of the run.</p>' if hidden else ""
    key = GENERATED if all(panel.path.stem == "generated" for panel in panels) else KEY
    return key + sheets + note if sheets else ""


def _evenly(panels: Sequence[Panel], count: int) -> list[Panel]:
    """Returns `count` panels at even distances, including the first and the last one."""
    if len(panels) <= count:
        return list(panels)
    return [panels[round(i * (len(panels) - 1) / (count - 1))] for i in range(count)]


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _settings(run: RunFiles) -> str:
    """Returns the resolved config and the remaining numbers, collapsed."""
    parts = []
    if run.config_text:
        parts.append(f"<details><summary>config.yaml</summary><pre>{escape(run.config_text)}</pre></details>")
    if others := other_metrics(run):
        parts.append(f"<details><summary>all other numbers</summary>{others}</details>")
    return "".join(parts)
