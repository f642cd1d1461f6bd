"""The rounds of the data engine on W&B: the numbers of each ledger line, and the files that its round made and used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from samtrain.files import write_text
from samtrain.training.loggers.lineage import RoundFiles, log_round
from samtrain.training.loggers.wandb_run import SamWandbLogger

Line = Mapping[str, Any]  # a line of ledger.jsonl, as JSON


class LedgerLogger:
    """Logs each line of a ledger once and in order, even if the process before was killed before it could.

    loggers:    those that all trainings of the run share
    num_logged: lines at the beginning that an earlier run has logged, which this run has taken over
    """

    def __init__(self, loggers: Sequence[Logger], run_dir: Path, num_logged: int = 0) -> None:
        self.loggers, self.run_dir, self.num_logged = loggers, run_dir, num_logged
        self.counter = run_dir / ".hydra" / "rounds_logged"

    def log(self, lines: Sequence[Line], images_seen: int = 0) -> None:
        """Logs the lines that were not logged yet; `images_seen` is the count of the first model's training."""
        if not self.loggers:
            return
        start = int(self.counter.read_text()) if self.counter.is_file() else self.num_logged
        for end in range(start + 1, len(lines) + 1):
            self.log_last(lines[:end], images_seen)
            write_text(self.counter, str(end))

    def log_last(self, lines: Sequence[Line], images_seen: int = 0) -> None:
        """Logs the numbers of the last line beside the curves, and its round as a run of its own."""
        line = lines[-1]
        numbers = {key: float(value) for key, value in _flatten(line).items() if isinstance(value, (int, float))}
        seen = numbers.pop("images_seen") or float(images_seen)
        values = {f"ledger/{key}": value for key, value in numbers.items()} | {"images_seen": seen}
        for logger in self.loggers:
            logger.log_metrics(values, step=line["round"])
            if isinstance(logger, SamWandbLogger):
                log_round(logger, round_files(self.run_dir, lines), numbers)


def round_files(run_dir: Path, lines: Sequence[Line]) -> RoundFiles:
    """Returns the files that the round of the last line made, and those that it used."""
    *before, line = lines
    parent = next((each for each in before if each["digest"] == line["parent"]), None)
    shards = [[(run_dir / shard["path"], shard["sha256"]) for shard in each["shards"]] for each in lines]
    return RoundFiles(
        number=line["round"],
        stage=line["stage"],
        checkpoint=run_dir / line["checkpoint"],
        digest=line["digest"],
        promoted=line["promoted"],
        parent=run_dir / parent["checkpoint"] if parent else None,
        parent_digest=line["parent"],
        parent_round=parent["round"] if parent else None,
        shards=shards[-1],
        earlier=[shard for each in shards[:-1] for shard in each],
        detector=run_dir / line["detector"] if line["detector"] else None,
        detector_digest=line["detector_digest"],
    )


def _flatten(line: Line) -> dict[str, Any]:
    """Returns the line with its coverage and metrics as keys such as `coverage/small` and `metrics_after/val/miou_1`."""
    nested = {
        f"{key}/{name}": value
        for key in line
        if "coverage" in key or key.startswith("metrics_")
        for name, value in line[key].items()
    }
    return {**line, **nested}
