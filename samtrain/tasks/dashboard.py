"""`task=dashboard`: writes the W&B dashboard of a project as a file, and saves it on the server if an entity is set."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtrain.files import write_text
from samtrain.prompts import seeded_generator
from samtrain.run.build import make_prompts
from samtrain.run.settings import Config, read
from samtrain.training.loggers.dashboard import build_workspace, workspace_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """The `dashboard` node: where on W&B the dashboard is saved; without an entity only a file is written."""

    entity: str | None
    project: str

    def __post_init__(self) -> None:
        if not self.project:
            raise ValueError("dashboard.project is empty: set it to a project on W&B")


def run(config: Config, run_dir: Path) -> None:
    """Writes `workspace.json`, and with `dashboard.entity` saves it to W&B as a new view.

    The curves of the last interaction are those of the `prompts` node.
    """
    settings = read(DashboardConfig, config, "dashboard")
    interactions = make_prompts(config).schedule(seeded_generator("cpu", config["seed"]))
    workspace = build_workspace(settings.entity or "", settings.project, last=len(interactions) - 1)
    path = run_dir / "workspace.json"
    write_text(path, json.dumps(workspace_json(workspace), indent=1) + "\n")
    log.info("The dashboard was written to %s.", path)
    if settings.entity is None:
        log.info("Nothing was sent to W&B, because dashboard.entity is null: set it to your user or team to save it there.")
    else:
        log.info("The dashboard was saved as %s.", _save(workspace))


def _save(workspace: Any) -> str:
    """Returns the URL of the new view; raises ValueError if W&B refuses it."""
    import wandb

    try:
        return str(workspace.save().url)
    except wandb.Error as error:
        place = f"{workspace.entity}/{workspace.project}"
        raise ValueError(
            f"W&B did not accept the dashboard of {place} ({error}): run `wandb login`, and check that dashboard.entity is "
            "yours and that dashboard.project exists"
        ) from error
