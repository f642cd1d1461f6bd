"""`task=export`: converts a checkpoint to the official flat .pth, or to safetensors with our names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from samtrain.modeling.build import load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.sam import PAPER_MODELS
from samtrain.modeling.trained_on import images_trained_on
from samtrain.run.settings import Config, read

log = logging.getLogger(__name__)

OFFICIAL_SIZE = 1024  # segment_anything/build_sam.py
WRITERS = {".pth": save_official, ".safetensors": save_safetensors}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The `export` node: the file to write; its ending chooses the format. None: model.pth in the run's directory."""

    path: str | None

    def __post_init__(self) -> None:
        if self.path is not None and Path(self.path).suffix not in WRITERS:
            raise ValueError(f"export.path is {self.path!r}: set it to a file that ends with {' or '.join(WRITERS)}")


def run(config: Config, run_dir: Path) -> None:
    """Writes `checkpoint` to `export.path`."""
    settings = read(ExportConfig, config, "export")
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=export needs one, set checkpoint=FILE")
    path, sam = Path(settings.path or run_dir / "model.pth"), load_sam(config["checkpoint"])
    WRITERS[path.suffix](sam, path, trained_on=images_trained_on(config["checkpoint"]))
    log.info("The model was written to %s.", path)
    if path.suffix == ".pth" and (sam.config.model not in PAPER_MODELS or sam.config.image_size != OFFICIAL_SIZE):
        log.info(
            "segment_anything's sam_model_registry knows %s at %d pixels only, so read this %s of %d pixels with "
            "samtrain.load_sam.", ", ".join(PAPER_MODELS), OFFICIAL_SIZE, sam.config.model, sam.config.image_size,
        )  # fmt: skip
