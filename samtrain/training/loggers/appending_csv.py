"""`metrics.csv`, to which a resumed run appends."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from samtrain.files import atomic_path, sync

WALL_CLOCK = "speed/*"  # metrics of the machine, not of the model


class AppendingCSVLogger(Logger):
    """Writes one row per step to `metrics.csv`; a resumed run appends to it.

    All values of one step share its row. Wall-clock values (`exclude`) are left out, so that the file of a resumed run equals
    an uninterrupted run's to the byte. A row is written when the next step's row begins and before each checkpoint (`save`), so
    no checkpoint is ahead of the file.
    """

    def __init__(self, path: str | Path, *, exclude: Iterable[str] = (WALL_CLOCK, "epoch")) -> None:
        super().__init__()
        self.path = Path(path)
        self.exclude = tuple(exclude)
        self._columns: list[str] = []
        self._row: dict[str, str] = {}  # of the current step
        self._row_start: int | None = None  # its offset in the file, once it is written
        self._changed = False
        self._opened = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Writes nothing, because `.hydra/` has the run's config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._open()
        values = {k: _text(v) for k, v in metrics.items() if not any(fnmatchcase(k, glob) for glob in self.exclude)}
        if not values:
            return
        if self._row and self._row["step"] != str(step):
            self.save()
            self._row, self._row_start = {}, None
        self._row.update({"step": str(step), **values})
        self._changed = True

    @rank_zero_only
    def save(self) -> None:
        """Writes the current step's row to the disk."""
        if not self._changed:
            return
        if new := [name for name in self._row if name not in self._columns]:
            self._widen(new)
        with open(self.path, "r+b") as file:
            self._row_start = file.seek(0, os.SEEK_END) if self._row_start is None else self._row_start
            file.seek(self._row_start)
            file.write(_line(self._row.get(name, "") for name in self._columns))
            file.truncate()
        sync(self.path)
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def take_back(self, step: int) -> None:
        """Drops the rows after `step`, from which the run resumes, because it will write them again."""
        self._open()
        self._continue([row for row in _read(self.path)[1] if int(row["step"]) <= step])

    def _open(self) -> None:
        """Reads the columns and rows of an earlier process; drops a row that was cut short."""
        if self._opened:
            return
        self._opened = True
        self._columns, rows = _read(self.path) if self.path.is_file() else (["step"], [])
        self._continue(rows)

    def _continue(self, rows: list[dict[str, str]]) -> None:
        """Rewrites the file with these rows; values can still be added to the last one."""
        self._rewrite(rows)
        self._row, self._row_start, self._changed = {}, None, False
        if rows:
            self._row = {name: text for name, text in rows[-1].items() if text}
            self._row_start = self.path.stat().st_size - len(_line(rows[-1].values()))

    def _widen(self, names: list[str]) -> None:
        """Adds columns by rewriting the file, which happens when a metric is logged for the first time."""
        rows = _read(self.path)[1]
        if self._row_start is not None:
            rows.pop()
            self._row_start = None
        self._columns += names
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [self._columns, *([row.get(name, "") for name in self._columns] for row in rows)]
        with atomic_path(self.path, sole_writer=True) as temporary:
            temporary.write_bytes(b"".join(map(_line, lines)))


def _text(value: Any) -> str:
    """Returns a number as text, with the nine digits that distinguish any two float32 values."""
    number = float(value)
    return str(int(number)) if number.is_integer() else f"{number:.9g}"


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the columns and rows of a file, without a last line that was cut short."""
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    columns, *rows = list(csv.reader(whole.splitlines())) or [["step"]]
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]
