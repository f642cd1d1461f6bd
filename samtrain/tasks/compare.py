"""`task=compare`: puts several runs side by side on one page, from the files in their directories alone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from samtrain.files import write_text
from samtrain.report.compare import write_comparison
from samtrain.report.compare_charts import MAX_RUNS
from samtrain.report.find_runs import find_runs
from samtrain.report.run_files import read_run
from samtrain.run.settings import Config, read

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The `compare` node: run directories or globs; a directory may have a number as its name."""

    runs: str | int | list[str | int] | None

    def paths(self) -> list[str]:
        """Returns the entries as a list of texts."""
        entries = self.runs if isinstance(self.runs, list) else [] if self.runs in (None, "") else [self.runs]
        return [str(entry) for entry in entries]


def run(config: Config, run_dir: Path) -> None:
    """Writes `compare.json`, which holds each run's metrics, and `report.html`.

    Raises ValueError for a directory that is not a run.
    """
    places = find_runs(read(CompareConfig, config, "compare").paths())
    if len(places) > MAX_RUNS:
        log.warning("The charts show the first %d of %d runs, and the tables all of them.", MAX_RUNS, len(places))
    runs = [read_run(place) for place in places]
    content = {str(each.run_dir): each.metrics for each in runs}
    write_text(run_dir / "compare.json", json.dumps(content, indent=1) + "\n")
    for each in runs:
        log.info("%s: %s has %s.", each.run_dir, each.name, "ended" if each.metrics else "not ended")
    log.info("The report is %s.", write_comparison(runs, run_dir))
