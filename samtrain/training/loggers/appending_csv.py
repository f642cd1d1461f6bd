"""`metrics.csv`, which a continued run continues."""

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

WALL_CLOCK = "speed/*"  # names that tell of the machine, not of the model


class AppendingCSVLogger(Logger):
    """One row a step in `metrics.csv`, which a continued run continues.

    Whatever is logged for one step shares its row. Wall-clock values (`exclude`) stay out, so that the file of a run that was
    killed and went on equals an undisturbed run's to the byte. A row reaches the disk when the next step's begins and
    before each checkpoint (`save`), so no checkpoint is ahead of the file.
    """

    def __init__(self, path: str | Path, *, exclude: Iterable[str] = (WALL_CLOCK, "epoch")) -> None:
        super().__init__()
        self.path = Path(path)
        self.exclude = tuple(exclude)
        self._columns: list[str] = []
        self._row: dict[str, str] = {}  # of the present step
        self._row_start: int | None = None  # where it stands in the file, once it does
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
        """Nothing: the run's config stands in `.hydra/`."""

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
        """Bring the present step's row to the disk."""
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
        """Drop what stands behind `step`, to which a run was taken back; it will come again."""
        self._open()
        self._continue([row for row in _read(self.path)[1] if int(row["step"]) <= step])

    def _open(self) -> None:
        """Take over the columns of an earlier part of the run; a row that was cut short is dropped."""
        if self._opened:
            return
        self._opened = True
        self._columns, rows = _read(self.path) if self.path.is_file() else (["step"], [])
        self._continue(rows)

    def _continue(self, rows: list[dict[str, str]]) -> None:
        """Make these the file's rows; the last one may still be added to."""
        self._rewrite(rows)
        self._row, self._row_start, self._changed = {}, None, False
        if rows:
            self._row = {name: text for name, text in rows[-1].items() if text}
            self._row_start = self.path.stat().st_size - len(_line(rows[-1].values()))

    def _widen(self, names: list[str]) -> None:
        """New columns: the whole file once more, which happens when a kind of row comes for the first time."""
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
    """A number as text: whole, or to the nine digits that tell any two float32 apart."""
    number = float(value)
    return str(int(number)) if number.is_integer() else f"{number:.9g}"


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a file, without a last line that was cut short."""
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    columns, *rows = list(csv.reader(whole.splitlines())) or [["step"]]
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]
