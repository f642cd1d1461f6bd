"""A study shared by processes: the number of trials is exact, killed trials are resumed, and none is left running."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'samtrain[sweep]'")

from samtrain.tuning import Dimension, Sweep, TrialTaken, lock_of, open_study  # noqa: E402
from samtrain.tuning.storage import without_password  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SPACE = [Dimension("rate", 1.0, 0.1, 10.0, log=True), Dimension("points", 2, 1, 5)]


def sweep(folder: Path, num_trials: int = 6, space: list[Dimension] = SPACE, stale_after: float = 60, **about: str) -> Sweep:
    sampler = optuna.samplers.RandomSampler(seed=0)
    url = f"sqlite:///{folder / 'study.db'}"
    study = open_study("s", url, space, about=about, direction="maximize", sampler=sampler, pruner=None)
    return Sweep(study, space, num_trials, stale_after, folder / "trials", lock_of(url))


def run_trials(each: Sweep, pause: float = 0.0) -> list[int]:
    """Runs trials until none is left, and returns their numbers."""
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
    assert run_trials(each) == list(range(6))
    assert each.trials()[0].params == {"rate": 1.0, "points": 2}
    assert run_trials(sweep(tmp_path)) == []
    assert run_trials(sweep(tmp_path, num_trials=8)) == [6, 7]


SCRIPT = """
import sys, time
from pathlib import Path
from tests.tuning.test_study import run_trials, sweep
folder, go = Path(sys.argv[1]), Path(sys.argv[1]) / "go"
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
print(*run_trials(sweep(folder, num_trials=9), pause=0.05))
"""


def test_parallel_processes_run_exactly_num_trials(tmp_path: Path) -> None:
    """From the creation of the study on: no trial twice, none too many, one default."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    done = [int(number) for process in processes for number in process.communicate(timeout=120)[0].split()]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(done) == list(range(9))
    found = sweep(tmp_path, num_trials=9)
    assert states(found) == ["COMPLETE"] * 9
    assert [trial.default for trial in found.trials()] == [True] + [False] * 8
    assert len({trial.folder for trial in found.trials()}) == 9


def test_one_of_many_processes_resumes_a_killed_trial(tmp_path: Path) -> None:
    first = sweep(tmp_path, num_trials=2)
    trial = first.next_trial()
    trial.set_user_attr("process", f"{trial.user_attrs['process'].rpartition(':')[0]}:{dead_process()}")
    others = [sweep(tmp_path, num_trials=2) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        taken = [each for each in pool.map(lambda s: s.next_trial(), others) if each is not None]
    assert sorted(each.number for each in taken) == [1, 2]
    assert [each.user_attrs.get("resumes") for each in sorted(taken, key=lambda t: t.number)] == [0, None]
    assert states(first).count("FAIL") == 1
    with pytest.raises(TrialTaken):  # it was taken for dead, but is not
        first.finish(trial, 1.0, 1.0)
    with pytest.raises(TrialTaken):
        first.report(trial, 0, 1.0)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_default_that_failed_is_run_again(tmp_path: Path) -> None:
    each = sweep(tmp_path)
    each.fail(each.next_trial(), "the disk is full")
    again = sweep(tmp_path)
    assert again.next_trial().user_attrs["default"] is True
    assert [trial.default for trial in again.trials()] == [True, True]
    sweep(tmp_path)  # it runs: not queued a third time
    assert len(again.trials()) == 2


def test_a_killed_trial_resumes_in_its_folder(tmp_path: Path) -> None:
    each = sweep(tmp_path, num_trials=3)
    trial = each.next_trial()
    killed = {d.key: d.suggest(trial) for d in each.dimensions}
    assert sweep(tmp_path, num_trials=3).num_running() == 1  # its process is running: nobody resumes it
    host = trial.user_attrs["process"].rpartition(":")[0]
    trial.set_user_attr("process", f"{host}:{dead_process()}")
    again = sweep(tmp_path, num_trials=3)
    second = again.next_trial()
    assert second.user_attrs["folder"] == trial.user_attrs["folder"] and second.user_attrs["resumes"] == 0
    assert {d.key: d.suggest(second) for d in again.dimensions} == killed
    again.finish(second, 1.0, 1.0)
    run_trials(again)
    assert states(again).count("COMPLETE") == 3 and states(again).count("FAIL") == 1 and "RUNNING" not in states(again)


def test_a_silent_process_of_another_machine_counts_as_dead(tmp_path: Path) -> None:
    each = sweep(tmp_path, stale_after=0.2)
    trial = each.next_trial()
    trial.set_user_attr("process", "elsewhere:1")
    assert sweep(tmp_path, num_trials=1, stale_after=60).next_trial() is None
    time.sleep(0.3)
    # it was killed before it had its values, and is the default all the same
    again = each.next_trial()
    assert again.user_attrs["resumes"] == 0 and again.user_attrs["default"]
    assert {d.key: d.suggest(again) for d in SPACE} == {"rate": 1.0, "points": 2}


def test_a_trial_that_is_given_back_is_the_next(tmp_path: Path) -> None:
    each = sweep(tmp_path)
    play_first = each.next_trial()
    each.give_back(play_first)
    assert each.next_trial().user_attrs["resumes"] == 0
    assert each.next_trial().number == 2


def test_another_space_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path)
    with pytest.raises(ValueError, match="points: 1 to 5 there, 1 to 6 here.*another tune.study"):
        sweep(tmp_path, space=[SPACE[0], Dimension("points", 2, 1, 6)])
    with pytest.raises(ValueError, match="metric: None there, val/other here"):
        sweep(tmp_path, metric="val/other")


@pytest.mark.parametrize("url", ["nosql://x", "study.db"])
def test_other_storage_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"tune.storage .*sqlite:///FILE or postgresql://"):
        sampler = optuna.samplers.RandomSampler()
        open_study("s", url, SPACE, about={}, direction="maximize", sampler=sampler, pruner=None)


def test_passwords_are_not_logged() -> None:
    assert without_password("postgresql://me:s3cret@host/trials") == "postgresql://me:***@host/trials"
    assert lock_of("sqlite:///a/b.db") == Path("a/b.db.lock")


def test_one_process_claims_the_work_at_the_end(tmp_path: Path) -> None:
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
