"""`task=export`: a checkpoint for other programs: the official flat .pth, or safetensors with our names."""

from __future__ import annotations

import logging
from pathlib import Path

from samtrain.modeling.build import load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.run.build import Config

log = logging.getLogger(__name__)

WRITERS = {".pth": save_official, ".safetensors": save_safetensors}


def run(config: Config, run_dir: Path) -> None:
    """Write `config.checkpoint` to `config.export.path`, or into the run's directory as model.pth."""
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=export needs one, checkpoint=FILE")
    path = Path(config["export"]["path"] or run_dir / "model.pth")
    if path.suffix not in WRITERS:
        raise ValueError(f"export.path is {str(path)!r}: it has to end with {' or '.join(WRITERS)}")
    WRITERS[path.suffix](load_sam(config["checkpoint"]), path)
    log.info("wrote %s", path)
