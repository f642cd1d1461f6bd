"""The study that processes share: its count is kept, what was killed goes on, nothing is left running."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'samtrain[sweep]'")

from samtrain.tuning import Dimension, Sweep, open_study  # noqa: E402

SPACE = [Dimension("rate", 1.0, 0.1, 10.0, log=True), Dimension("points", 2, 1, 5)]


def sweep(folder: Path, num_trials: int = 6, space: list[Dimension] = SPACE, stale_after: float = 60) -> Sweep:
    sampler = optuna.samplers.RandomSampler(seed=0)
    url = f"sqlite:///{folder / 'study.db'}"
    study = open_study("s", url, space, direction="maximize", sampler=sampler, pruner=None)
    return Sweep(study, space, num_trials, stale_after, folder / "trials")


def play(each: Sweep, pause: float = 0.0) -> list[int]:
    """Trials until there is none left; returns their numbers."""
    numbers = []
    while (trial := each.next_trial()) is not None:
        value = sum(float(d.suggest(trial)) for d in each.dimensions)
        time.sleep(pause)
        each.finish(trial, value, 1.0)
        numbers.append(trial.number)
    return numbers


def states(each: Sweep) -> list[str]:
    return [trial.state for trial in each.trials()]


def test_trial_0_is_the_default(tmp_path: Path) -> None:
    each = sweep(tmp_path)
    assert play(each) == list(range(6))
    assert each.trials()[0].params == {"rate": 1.0, "points": 2}
    assert play(sweep(tmp_path)) == []
    assert play(sweep(tmp_path, num_trials=8)) == [6, 7]


def test_many_at_once_run_as_many_as_were_asked_for(tmp_path: Path) -> None:
    each = [sweep(tmp_path, num_trials=9) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = [number for numbers in pool.map(lambda s: play(s, pause=0.02), each) for number in numbers]
    found = sweep(tmp_path, num_trials=9)
    assert len(done) == len(set(done)) == 9
    assert states(found).count("COMPLETE") == 9 and "RUNNING" not in states(found)
    assert all("one too many" in t.reason for t in found.trials() if t.state == "FAIL")
    assert len({t.folder for t in found.trials() if t.state == "COMPLETE"}) == 9


def test_what_was_killed_goes_on_in_its_folder(tmp_path: Path) -> None:
    each = sweep(tmp_path, num_trials=3)
    trial = each.next_trial()
    killed = {d.key: d.suggest(trial) for d in each.dimensions}
    assert sweep(tmp_path, num_trials=3).others() == 1  # this process is there: nobody takes it up
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = trial.user_attrs["process"].rpartition(":")[0]
    trial.set_user_attr("process", f"{host}:{dead.pid}")
    again = sweep(tmp_path, num_trials=3)
    second = again.next_trial()
    assert second.user_attrs["folder"] == trial.user_attrs["folder"] and second.user_attrs["goes_on_with"] == 0
    assert {d.key: d.suggest(second) for d in again.dimensions} == killed
    again.finish(second, 1.0, 1.0)
    play(again)
    assert states(again).count("COMPLETE") == 3 and states(again).count("FAIL") == 1 and "RUNNING" not in states(again)


def test_a_process_of_another_machine_is_dead_when_it_is_silent(tmp_path: Path) -> None:
    each = sweep(tmp_path, stale_after=0.2)
    trial = each.next_trial()
    trial.set_user_attr("process", "elsewhere:1")
    each.take_up_killed()
    assert states(each) == ["RUNNING"]
    time.sleep(0.3)
    each.take_up_killed()
    assert states(each) == ["FAIL", "WAITING"]
    # killed before it had drawn its values: the default is still the first to be run
    assert each.next_trial().user_attrs["goes_on_with"] == 0
    assert {d.key: d.suggest(each.study.trials and optuna.trial.Trial(each.study, each.study.trials[1]._trial_id))
            for d in SPACE} == {"rate": 1.0, "points": 2}  # fmt: skip


def test_given_back_it_is_the_next(tmp_path: Path) -> None:
    each = sweep(tmp_path)
    play_first = each.next_trial()
    each.give_back(play_first)
    assert each.next_trial().user_attrs["goes_on_with"] == 0
    assert each.next_trial().number == 2


def test_another_space_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path)
    with pytest.raises(ValueError, match="searches .*another tune.study"):
        sweep(tmp_path, space=[SPACE[0], Dimension("points", 2, 1, 6)])
    with pytest.raises(ValueError, match="tune.storage .*cannot be opened"):
        open_study("s", "nosql://x", SPACE, direction="maximize", sampler=optuna.samplers.RandomSampler(), pruner=None)


def test_work_at_the_end_is_one_processes(tmp_path: Path) -> None:
    each = sweep(tmp_path)
    assert each.claim("again") and each.claim("again")
    each.study.set_user_attr("again", "elsewhere:1")
    assert not each.claim("again")


def test_importances_of_a_setting_that_matters(tmp_path: Path) -> None:
    each = sweep(tmp_path, num_trials=30)
    assert each.importances() == {}
    while (trial := each.next_trial()) is not None:
        rate, points = (d.suggest(trial) for d in each.dimensions)
        each.finish(trial, rate + 1e-6 * points, 1.0)
    found = each.importances()
    assert found["rate"] > 0.8 and sum(found.values()) == pytest.approx(1)
