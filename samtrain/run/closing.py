"""Prints the summary of a finished run in a terminal: a table of its numbers, its costs, and the paths of its files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from samtrain.report.tables import duration
from samtrain.run.directory import Metrics

# metrics in the order of the table, as people call them; all others are in metrics.json and in the report
ROWS = {
    "miou_1": "1 click", "oracle_miou_1": "1 click, best of three", "miou_2": "2 clicks", "miou_3": "3 clicks",
    "miou_5": "5 clicks", "miou_9": "9 clicks", "box_miou": "box", "noc_90": "clicks until IoU 0.90", "box_ap": "box AP",
    "mask_ar_1000": "AR@1000", "mask_ap": "mask AP", "ar_100": "AR@100", "precision_50": "precision, IoU 0.50",
    "nuclei_ap": "nuclei AP", "pq": "PQ", "boundary_f": "boundary F", "ods": "ODS", "ois": "OIS", "ap": "edge AP",
    "r50": "R50", "best": "best trial", "default": "default", "winner_minus_default": "winner − default, test",
}  # fmt: skip
BEFORE = "before the rounds"
FIRST = ("test", BEFORE, "validation", "mean")  # columns that come first, in case there is no room for all
MAX_COLUMNS = 6
NARROW, COLUMN = 34, 18  # widths in characters of the names, and of a column of numbers


def show_closing(console: Console, metrics: Metrics, run_dir: Path) -> None:
    """Prints the summary; prints nothing if the output is no terminal, because the log has all of it."""
    if console.is_terminal and metrics:
        console.print(closing(metrics, run_dir, console.width))


def closing(metrics: Metrics, run_dir: Path, width: int) -> Group:
    """Returns a table of the main metrics, with as many splits or sets as fit; then time, memory and the report's path."""
    cells = _cells(metrics)
    found = dict.fromkeys(column for column, _ in cells)
    columns = [*(name for name in FIRST if name in found), *(name for name in found if name not in FIRST)]
    fitting = columns[: max(1, min(MAX_COLUMNS, (width - NARROW) // COLUMN))]
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("")
    for column in fitting:
        shown.add_column(column, justify="right")
    for name, words in ROWS.items():
        values = [cells.get((column, name)) for column in fitting]
        if any(value is not None for value in values):
            shown.add_row(words, *("" if value is None else f"{value:.3f}" for value in values))
    parts: list[Table | Text] = [shown] if shown.row_count else []
    if len(fitting) < len(columns):
        parts.append(Text(f"{len(columns) - len(fitting)} more columns in the report", style="dim"))
    parts.append(Text(_costs(metrics), style="dim"))
    for name in ("report.html", "checkpoints/best.ckpt"):
        if (run_dir / name).is_file():
            parts.append(Text(str(run_dir / name), style="bold", overflow="fold"))
    return Group(Text(), *parts)


def _cells(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Returns {(column, metric): value}."""
    cells = {}
    for key, value in metrics.items():
        prefix, _, name = key.rpartition("/")
        if prefix == "test" and name.startswith("start_"):
            prefix, name = BEFORE, name.removeprefix("start_")
        column = "validation" if prefix == "val" else prefix
        if value is not None and name in ROWS and prefix:
            cells[column, name] = value
    return cells


def _costs(metrics: Metrics) -> str:
    seconds, peak = metrics.get("time/seconds"), metrics.get("memory/peak_gb")
    took = "" if seconds is None else duration(seconds)
    return ", ".join(part for part in (took, f"{peak:.1f} GB at most" if peak else "") if part)
