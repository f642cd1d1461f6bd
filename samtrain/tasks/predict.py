"""`task=predict`: predicts masks of one object from clicks or a box on one image."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samtrain.data.decode import decode_shown
from samtrain.files import write_text
from samtrain.inference.frames import make_predictor
from samtrain.modeling.build import load_sam
from samtrain.ops.rle import encode_mask
from samtrain.panels import draw_panel, save_image, tile_panels
from samtrain.run.build import device_of
from samtrain.run.image_sets import asked_frame
from samtrain.run.settings import Config, read
from samtrain.terminal import counted
from samtrain.types import PointLabel, Prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The `predict` node: one image and its prompts, in pixels of the image.

    points: [[x, y, label], ...] with label 1 on the object and 0 off it
    box:    [x0, y0, x1, y1]
    """

    image: str | None
    points: list[Any] = field(default_factory=list)
    box: list[float] | None = None

    def __post_init__(self) -> None:
        if not all(_is_point(point) for point in self.points):
            raise ValueError(
                f"predict.points is {self.points}: give a list of points, each [x, y, 1] on the object or [x, y, 0] off it, as "
                "in predict.points='[[320,200,1]]'"
            )
        if self.box is not None and len(self.box) != 4:
            raise ValueError(f"predict.box is {self.box}: give [x0, y0, x1, y1] in pixels of the image")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(
                f"predict.box is {self.box}: give the left upper corner first, [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
            )


def run(config: Config, run_dir: Path) -> None:
    """Writes `mask_<i>.png`, `masks.json` (RLE and predicted IoU, the best first) and `masks.png`, which shows them."""
    settings = read(PredictConfig, config, "predict")
    path = _check(config, settings)
    image = decode_shown(path.read_bytes(), str(path))
    _check_inside(settings, image)
    clicks = np.array(settings.points, dtype=np.float64).reshape(-1, 3)
    box = None if settings.box is None else np.array(settings.box, dtype=np.float64)

    # a single prompt is ambiguous and gets three masks; for several, one mask is more accurate (paper, section 3)
    sam = load_sam(config["checkpoint"]).to(device_of(config))
    predictor = make_predictor(sam, frame=asked_frame(config["data"]))
    predictor.set_image(image)
    masks, ious, _ = predictor.predict(
        point_coords=clicks[:, :2] if len(clicks) else None,
        point_labels=clicks[:, 2].astype(np.int64) if len(clicks) else None,
        box=box,
        multimask_output=len(clicks) + (box is not None) == 1,
    )
    order = np.argsort(-ious)
    _write(run_dir, image, masks[order], ious[order], _shown(clicks, box))


def _is_point(point: Any) -> bool:
    numbers = isinstance(point, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in point)
    return numbers and len(point) == 3 and point[2] in (0, 1)


def _check_inside(settings: PredictConfig, image: np.ndarray) -> None:
    """Raises ValueError for a click outside of the image, and for a box that does not meet it."""
    height, width = image.shape[:2]
    for x, y, _ in settings.points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"predict.points has ({x:g}, {y:g}), which is outside of the image of {width} x {height} pixels: give (x, y) "
                "in pixels of the image, counted from its left upper corner"
            )
    if settings.box is not None:
        x0, y0, x1, y1 = settings.box
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise ValueError(
                f"predict.box is {settings.box}, which is outside of the image of {width} x {height} pixels: give "
                "[x0, y0, x1, y1] in pixels of the image"
            )


def _check(config: Config, settings: PredictConfig) -> Path:
    """Returns the image's path; raises ValueError if a file or all prompts are missing."""
    for key, value in (("checkpoint", config["checkpoint"]), ("predict.image", settings.image)):
        if value is None:
            raise ValueError(f"{key} is null: task=predict needs checkpoint=FILE predict.image=IMAGE")
        if not (Path(value).is_file() or (key == "checkpoint" and Path(value).is_dir())):
            raise ValueError(f"{key} is {value!r}, which is not a file: set it to one that exists")
    if not settings.points and settings.box is None:
        raise ValueError("There are no prompts: give predict.points='[[x, y, 1]]' or predict.box='[x0, y0, x1, y1]'")
    return Path(str(settings.image))


def _shown(clicks: np.ndarray, box: np.ndarray | None) -> Prompts:
    """Returns the prompts as panels draw them, the newest click first."""
    coords, labels = clicks[::-1, :2], clicks[::-1, 2]
    if box is not None:
        coords = np.concatenate([coords, box.reshape(2, 2)])
        labels = np.concatenate([labels, [PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]])
    return Prompts(torch.tensor(np.array(coords)[None]).float(), torch.tensor(np.array(labels)[None]).long())


def _write(run_dir: Path, image: np.ndarray, masks: np.ndarray, ious: np.ndarray, prompts: Prompts) -> None:
    """Writes each mask as a PNG, all of them as JSON, and one image that shows them side by side."""
    found: list[dict[str, Any]] = []
    tiles = []
    for number, (mask, iou) in enumerate(zip(masks, ious.tolist(), strict=True)):
        save_image(run_dir / f"mask_{number}.png", mask.astype(np.uint8) * 255)
        found.append({"segmentation": encode_mask(mask), "area": int(mask.sum()), "predicted_iou": iou})
        tiles.append(draw_panel(image, mask[None], prompts, caption=f"predicted IoU {iou:.2f}", side=384))
    write_text(run_dir / "masks.json", json.dumps(found, indent=1) + "\n")
    save_image(run_dir / "masks.png", tile_panels([tiles]))
    shown = ", ".join(f"{iou:.2f}" for iou in ious)
    log.info("Wrote %s to %s, with predicted IoU %s.", counted(len(found), "mask"), run_dir, shown)
