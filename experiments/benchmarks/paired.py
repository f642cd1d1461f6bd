"""Times two ways of doing the same thing, in turn and in one process; all benchmarks here use it.

A row holds the median times of a peer and of samtrain, the ratio of each pair with its spread, the memory that each needed
beyond what was there before, and how far the results are apart.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Job = Callable[[], Any]


@dataclass
class Row:
    """Holds one row of a table; seconds are medians, memory is in GB, or None if it was not measured."""

    what: str
    peer: str
    peer_seconds: float
    our_seconds: float
    ratio: float  # median over the pairs, the peer's time divided by ours
    lowest_ratio: float
    highest_ratio: float
    peer_gb: float | None = None
    our_gb: float | None = None
    difference: str = ""


def arguments(description: str, *, pairs: int = 5) -> argparse.ArgumentParser:
    """Returns a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--pairs", type=int, default=pairs, help="number of pairs to time, after one run to warm up")
    parser.add_argument("--json", type=Path, default=None, help="file for the rows")
    return parser


def begin(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)


def compare(
    what: str,
    peer: str,
    theirs: Job,
    ours: Job,
    *,
    pairs: int,
    memory: bool = False,
    difference: str = "",
    warm_up: bool = True,
) -> Row:
    """Times both in turn; with `memory` one more run of each measures its peak memory."""
    if warm_up:
        theirs(), ours()
    times = [(timed(theirs), timed(ours)) for _ in range(pairs)]
    ratios = [their / our for their, our in times]
    row = Row(
        what,
        peer,
        *(statistics.median(column) for column in zip(*times, strict=True)),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        *((peak_gb(theirs), peak_gb(ours)) if memory else (None, None)),
        difference,
    )
    print(_line(row), flush=True)
    return row


def timed(job: Job) -> float:
    synchronise()
    begin = time.perf_counter()
    job()
    synchronise()
    return time.perf_counter() - begin


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gb(job: Job) -> float:
    """Returns a job's peak memory beyond what was there before, in 10^9 bytes, of the CUDA device or (on Linux) the process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size, see proc(5)
    before = _status("VmRSS")
    job()
    return (_status("VmHWM") - before) / 1e9


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def finish(options: argparse.Namespace, name: str, rows: Sequence[Row], notes: dict[str, Any] | None = None) -> None:
    """Prints the table, and writes it to the file of `--json`."""
    print("\n| what | peer | peer s | ours s | ratio (lowest to highest) | peer GB | ours GB | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(_line(row))
    for key, value in (notes or {}).items():
        print(f"{key}: {value}")
    if options.json is not None:
        content = {
            "benchmark": name,
            "machine": machine(),
            "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
            "rows": [asdict(row) for row in rows],
            "notes": notes or {},
        }
        write_rows(options.json, content)


def write_rows(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _line(row: Row) -> str:
    memory = ["" if gb is None else f"{gb:.2f}" for gb in (row.peer_gb, row.our_gb)]
    ratio = f"{row.ratio:.2f} ({row.lowest_ratio:.2f} to {row.highest_ratio:.2f})"
    seconds = [f"{value:.4g}" for value in (row.peer_seconds, row.our_seconds)]
    return f"| {' | '.join([row.what, row.peer, *seconds, ratio, *memory, row.difference])} |"


def machine() -> dict[str, str]:
    """Returns the versions and hardware that a time depends on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    flags = info.read_text() if info.is_file() else ""
    found = {
        "processor": f"{names[0]} x {len(names)}" if names else platform.processor(),
        "bf16": ", ".join(flag for flag in ("avx512_bf16", "amx_bf16") if f" {flag}" in flags) or "none",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    packages = ("torch", "timm", "segment-anything", "transformers", "pycocotools", "pillow", "numpy")
    return found | {name: version(name) for name in packages}


def apart(a: torch.Tensor, b: torch.Tensor) -> str:
    """Returns the largest difference of two results, relative to the largest number."""
    return f"{float((a.float() - b.float()).abs().max() / b.float().abs().max()):.0e} of the largest"
