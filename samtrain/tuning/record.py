"""What a sweep writes: `tune.json` and the report, after each trial, and its closing lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samtrain.files import write_text
from samtrain.report.page import write_report
from samtrain.tuning.config import TuneConfig
from samtrain.tuning.study import Sweep
from samtrain.tuning.trials import Command

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed or killed", "RUNNING": "running"}


@dataclass
class SweepRecord:
    """The state of a sweep as files in `run_dir`.

    command:     what every trial runs, `tune.overrides` last
    comparison:  default and winner with other seeds, once they have been run
    """

    run_dir: Path
    config: TuneConfig
    sweep: Sweep
    command: Command
    comparison: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        write_text(self.run_dir / "tune.json", json.dumps(self.content(), indent=1) + "\n")
        write_report(self.run_dir)

    def content(self) -> dict[str, Any]:
        """Returns what `tune.json` holds."""
        best = self.sweep.best()
        return {
            "metric": self.config.metric,
            "direction": self.config.direction,
            "num_trials": self.config.num_trials,
            "dimensions": [
                {"key": each.key, "default": each.default, "log": each.log, "choices": list(each.choices)}
                for each in self.sweep.dimensions
            ],
            "trials": [asdict(trial) for trial in self.sweep.trials()],
            "importances": self.sweep.importances(),
            "best": None if best is None else self._best(best),
            "again": self.comparison,
        }

    def _best(self, best: Any) -> dict[str, Any]:
        is_default = bool(best.user_attrs.get("default"))
        return {"number": best.number, "value": best.value, "default": is_default, "command": self.winning_command(best)}

    def winning_command(self, best: Any) -> str:
        """Returns the command of the best trial, without the overrides that are only for trials."""
        typed = self.command.overrides[: len(self.command.overrides) - len(self.config.overrides)]
        return str(Command(typed).with_values(best.params))

    def summary_lines(self) -> list[str]:
        """Returns the closing lines for the log."""
        best, states = self.sweep.best(), [trial.state for trial in self.sweep.trials()]
        lines = ["Trials: " + ", ".join(f"{states.count(state)} {word}" for state, word in STATES.items())]
        if best is None:
            return lines
        default = ", the default" if best.user_attrs.get("default") else ""
        lines.append(f"The best is trial {best.number}{default}, with {self.config.metric} {best.value:.4f}")
        if self.comparison:
            name, by_seed = self.comparison["metric"], self.comparison["by_seed"]
            each = ", ".join(f"{value:+.4f}" for value in by_seed.values())
            difference = self.comparison["difference"]
            lines.append(f"Winner minus default on {name}: {difference:+.4f} on average ({len(by_seed)} seeds: {each})")
        return [*lines, f"The winner's command: {self.winning_command(best)}"]
