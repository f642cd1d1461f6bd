"""A run that stands in for a training: it writes what `task=tune` reads, with known quality."""

from __future__ import annotations

from pathlib import Path

MAIN = '''
import fcntl, json, sys, time
from pathlib import Path

given = dict(each.split("=", 1) for each in sys.argv[1:])
run = Path(given["run_dir"].strip("'"))
run.mkdir(parents=True, exist_ok=True)
lock = open(run / ".lock", "w")
try:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit("another process is working here")
told = run / "told.json"
if told.is_file() and json.loads(told.read_text()) != sys.argv[1:]:
    sys.exit("it holds a run of another config")
told.write_text(json.dumps(sys.argv[1:]))
(run / "arguments.json").write_text(json.dumps(sys.argv[1:]))
rate, points = float(given.get("optim.learning_rate_factor", 1)), int(given.get("prompts.num_points", 1))
if "broken" in given.get("name", "") or (points == 5 and "fails_at_5" in given.get("name", "")):
    sys.exit("it does not fit: points are 5")
best = 0.9 - abs(rate - 2) / 10 + int(given.get("seed", 0)) / 1000
with open(run / "metrics.csv", "w") as file:
    file.write("step,train/loss,val/miou_1\\n")
    for k in range(4):
        file.write(f"{k},1.0,\\n{k},,{best * (k + 1) / 4}\\n")
        file.flush()
        time.sleep(float(given.get("callbacks.log_every_steps", 0)))
(run / "metrics.json").write_text(json.dumps({"val/miou_1": best, "test/miou_1": best - 0.05, "test/none": None}))
'''


def write_command(folder: Path) -> Path:
    """Makes `python -m samtrain` in this folder the pretended command."""
    (folder / "samtrain").mkdir()
    (folder / "samtrain" / "__init__.py").write_text("")
    (folder / "samtrain" / "__main__.py").write_text(MAIN)
    return folder
