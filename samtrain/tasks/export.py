"""`task=export`: writes a checkpoint, or the masks of shards, in the formats of other programs, and checks the files."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samtrain.data.decode import decode_shown
from samtrain.export.config import ENDINGS, ExportConfig
from samtrain.export.formats import EXTRAS
from samtrain.export.masks_out import write_masks
from samtrain.export.model_card import OFFICIAL_SIZE
from samtrain.export.run import CARD, FIGURES, export_model
from samtrain.files import digest
from samtrain.modeling.build import load_sam
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.foreign_files import file_of_folder
from samtrain.modeling.sam import PAPER_MODELS
from samtrain.modeling.trained_on import images_trained_on
from samtrain.run.settings import Config, read
from samtrain.version import commit, version

log = logging.getLogger(__name__)

SINGLE_FILE = {"official": save_official, "safetensors": save_safetensors}


def run(config: Config, run_dir: Path) -> None:
    """Writes `checkpoint` to the file `export.path`, or it or `export.dataset` to that folder in each of `export.formats`."""
    settings = read(ExportConfig, config, "export")
    if settings.dataset is not None and settings.formats is not None:
        write_masks(settings.dataset, settings.formats, Path(settings.path or run_dir))
        return
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=export needs one, set checkpoint=FILE")
    if settings.formats is None:
        _write_file(config["checkpoint"], Path(settings.path or run_dir / "model.pth"))
        return
    _check_packages(settings.formats)
    image = None if settings.image is None else decode_shown(Path(settings.image).read_bytes(), settings.image)
    sam, folder = load_sam(config["checkpoint"]), Path(settings.path or run_dir)
    if sam.config.frame == "native":
        log.warning(
            "The model was trained on native pixels (data.frame=native). Other programs resize images: show them tiles of %d x "
            "%d pixels, as %s says.", sam.config.image_size, sam.config.image_size, CARD,
        )  # fmt: skip
    seen = images_trained_on(config["checkpoint"])
    good = export_model(sam, folder, settings, image=image, facts=_facts(config["checkpoint"]), trained_on=seen)
    log.info("%s holds %s. %s has the figures.", folder, ", ".join(each.product.name for each in good), FIGURES)


def _write_file(checkpoint: str, path: Path) -> None:
    """Writes one file; its ending chooses the format."""
    kind, sam = ENDINGS[path.suffix], load_sam(checkpoint)
    SINGLE_FILE[kind](sam, path, trained_on=images_trained_on(checkpoint))
    log.info("The model was written to %s.", path)
    if kind == "official" and (sam.config.model not in PAPER_MODELS or sam.config.image_size != OFFICIAL_SIZE):
        log.info(
            "segment_anything's sam_model_registry knows %s at %d pixels only, so read this %s of %d pixels with "
            "samtrain.load_sam.", ", ".join(PAPER_MODELS), OFFICIAL_SIZE, sam.config.model, sam.config.image_size,
        )  # fmt: skip


def _check_packages(formats: list[str]) -> None:
    """Raises ValueError if a format needs a package that is not installed, before anything is written."""
    for name in formats:
        if name in EXTRAS and any(find_spec(package) is None for package in ("onnx", "onnxruntime", "onnxscript")):
            raise ValueError(
                f"export.formats has {name}, which needs optional packages: pip install 'samtrain[{EXTRAS[name]}]', or leave "
                f"{name} out"
            )


def _facts(checkpoint: str) -> dict[str, Any]:
    """Returns where the model comes from."""
    return {
        "checkpoint": Path(checkpoint).name,
        "checkpoint_sha256": digest(file_of_folder(Path(checkpoint))),
        "exported_by": f"samtrain {version()}, commit {commit() or 'unknown'}",
    }
