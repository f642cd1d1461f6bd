"""Opens the CSVs in which people keep the groups of their images and objects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO


def open_csv(path: str | Path, key: str) -> IO[str]:
    """Opens a CSV as text, with or without a byte order mark; raises ValueError that begins with `key` if it is not UTF-8."""
    try:
        return io.StringIO(Path(path).read_bytes().decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not in UTF-8 ({error}): save it as CSV UTF-8") from error
