"""Reads what a run of W&B has written offline, record by record, as `wandb sync` would."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30.0  # seconds until a run counts as killed
HEADER = 7  # bytes: W&B's of the file, and LevelDB's of each piece of a record


@dataclass
class OfflineRun:
    """One offline run: `history` rows by key, axes by metric, artifacts that were made and used, config, summary."""

    path: Path
    id: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    made: list[Any] = field(default_factory=list)
    used: list[Any] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    has_ended: bool = False

    @property
    def files(self) -> Path:
        return self.path.parent / "files"


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All runs below `<folder>/wandb`, in the order of their beginning.

    W&B's service writes the last records after `finish` has returned, on a busy machine seconds later: this waits for them, but
    not for those of a run that was killed.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
        runs = [read_offline_run(path) for path in paths]
        if (runs and all(run.has_ended for run in runs)) or time.monotonic() > deadline:
            return runs
        time.sleep(0.1)


def read_offline_run(path: Path) -> OfflineRun:
    pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    run = OfflineRun(path)
    for data in _leveldb_records(path.read_bytes()):
        record = pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "metric":
            run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            (run.used if record.artifact.use_after_commit else run.made).append(record.artifact)
        elif kind == "run":
            run.id, run.group, run.job_type = record.run.run_id, record.run.run_group, record.run.job_type
            run.name = record.run.display_name
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "exit":
            run.has_ended = True
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind W&B's header: blocks of 32 KiB, a record in one piece or in several."""
    block, position, parts = 32768, HEADER, b""
    while position + HEADER <= len(data):
        if block - position % block < HEADER:
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if kind == 0:
            position += block - position % block
            continue
        if position + HEADER + length > len(data):
            return  # the service is writing it
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""
