"""A run directory with a few rows, for tests of what reads runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def make_run(folder: Path, metrics: dict[str, float] | None = None, **config: Any) -> Path:
    """Writes a run directory; a run without metrics has not ended."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "task": "fit", **config}))
    (folder / "metrics.csv").write_text("step,images_seen,train/loss,val/miou_1\n1,4,2.0,0.2\n2,8,1.5,0.3\n")
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
