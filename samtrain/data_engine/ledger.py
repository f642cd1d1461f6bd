"""`ledger.jsonl`: one line per round, with what was annotated, which model helped, and what training on it brought.

Wall-clock times are stored under `wall` and nowhere else, so that the ledger of an interrupted run equals that of an
undisturbed run in everything else. Seconds outside of `wall` are modelled (`time_model.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samtrain.data_engine.ledger_line import LedgerLine, from_flat
from samtrain.files import atomic_path

NAME = "ledger.jsonl"


def read_ledger(run_dir: Path) -> list[LedgerLine]:
    """Returns the lines so far, none before the first round has ended. Raises ValueError for a file that is not a ledger."""
    path = run_dir / NAME
    if not path.is_file():
        return []
    lines = [_parse(text, f"{path}, line {i}") for i, text in enumerate(path.read_text().splitlines(), 1)]
    for i, line in enumerate(lines):
        if line.round != i:
            raise ValueError(f"{path}, line {i + 1} holds round {line.round} instead of round {i}: restore the file")
    return lines


def append_line(run_dir: Path, line: LedgerLine) -> None:
    """Adds a line to the ledger; after a kill the file holds either all lines or those before."""
    lines = [*read_ledger(run_dir), line]
    assert line.round == len(lines) - 1, f"round {line.round} after {len(lines) - 1} lines"
    _write(run_dir, lines)


def take_over(run_dir: Path, earlier_run: Path) -> None:
    """Begins the ledger of `run_dir` with the lines of an earlier run, unless it was begun already.

    The files of the earlier run stay where they are. Raises ValueError for a run without rounds and, on each call, for files
    that are missing.
    """
    if not (run_dir / NAME).is_file():
        lines = read_ledger(earlier_run)
        if len(lines) < 2:
            raise ValueError(f"{earlier_run} has no finished round (stage1_run): give the directory of +experiment=stage1")
        _write(run_dir, [_with_absolute_paths(line, earlier_run.resolve()) for line in lines])
    ledger = read_ledger(run_dir)
    needed = [shard.path for line in ledger for shard in line.shards] + [promoted(ledger).model.checkpoint]
    if missing := [path for path in needed if not (run_dir / path).is_file()]:
        raise ValueError(
            f"{missing[0]} is missing, but the ledger in {run_dir} names it (stage1_run): restore the file to that place"
        )


def collected_by(run_dir: Path) -> list[str]:
    """Returns the shards of all rounds so far. Raises ValueError if there are none."""
    shards = [str(run_dir / shard.path) for line in read_ledger(run_dir) for shard in line.shards]
    if not shards:
        raise ValueError(f"{run_dir} has collected no masks (stage1_run): give the directory of +experiment=stage1")
    return shards


def promoted(ledger: Sequence[LedgerLine]) -> LedgerLine:
    """Returns the line of the model that is in use."""
    return next(line for line in reversed(ledger) if line.promoted)


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Returns plain floats for JSON, with None for NaN and infinity (a model that diverged)."""
    return {name: float(value) if math.isfinite(value) else None for name, value in sorted(metrics.items())}


def _parse(text: str, name: str) -> LedgerLine:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}): restore the file, or start again in a new run_dir") from error
    return from_flat(values, name)


def _write(run_dir: Path, lines: Sequence[LedgerLine]) -> None:
    with atomic_path(run_dir / NAME) as temporary:
        temporary.write_text("".join(json.dumps(line.to_flat(), allow_nan=False) + "\n" for line in lines))


def _with_absolute_paths(line: LedgerLine, root: Path) -> LedgerLine:
    """Returns the line with the paths of its checkpoint and shards, which are relative to `root`, made absolute."""
    return replace(
        line,
        model=replace(line.model, checkpoint=str(root / line.model.checkpoint)),
        shards=tuple(replace(shard, path=str(root / shard.path)) for shard in line.shards),
    )
