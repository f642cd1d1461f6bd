"""`task=compare`: several runs side by side on one page, read from their directories and nothing else."""

from __future__ import annotations

import glob
import json
import logging
import re
from pathlib import Path
from typing import Any

from samtrain.files import write_text
from samtrain.report.compare import write_comparison
from samtrain.report.compare_charts import MAX_RUNS
from samtrain.report.run_files import read_run
from samtrain.run.build import Config

log = logging.getLogger(__name__)

FILES = (".hydra/config.yaml", "metrics.json", "metrics.csv", "ledger.jsonl")  # what a run has, one of them at least
HOW = "give run directories, compare.runs='[RUN,RUN]', or a glob of them, compare.runs='experiments/runs/stage1/*'"


def run(config: Config, run_dir: Path) -> None:
    """Write `compare.json`, the metrics by the run's directory, and `report.html`.

    Raises ValueError for what is no run and for more runs than the charts can tell apart.
    """
    places = directories(config["compare"]["runs"])
    if len(places) > MAX_RUNS:
        raise ValueError(f"compare.runs has {len(places)} runs, and the charts tell {MAX_RUNS} apart: name fewer of them")
    runs = [read_run(place) for place in places]
    content = {str(each.run_dir): each.metrics for each in runs}
    write_text(run_dir / "compare.json", json.dumps(content, indent=1) + "\n")
    for each in runs:
        log.info("%s: %s, %s", each.run_dir, each.name, "ended" if each.metrics else "has not ended")
    log.info("report: %s", write_comparison(runs, run_dir))


def directories(given: Any) -> list[Path]:
    """The runs that `compare.runs` names, each once; the order is that of the list, within a glob that of the names.

    A glob passes over what is no run, and over comparisons; a directory that is named has to be one.
    """
    entries = given if isinstance(given, list) else [given] if given else []
    if not entries:
        raise ValueError(f"compare.runs is empty: {HOW}")
    found: dict[Path, Path] = {}
    for entry in map(str, entries):
        places = [Path(entry)] if Path(entry).is_dir() or not glob.has_magic(entry) else _matched(entry)
        for place in places:
            _check(place)
            found.setdefault(place.resolve(), place)
    return list(found.values())


def _matched(pattern: str) -> list[Path]:
    """The runs of a glob, numbers in their names in the order of their size."""
    paths = [Path(path) for path in glob.glob(pattern, recursive=True)]
    runs = [path for path in paths if _is_run(path)]
    if not runs:
        raise ValueError(f"compare.runs: {pattern!r} matches {len(paths)} paths and no run among them: {HOW}")
    return sorted(runs, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))])


def _check(place: Path) -> None:
    if not place.is_dir():
        raise ValueError(f"compare.runs: {str(place)!r} is no directory: {HOW}")
    if not _is_run(place):
        inside = sum(map(_is_run, place.iterdir()))
        cure = f"it holds {inside} runs, compare.runs='{place}/*' takes them all" if inside else HOW
        why = "but a comparison" if _is_comparison(place) else f"none of {', '.join(FILES)} is in it"
        raise ValueError(f"compare.runs: {str(place)!r} is no run, {why}: {cure}")


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES) and not _is_comparison(path)


def _is_comparison(path: Path) -> bool:
    """Whether it was begun by this task, ended or not."""
    stored = path / FILES[0]
    return stored.is_file() and "\ntask: compare\n" in f"\n{stored.read_text(encoding='utf-8')}"
