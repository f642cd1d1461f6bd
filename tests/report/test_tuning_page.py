"""The page of a sweep: all trials, however they ended, and the gain of the winner."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from samtrain.report import write_report

DIMENSIONS = [
    {"key": "optim.rate", "default": 1.0, "log": True, "choices": []},
    {"key": "jitter", "default": None, "log": False, "choices": [None, "[0.8,1.2]"]},
]


def trial(number: int, state: str, value: float | None, rate: float | None, reason: str = "") -> dict:
    params = {} if rate is None else {"optim.rate": rate, "jitter": None if number % 2 else "[0.8,1.2]"}
    return {
        "number": number, "state": state, "params": params, "value": value, "measurements": {}, "folder": "t",
        "seconds": 60.0 if state == "COMPLETE" else None, "reason": reason, "default": number == 0,
    }  # fmt: skip


def page(folder: Path, **more: object) -> str:
    trials = [
        trial(0, "COMPLETE", 0.5, 1.0), trial(1, "COMPLETE", 0.6, 2.0), trial(2, "PRUNED", 0.1, 9.0),
        trial(3, "FAIL", None, 3.0, "exit status 1"), trial(4, "FAIL", None, None), trial(5, "RUNNING", None, 4.0),
    ]  # fmt: skip
    best = {"number": 1, "value": 0.6, "default": False, "command": "python -m samtrain +experiment=pretrain optim.rate=2.0"}
    content = {
        "metric": "val/miou_1", "direction": "maximize", "num_trials": 6, "dimensions": DIMENSIONS, "trials": trials,
        "importances": {"optim.rate": 0.75, "jitter": 0.25}, "best": best, "again": {}, **more,
    }  # fmt: skip
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"name": "sweep", "task": "tune"}))
    (folder / "tune.json").write_text(json.dumps(content))
    return write_report(folder).read_text()


def test_a_row_per_trial_best_first(tmp_path: Path) -> None:
    text = page(tmp_path)
    rows = re.findall(r"<tr><td>(\d)(?: \(default\))?</td><td>([^<]*)</td>", text)
    states = ["finished", "finished", "pruned", "failed", "killed, resumed by another trial", "running"]
    assert rows == list(zip("102345", states, strict=True))
    assert "python -m samtrain +experiment=pretrain optim.rate=2.0" in text
    assert "rate (logarithmic)" in text and "[0.8,1.2]" in text and "3 of 6" in text
    assert text.index("<code>optim.rate</code>") < text.index("<code>jitter</code>")  # by importance


def test_the_difference_has_its_sign(tmp_path: Path) -> None:
    again = {
        "metric": "test/miou_1", "default": {"1": 0.5, "2": 0.6}, "winner": {"1": 0.4, "2": 0.65},
        "by_seed": {"1": -0.1, "2": 0.05}, "difference": -0.025,
    }  # fmt: skip
    text = page(tmp_path, again=again)
    assert "<td>-0.1000</td><td>+0.0500</td><td>-0.0250</td>" in text and "-0.025" in text


def test_before_a_trial_has_finished(tmp_path: Path) -> None:
    text = page(tmp_path, trials=[trial(0, "RUNNING", None, 1.0)], best=None, importances={})
    assert "No trial has finished yet" in text and "computed from four finished trials on" in text
