"""Two ways of doing the same thing, timed in turn in one process: how every benchmark here measures.

A row is what a peer and samtrain took: medians over the pairs, the ratio of each pair with its spread, the memory that each
needed beyond what lay there before, and how far the results are apart.
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
    """One line of a table; seconds are medians, memory is in GB and None where it was not asked for."""

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
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--pairs", type=int, default=pairs, help="how often both are timed, in turn, after one run to warm up")
    parser.add_argument("--json", type=Path, default=None, help="where to write the rows")
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
    """Time both in turn; with `memory` one more run of each says what it needs at its peak."""
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
    """The most memory that a job held beyond what lay there before it, in 10^9 bytes (on Linux; the device's where CUDA is)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): forget the highest resident size
    before = _status("VmRSS")
    job()
    return (_status("VmHWM") - before) / 1e9


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def finish(options: argparse.Namespace, name: str, rows: Sequence[Row], notes: dict[str, Any] | None = None) -> None:
    """Print the table, and write it where `--json` says."""
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
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _line(row: Row) -> str:
    memory = ["" if gb is None else f"{gb:.2f}" for gb in (row.peer_gb, row.our_gb)]
    ratio = f"{row.ratio:.2f} ({row.lowest_ratio:.2f} to {row.highest_ratio:.2f})"
    seconds = [f"{value:.4g}" for value in (row.peer_seconds, row.our_seconds)]
    return f"| {' | '.join([row.what, row.peer, *seconds, ratio, *memory, row.difference])} |"


def machine() -> dict[str, str]:
    """What a time hangs on."""
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
    """How far two results are apart, of the largest number."""
    return f"{float((a.float() - b.float()).abs().max() / b.float().abs().max()):.0e} of the largest"
