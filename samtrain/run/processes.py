"""Runs worker processes that share the work of a task on this machine, one per GPU if there are any."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

POLL_SECONDS = 0.5
# spawned instead of forked, because CUDA and OpenMP do not survive a fork
CONTEXT = multiprocessing.get_context("spawn")


def run_together(workers: Sequence[Any], again: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Starts processes of `CONTEXT` and waits until all have ended; if one fails or this one is interrupted, ends the others.

    `meanwhile` is called twice a second, and once more at the end. Raises ValueError if a process fails; `again` completes
    the advice "give the same command".
    """
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
            time.sleep(POLL_SECONDS)
            meanwhile()
        meanwhile()
    except BaseException:  # Ctrl-C is one
        _end(workers)
        raise
    if failed := [worker for worker in workers if worker.exitcode]:
        _end(workers)
        first = f"{failed[0].name} with exit status {failed[0].exitcode}"
        raise ValueError(
            f"{len(failed)} of {len(workers)} processes failed ({first}): correct the error that it printed above, and "
            f"give the same command {again}. What is finished is kept"
        )


@contextmanager
def as_worker(count: int) -> Iterator[None]:
    """Sets up one of `count` worker processes: its log, its share of the cores, and user errors without a traceback."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(str(error))


def _end(workers: Sequence[Any]) -> None:
    for worker in workers:
        worker.terminate()
        worker.join()
