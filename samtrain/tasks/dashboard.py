"""`task=dashboard`: the W&B dashboard of a project, as a file, and on the server where an entity is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from samtrain.files import write_text
from samtrain.prompts import seeded_generator
from samtrain.run.build import Config, make_prompts
from samtrain.training.loggers.dashboard import build_workspace, workspace_json

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> None:
    """Write `workspace.json`; with `dashboard.entity` save it to W&B as a new view, and log where.

    Its curves of the last interaction are those of `config.prompts`.
    """
    settings = config["dashboard"]
    interactions = make_prompts(config).schedule(seeded_generator("cpu", config["seed"]))
    workspace = build_workspace(settings["entity"] or "", settings["project"], last=len(interactions) - 1)
    path = run_dir / "workspace.json"
    write_text(path, json.dumps(workspace_json(workspace), indent=1) + "\n")
    log.info("wrote %s", path)
    if settings["entity"] is None:
        log.info("dashboard.entity is null: nothing was sent; name your W&B user or team to save it there")
        return
    log.info("saved as %s", _save(workspace))


def _save(workspace: Any) -> str:
    """The URL of the new view; ValueError where W&B does not take it."""
    import wandb

    try:
        return str(workspace.save().url)
    except wandb.Error as error:
        place = f"{workspace.entity}/{workspace.project}"
        raise ValueError(
            f"W&B did not take the dashboard of {place} ({error}): run `wandb login`, and look at dashboard.entity and "
            "dashboard.project, which has to exist"
        ) from error
