"""`task=predict`: predicts masks of one object from clicks or a box on one image, or of what a text says on one or many."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samtrain.data.decode import decode_shown
from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.files import write_text
from samtrain.inference.frames import make_predictor
from samtrain.inference.text_generator import SamTextGenerator, as_mask
from samtrain.modeling.build import load_sam
from samtrain.ops.rle import encode_mask
from samtrain.panels import draw_panel, save_image, tile_panels
from samtrain.run.build import device_of
from samtrain.run.image_sets import asked_frame
from samtrain.run.settings import Config, read
from samtrain.run.targets import build
from samtrain.run.text import make_clip
from samtrain.terminal import counted
from samtrain.text.config import TextConfig
from samtrain.types import PointLabel, Prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The `predict` node: one image and its prompts, in pixels of the image; with a text alone it may be a folder of images.

    points: [[x, y, label], ...] with label 1 on the object and 0 off it
    box:    [x0, y0, x1, y1]
    text:   a sentence, which needs `clip`
    """

    image: str | None
    points: list[Any] = field(default_factory=list)
    box: list[float] | None = None
    text: str | None = None

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
    if settings.text is not None and not settings.points and settings.box is None:
        _find_text(config, settings, run_dir)
        return
    path = _check(config, settings)
    image = decode_shown(path.read_bytes(), str(path))
    _check_inside(settings, image)
    clicks = np.array(settings.points, dtype=np.float64).reshape(-1, 3)
    box = None if settings.box is None else np.array(settings.box, dtype=np.float64)

    # a single prompt is ambiguous and gets three masks; for several, one mask is more accurate (paper, section 3)
    sam = load_sam(config["checkpoint"]).to(device_of(config))
    predictor = make_predictor(sam, frame=asked_frame(config["data"]))
    predictor.clip = make_clip(config) if settings.text is not None else None
    predictor.set_image(image)
    masks, ious, _ = predictor.predict(
        point_coords=clicks[:, :2] if len(clicks) else None,
        point_labels=clicks[:, 2].astype(np.int64) if len(clicks) else None,
        box=box,
        multimask_output=len(clicks) + (box is not None) == 1,
        text=settings.text,
    )
    order = np.argsort(-ious)
    _write(run_dir, image, masks[order], ious[order], _shown(clicks, box))


def _find_text(config: Config, settings: PredictConfig, run_dir: Path) -> None:
    """Writes what the text finds in one image, or in each image of a folder, into a folder of the image's name.

    A model that takes text prompts is prompted; the automatic masks of any other model are ranked.
    """
    for key, value in (("checkpoint", config["checkpoint"]), ("predict.image", settings.image)):
        if value is None:
            raise ValueError(f"{key} is null: task=predict needs checkpoint=FILE predict.image=IMAGE")
    place = Path(str(settings.image))
    paths = sorted(files_below(place, IMAGES)) if place.is_dir() else [place]
    if not paths or not paths[0].is_file():
        raise ValueError(f"predict.image is {settings.image!r}, where no image was found: give an image or a folder of them")
    sam = load_sam(config["checkpoint"]).to(device_of(config))
    generator = SamTextGenerator(
        sam,
        make_clip(config),
        generator=build(config["generator"], "generator")(sam),
        candidates="text" if sam.config.text_dim else "grid",
        text_thresh=read(TextConfig, config, "text").score_thresh,
    )
    for path in paths:
        image = decode_shown(path.read_bytes(), str(path))
        found = generator.generate(image, [str(settings.text)])
        folder = run_dir if path == place else run_dir / path.relative_to(place).with_suffix("")
        _write_found(folder, image, found, str(settings.text))


def _write_found(folder: Path, image: np.ndarray, found: list[dict[str, Any]], text: str) -> None:
    """Writes the masks of one image as PNGs, all of them as JSON, and one image that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = [as_mask(record["segmentation"], image.shape[:2]) for record in found]
    records = [{**record, "segmentation": encode_mask(mask)} for record, mask in zip(found, masks, strict=True)]
    write_text(folder / "masks.json", json.dumps(records, indent=1) + "\n")
    tiles = []
    for number, (record, mask) in enumerate(zip(found, masks, strict=True)):
        save_image(folder / f"mask_{number}.png", mask.astype(np.uint8) * 255)
        tiles.append(draw_panel(image, mask[None], caption=f"{text}: similarity {record['text_score']:.2f}", side=384))
    nothing = [draw_panel(image, np.zeros((0, *image.shape[:2]), bool), caption=f"{text}: nothing found", side=384)]
    save_image(folder / "masks.png", tile_panels([tiles or nothing]))
    log.info("Found %s of %r, written to %s.", counted(len(found), "mask"), text, folder)


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
        raise ValueError(
            "There are no prompts: give predict.points='[[x, y, 1]]', predict.box='[x0, y0, x1, y1]', or "
            "predict.text='...' and clip=FILE"
        )
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
