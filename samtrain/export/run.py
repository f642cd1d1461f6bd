"""Writes a model in several formats, checks each file in the program that it is for, and removes what does not agree."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samtrain.export.config import ExportConfig
from samtrain.export.formats import GRAPHS, KEEPS_TRAINED_ON, WRITERS
from samtrain.export.model_card import model_card
from samtrain.export.probe import Agreement, Answer, Reading, ask_samtrain, compare, make_probe
from samtrain.export.product import Product
from samtrain.files import digest, write_text
from samtrain.modeling.checkpoints import EXPORT_CURE
from samtrain.modeling.sam import Sam

log = logging.getLogger(__name__)

MAX_ERROR = 1e-4  # of logits, as a share of the largest, and of predicted IoUs: rounding of float32 in another order of sums
FIGURES, CARD = "export.json", "README.md"


@dataclass(frozen=True)
class Checked:
    """Holds a product and how far it agrees with samtrain; `end_to_end` where the program prepares images by its own rules."""

    product: Product
    agreement: Agreement
    end_to_end: Agreement | None
    passed: bool
    image_seconds: float
    prompt_seconds: float


def export_model(
    sam: Sam,
    folder: Path,
    settings: ExportConfig,
    *,
    image: np.ndarray | None,
    facts: Mapping[str, Any],
    trained_on: Collection[str] = (),
) -> list[Checked]:
    """Writes the formats of `settings`, export.json with the figures, and a model card.

    Each product is read back by the program that it is for, which is asked for masks on the image.

    Args:
        sam: the model, in float32 on the CPU and in evaluation mode.
        folder: the folder for the files.
        settings: the formats, and how well they must agree.
        image: (H, W, 3) uint8 RGB; None for a painted scene.
        facts: what export.json and the card say about the model's origin.
        trained_on: digests of the images that the model was trained on, for the formats that keep them.

    Returns:
        The products that agree.

    Raises:
        ValueError: if a product does not agree. It has been removed; the others and export.json are there.
    """
    assert settings.formats is not None
    probe = make_probe(image)
    own = ask_samtrain(sam, probe)
    if sam.config.text_dim and (graphs := [name for name in settings.formats if name in GRAPHS]):
        log.warning("%s: these files take no text prompts, so they are left out.", ", ".join(graphs))
    checked = []
    for name in settings.formats:
        seen = {"trained_on": trained_on} if trained_on and name in KEEPS_TRAINED_ON else {}
        for product in WRITERS[name](sam, folder, settings, **seen):
            checked.append(_check(product, own.answers, product.ask(probe), settings))
    good = [each for each in checked if each.passed]
    for each in checked:
        if not each.passed:
            _remove(each.product)
    figures = {
        **facts,
        "model": sam.config.to_dict(),
        "image": list(probe.image.shape[:2]),
        "samtrain": {"image_seconds": round(own.image_seconds, 3), "prompt_seconds": round(own.prompt_seconds, 3)},
        "formats": {each.product.name: _figures(each, folder) for each in checked},
    }
    write_text(folder / FIGURES, json.dumps(figures, indent=1) + "\n", EXPORT_CURE)
    write_text(folder / CARD, model_card(sam.config, good, facts, settings.onnx_input), EXPORT_CURE)
    if len(good) < len(checked):
        _refuse([each for each in checked if not each.passed], folder, settings)
    return good


def _check(product: Product, own: Mapping[str, Answer], reading: Reading, settings: ExportConfig) -> Checked:
    """Compares the answers with samtrain's, and logs the result."""
    agreement = compare(own, reading.answers)
    whole = compare(own, reading.end_to_end) if reading.end_to_end else None
    if product.rounds:
        passed = agreement.mask_iou >= settings.min_iou
    else:
        passed = max(agreement.logit_error, agreement.iou_error) <= MAX_ERROR
    if whole is not None:
        passed = passed and whole.mask_iou >= settings.min_iou
    log.info(
        "%s: %s %s samtrain's masks (largest error of logits %.1e, of predicted IoUs %.1e, smallest mask IoU %.4f).",
        product.name, product.program, "gives" if passed else "does not give", agreement.logit_error, agreement.iou_error,
        min(agreement.mask_iou, 1.0 if whole is None else whole.mask_iou),
    )  # fmt: skip
    if product.missing:
        log.warning(
            "%s was only read back by samtrain, because the program that it is for is not installed: pip install "
            "'samtrain[%s]' to check it there.", product.name, product.missing,
        )  # fmt: skip
    return Checked(product, agreement, whole, passed, reading.image_seconds, reading.prompt_seconds)


def _figures(each: Checked, folder: Path) -> dict[str, Any]:
    """Returns what export.json says about a product."""
    files = [file for path in each.product.files for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {
        "passed": each.passed,
        "checked_with": each.product.program,
        "agreement": _rounded(each.agreement),
        "end_to_end": each.end_to_end and _rounded(each.end_to_end),
        "image_seconds": round(each.image_seconds, 3),
        "prompt_seconds": round(each.prompt_seconds, 3),
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
            for path in files
            if path.is_file()
        },
    }


def _rounded(agreement: Agreement) -> dict[str, float]:
    return {name: float(f"{value:.3g}") if "error" in name else round(value, 5) for name, value in asdict(agreement).items()}


def _remove(product: Product) -> None:
    for path in product.files:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse(failed: list[Checked], folder: Path, settings: ExportConfig) -> None:
    """Raises ValueError that says what did not agree."""
    lines = []
    for each in failed:
        worst = each.end_to_end or each.agreement
        if each.product.rounds or each.end_to_end:
            lines.append(f"{each.product.name} (a mask IoU of {worst.mask_iou:.3f}, export.min_iou is {settings.min_iou:g})")
        else:
            error = max(each.agreement.logit_error, each.agreement.iou_error)
            lines.append(f"{each.product.name} (an error of {error:.1e}, at most {MAX_ERROR:g} is rounding)")
    raise ValueError(
        f"{len(failed)} of the formats did not give samtrain's masks and were removed: {'; '.join(lines)}. The others are in "
        f"{folder}, and {FIGURES} has all figures: leave these out of export.formats and export.precision"
    )
