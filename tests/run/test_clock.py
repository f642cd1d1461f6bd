"""Seconds of a run that took several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samtrain.run.clock import costs, earlier_seconds, keep_time
from samtrain.run.directory import open_run

ROOT = Path(__file__).resolve().parents[2]


def test_the_processes_of_a_run_add_up(tmp_path: Path) -> None:
    kept = tmp_path / ".hydra" / "seconds.json"
    with open_run(tmp_path, {"seed": 0}, []):
        assert earlier_seconds(tmp_path) == 0
    kept.write_text('{"earlier": 100.0, "now": 20.5}')
    with open_run(tmp_path, {"seed": 0}, []):
        assert earlier_seconds(tmp_path) == 120.5
        assert costs(tmp_path, time.perf_counter())["time/seconds"] >= 120.5
    with open_run(tmp_path, {"seed": 0}, []):
        assert earlier_seconds(tmp_path) > 120.5


def test_a_directory_without_a_count_has_no_earlier_seconds(tmp_path: Path) -> None:
    assert earlier_seconds(tmp_path) == 0


def test_a_killed_process_leaves_its_count(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    code = f"""
import time
from pathlib import Path
from samtrain.run import clock
clock.BEAT = 0.01
with clock.keep_time(Path({str(tmp_path)!r})):
    before = (kept := Path({str(tmp_path / ".hydra" / "seconds.json")!r})).read_text()
    while kept.read_text() == before:
        time.sleep(0.01)
    print("counted", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "counted\n"
        os.kill(process.pid, signal.SIGKILL)
    with keep_time(tmp_path):
        assert earlier_seconds(tmp_path) > 0


def test_an_error_ends_the_count(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    with pytest.raises(ZeroDivisionError), keep_time(tmp_path):
        raise ZeroDivisionError
    with keep_time(tmp_path):
        assert earlier_seconds(tmp_path) > 0
