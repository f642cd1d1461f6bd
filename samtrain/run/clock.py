"""Measures how long a run has worked over all its processes; a killed process has left its count in a file."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from samtrain.files import write_text

BEAT = 10.0  # seconds between two counts, the most that a kill loses


@contextmanager
def keep_time(run_dir: Path) -> Iterator[None]:
    """Counts this process's seconds in `<run_dir>/.hydra/seconds.json`, added to those of earlier processes."""
    path, begin, over = _path(run_dir), time.perf_counter(), Event()
    known = _read(path)
    earlier = known["earlier"] + known["now"]

    def count() -> None:
        write_text(path, json.dumps({"earlier": earlier, "now": time.perf_counter() - begin}) + "\n")

    def beat() -> None:
        while not over.wait(BEAT):
            count()

    count()
    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        count()


def earlier_seconds(run_dir: Path) -> float:
    """Returns the seconds that earlier processes of the run took; 0 in its first."""
    return _read(_path(run_dir))["earlier"]


def _path(run_dir: Path) -> Path:
    return run_dir / ".hydra" / "seconds.json"


def _read(path: Path) -> dict[str, float]:
    return json.loads(path.read_text()) if path.is_file() else {"earlier": 0.0, "now": 0.0}


def costs(run_dir: Path, begin: float) -> dict[str, float]:
    """Returns the run's wall time, earlier processes included, and the peak memory of this process and its children."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB on Linux
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = earlier_seconds(run_dir) + time.perf_counter() - begin
    return {"time/seconds": seconds, "memory/peak_gb": peak * unit / 1e9}
