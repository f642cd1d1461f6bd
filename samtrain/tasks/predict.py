"""`task=predict`: masks of one object from clicks or a box on one image."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from samtrain.data.decode import decode_shown
from samtrain.files import write_text
from samtrain.modeling.build import load_sam
from samtrain.ops.rle import encode_mask
from samtrain.panels import draw_panel, tile_panels
from samtrain.run.build import Config, device_of, make_predictor
from samtrain.types import PointLabel, Prompts

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> None:
    """Write `mask_<i>.png`, `masks.json` (RLE and predicted IoU, the best first) and an image of them, `masks.png`."""
    settings = config["predict"]
    _check(config)
    image = decode_shown(Path(settings["image"]).read_bytes(), settings["image"])
    clicks = np.array(settings["points"], dtype=np.float64).reshape(-1, 3)
    box = settings["box"] and np.array(settings["box"], dtype=np.float64)

    # lone prompts are ambiguous: three masks; the sharper answer to several is one (paper, section 3)
    sam = load_sam(config["checkpoint"]).to(device_of(config))
    predictor = make_predictor(sam, native=config["data"]["frame"] == "native")
    predictor.set_image(image)
    masks, ious, _ = predictor.predict(
        point_coords=clicks[:, :2] if len(clicks) else None,
        point_labels=clicks[:, 2].astype(np.int64) if len(clicks) else None,
        box=box,
        multimask_output=len(clicks) + (box is not None) == 1,
    )
    order = np.argsort(-ious)
    _write(run_dir, image, masks[order], ious[order], _shown(clicks, box))


def _check(config: Config) -> None:
    settings = config["predict"]
    for key, value in (("checkpoint", config["checkpoint"]), ("predict.image", settings["image"])):
        if value is None:
            raise ValueError(f"{key} is null: task=predict needs checkpoint=FILE predict.image=IMAGE")
        if not Path(value).is_file():
            raise ValueError(f"{key} is {value!r}, which is no file")
    if not settings["points"] and settings["box"] is None:
        raise ValueError("nothing is asked: give predict.points='[[x, y, 1]]' or predict.box='[x0, y0, x1, y1]'")
    if any(len(point) != 3 or point[2] not in (0, 1) for point in settings["points"]):
        raise ValueError(f"predict.points is {settings['points']}: each is [x, y, 1] on the object, [x, y, 0] off it")


def _shown(clicks: np.ndarray, box: np.ndarray | None) -> Prompts:
    """The prompts as panels draw them, the newest click first."""
    coords, labels = clicks[::-1, :2], clicks[::-1, 2]
    if box is not None:
        coords = np.concatenate([coords, box.reshape(2, 2)])
        labels = np.concatenate([labels, [PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]])
    return Prompts(torch.tensor(np.array(coords)[None]).float(), torch.tensor(np.array(labels)[None]).long())


def _write(run_dir: Path, image: np.ndarray, masks: np.ndarray, ious: np.ndarray, prompts: Prompts) -> None:
    found: list[dict[str, Any]] = []
    tiles = []
    for number, (mask, iou) in enumerate(zip(masks, ious.tolist(), strict=True)):
        Image.fromarray(mask.astype(np.uint8) * 255).save(run_dir / f"mask_{number}.png")
        found.append({"segmentation": encode_mask(mask), "area": int(mask.sum()), "predicted_iou": iou})
        tiles.append(draw_panel(image, mask[None], prompts, caption=f"predicted IoU {iou:.2f}", side=384))
    write_text(run_dir / "masks.json", json.dumps(found, indent=1) + "\n")
    Image.fromarray(tile_panels([tiles])).save(run_dir / "masks.png")
    log.info("%d masks in %s, predicted IoU %s", len(found), run_dir, ", ".join(f"{iou:.2f}" for iou in ious))
