"""Finds the run directories that a user names, directly or by globs."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

FILES = (".hydra/config.yaml", "metrics.json", "metrics.csv", "ledger.jsonl")  # a run directory has at least one of these
BOOKKEEPING = {".hydra", ".lock", "samtrain.log"}  # what a run directory has before the run has written anything
HOW = "set compare.runs='[RUN,RUN]' to run directories, or to a glob such as compare.runs='experiments/runs/stage1/*'"


def find_runs(entries: Sequence[str]) -> list[Path]:
    """Returns the run directories that the entries name, each once and in their order.

    The matches of a glob are sorted by name; those that are no runs, comparisons of runs, or still empty are skipped. A
    directory that is named directly must be a run. Raises ValueError that says what to set in `compare.runs`.
    """
    if not entries:
        raise ValueError(f"compare.runs is empty: {HOW}")
    found: dict[Path, Path] = {}
    for entry in entries:
        is_glob = glob.has_magic(entry) and not Path(entry).is_dir()
        for place in _matches(entry) if is_glob else [Path(entry)]:
            _check(place)
            found.setdefault(place.resolve(), place)
    return list(found.values())


def _matches(pattern: str) -> list[Path]:
    """Returns the runs that a glob matches, sorted by name with numbers in natural order."""
    paths = [Path(path) for path in glob.glob(pattern, recursive=True)]
    runs = [path for path in paths if _is_run(path) and not _is_empty(path)]
    if not runs:
        raise ValueError(f"compare.runs: {pattern!r} matches {len(paths)} paths, but no run among them: {HOW}")
    return sorted(runs, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))])


def _check(place: Path) -> None:
    """Raises ValueError if a path is not a run directory."""
    if not place.is_dir():
        raise ValueError(f"compare.runs: {str(place)!r} is not a directory: {HOW}")
    if not _is_run(place):
        inside = sum(map(_is_run, place.iterdir()))
        cure = f"it holds {inside} runs, compare.runs='{place}/*' compares them all" if inside else HOW
        why = "it is a comparison" if _is_comparison(place) else f"it has none of {', '.join(FILES)}"
        raise ValueError(f"compare.runs: {str(place)!r} is not a run, {why}: {cure}")


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES) and not _is_comparison(path)


def _is_empty(path: Path) -> bool:
    """Returns whether a run has not written anything yet, because it was refused or has just begun."""
    return {each.name for each in path.iterdir()} <= BOOKKEEPING


def _is_comparison(path: Path) -> bool:
    """Returns whether task=compare wrote this directory."""
    stored = path / FILES[0]
    return stored.is_file() and "\ntask: compare\n" in f"\n{stored.read_text(encoding='utf-8')}"
