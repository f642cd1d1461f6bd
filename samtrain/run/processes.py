"""Processes of this machine that share the work of a task, one a GPU where there are any."""

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

LOOK_EVERY = 0.5  # seconds
# processes are begun anew, for CUDA and OpenMP do not survive a fork
CONTEXT = multiprocessing.get_context("spawn")


def run_together(workers: Sequence[Any], again: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Begin processes of `CONTEXT` and wait for their end; where one fails, or this is interrupted, all are ended.

    meanwhile: called now and then, and once they have ended. Raises ValueError for a failed one; `again` says what besides
    the same command it takes to go on.
    """
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
            time.sleep(LOOK_EVERY)
            meanwhile()
        meanwhile()
    except BaseException:  # as by Ctrl-C
        _end(workers)
        raise
    if failed := [worker for worker in workers if worker.exitcode]:
        _end(workers)
        first = f"{failed[0].name} with exit status {failed[0].exitcode}"
        raise ValueError(
            f"{len(failed)} of {len(workers)} processes failed ({first}); what it said stands above. What is finished stays: "
            f"mend it and give the same command {again}"
        )


@contextmanager
def as_worker(count: int) -> Iterator[None]:
    """One of `count` processes, at its beginning: a log of its own, its part of the cores, errors of the user in words."""
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
