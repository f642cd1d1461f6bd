"""The results of all rounds: final metrics from the ledger, and the metrics of all trainings in one file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.files import write_text
from samtrain.run.directory import Metrics


def coverage_metrics(ledger: list[LedgerLine]) -> Metrics:
    """Returns the probe's coverage before the last stage and after it, and the number and precision of its automatic masks.

    Empty for a ledger in which no second stage has begun.
    """
    opening = next((line for line in reversed(ledger) if line.probe_before), None)
    if opening is None or opening.probe_before is None:
        return {}
    stage = [line for line in ledger if line.stage == opening.stage]
    start, end = opening.probe_before, stage[-1].probe
    metrics: Metrics = {f"coverage/start_{name}": value for name, value in start.coverage.items()}
    metrics |= {f"coverage/{name}": value for name, value in end.coverage.items()}
    metrics["coverage/without_filling_in"] = end.coverage_alone["all"]

    # the precision over all rounds: the mean, weighted by the number of masks
    rounds = [line.annotated for line in stage]
    known = [(each.masks_automatic, each.automatic_precision) for each in rounds if each.automatic_precision is not None]
    count = sum(masks for masks, _ in known)
    metrics["automatic/masks"] = float(count)
    metrics["automatic/precision"] = sum(masks * precision for masks, precision in known) / count if count else None
    return metrics


def join_metrics(run_dir: Path) -> None:
    """Joins the `metrics.csv` of all trainings in one file, with the round of each row; 0 is the first model's training."""
    files = {int(path.parts[-3]): path for path in run_dir.glob("rounds/*/fit/metrics.csv")}
    if (run_dir / "pretrain" / "metrics.csv").is_file():
        files[0] = run_dir / "pretrain" / "metrics.csv"
    rows: list[dict[str, str]] = []
    for number, path in sorted(files.items()):
        with open(path, newline="") as file:
            rows += [{"round": str(number), **row} for row in csv.DictReader(file)]

    # trainings may log different columns, so the table has all of them
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run_dir / "metrics.csv", text.getvalue())
