"""Times the generation of all masks of a 1500 x 1000 image by ViT-B, ours against segment_anything's class.

Random weights predict noise, which is unlike any image. Both networks therefore do all their work, and then their outputs are
replaced by the same shapes: discs of all sizes at the clicks, some with soft edges (which the stability score drops), and with
predicted IoUs that `few` or `many` of the three thousand masks pass. `sa1b` adds the 20 crops and the clean-up of SA-1B's
settings. `--checkpoint` compares the records of both on images instead, one by one, with trained weights.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from models import official_like, official_sam, our_sam
from paired import Row, arguments, begin, compare, finish
from PIL import Image
from segment_anything.utils.amg import coco_encode_rle
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from samtrain import SamAutomaticMaskGenerator, load_sam
from samtrain.ops.rle import rle_iou, runs_to_counts
from samtrain.types import SamOutput

SETTINGS = {
    "few": {},
    "many": {},
    "sa1b": {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 100},
}
PASSING = {"few": 0.05, "many": 0.9, "sa1b": 0.3}  # share of the masks that pass by their predicted IoU


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"), default=["float32"])
    parser.add_argument("--unfiltered", type=int, default=None, help="compare candidates of N x N clicks instead")
    parser.add_argument("--checkpoint", type=Path, default=None, help="compare records instead of timing")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="with --checkpoint")
    parser.add_argument("--thresholds", type=float, nargs=2, default=[0.88, 0.95], help="of predicted IoU and stability")
    options = parser.parse_args()
    begin(options)
    if options.checkpoint is not None:
        for image in options.images:
            agreement(options.checkpoint, image, options.thresholds)
        return
    if options.unfiltered is not None:
        print(candidates_agree(options.unfiltered))
        return
    rows, notes = [], {}
    for precision in options.precision:
        for name in options.only:
            row, note = timed_row(name, precision, options.pairs)
            rows.append(row)
            notes[row.what] = note
    finish(options, "generator", rows, notes)


def timed_row(name: str, precision: str, pairs: int) -> tuple[Row, str]:
    from segment_anything import SamAutomaticMaskGenerator as OfficialGenerator

    official = official_sam()
    ours = our_sam(official)
    answer_with_shapes(official, ours, PASSING[name])
    image = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
    settings = {"output_mode": "coco_rle", **SETTINGS[name]}
    theirs = OfficialGenerator(official, **settings)
    own = SamAutomaticMaskGenerator(ours, **settings, bf16=precision == "bf16")

    found: dict[str, list] = {}

    def peer() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found["theirs"] = theirs.generate(image)

    def ourselves() -> None:
        found["own"] = own.generate(image)

    row = compare(
        f"all masks of an image, ViT-B, 1500 x 1000, {name}, {precision}",
        "segment_anything",
        peer,
        ourselves,
        pairs=pairs,
        memory=name != "sa1b",  # takes minutes per run
        warm_up=False,  # a run is so long that its first seconds do not matter
    )
    return row, same_records(found["theirs"], found["own"])


def answer_with_shapes(official: torch.nn.Module, ours: torch.nn.Module, passing: float) -> list[RemovableHandle]:
    """Replaces the networks' outputs by shapes, the same ones for the same call of either; returns the hooks that do it."""
    calls = {"theirs": 0, "ours": 0}

    def theirs(_module, _inputs, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        calls["theirs"] += 1
        return shapes(output[0].shape, calls["theirs"], passing, output[0].device)

    def own(_module, _inputs, output: SamOutput) -> SamOutput:
        calls["ours"] += 1
        logits = output.low_res_logits
        return SamOutput(*shapes(logits.shape, calls["ours"], passing, logits.device))

    def begin_anew(which: str, *_: object) -> None:
        calls[which] = 0

    return [
        official.mask_decoder.register_forward_hook(theirs),
        ours.mask_decoder.register_forward_hook(own),
        # count the calls from the first encoding of an image on; both encode the crops in the same order
        official.image_encoder.register_forward_pre_hook(partial(begin_anew, "theirs")),
        ours.image_encoder.register_forward_pre_hook(partial(begin_anew, "ours")),
    ]


@lru_cache(maxsize=100)  # a GPU would wait for them; SA-1B's settings make more calls than that
def shapes(shape: torch.Size, call: int, passing: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (n, 3, h, w) logits and (n, 3) predicted IoUs of discs: radius 1 to 40 % of the side, sharp or soft edges."""
    n, M, h, w = shape
    rng = np.random.default_rng(call)
    centre = rng.random((n, 1, 2)) * (w, h * 2 / 3)
    radius = h * np.exp(rng.uniform(math.log(0.01), math.log(0.4), (n, M)))
    steepness = np.exp(rng.uniform(math.log(0.5), math.log(20), (n, M)))
    x0, y0, radii, slopes = (_as_field(each) for each in (centre[..., 0], centre[..., 1], radius, steepness))
    distance = torch.hypot(torch.arange(w)[None] - x0, torch.arange(h)[:, None] - y0)
    logits = (radii - distance) * slopes
    ious = np.where(rng.random((n, M)) < passing, rng.uniform(0.89, 1.0, (n, M)), rng.uniform(0.3, 0.87, (n, M)))
    return logits.clamp(-30, 30).to(device), torch.from_numpy(ious).float().to(device)


def _as_field(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[..., None, None]


# ---- the same records


def agreement(checkpoint: Path, path: Path, thresholds: list[float]) -> None:
    """Compares the records of both on each image, with crop layers 0 to 2, with and without clean-up."""
    from segment_anything import SamAutomaticMaskGenerator as OfficialGenerator

    ours = load_sam(checkpoint)
    official = official_like(ours)
    image = np.asarray(Image.open(path).convert("RGB"))
    for layers in (0, 1, 2):
        for min_area in (0, 100):
            settings = {
                "points_per_side": 32, "crop_n_layers": layers, "crop_n_points_downscale_factor": 2,
                "min_mask_region_area": min_area, "output_mode": "coco_rle", "pred_iou_thresh": thresholds[0],
                "stability_score_thresh": thresholds[1],
            }  # fmt: skip
            theirs = OfficialGenerator(official, **settings).generate(image)
            own = SamAutomaticMaskGenerator(ours, **settings).generate(image)
            where = f"{path.name} {image.shape[1]} x {image.shape[0]}, {layers} crop layers, clean-up {min_area}"
            print(f"{where}: {same_records(theirs, own)}", flush=True)


def candidates_agree(per_side: int) -> str:
    """Compares all masks of ViT-B with random weights before any is dropped, because NMS would decide by chance."""
    from segment_anything import SamAutomaticMaskGenerator as OfficialGenerator

    official = official_sam()
    ours = our_sam(official)
    settings = {"points_per_side": per_side, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "output_mode": "coco_rle"}
    theirs, own = OfficialGenerator(official, **settings), SamAutomaticMaskGenerator(ours, **settings)
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    H, W = image.shape[:2]
    theirs.predictor.set_image(image)
    data = theirs._process_batch(theirs.point_grids[0] * (W, H), (H, W), [0, 0, W, H], (H, W))
    found = [
        {"segmentation": rle, "predicted_iou": float(iou), "stability_score": float(stable), "point_coords": [point.tolist()]}
        for rle, iou, stable, point in zip(
            map(coco_encode_rle, data["rles"]), data["iou_preds"], data["stability_score"], data["points"], strict=True
        )
    ]
    candidates = [c for some, _ in own._look(own._crops(0, (H, W), (H, W)), [image], own.tests) for c in some]
    ours_found = [
        {
            "segmentation": {"size": [H, W], "counts": runs_to_counts(c.runs)}, "predicted_iou": c.predicted_iou,
            "stability_score": c.stability_score, "point_coords": [list(c.point)],
        }
        for c in candidates
    ]  # fmt: skip
    return same_records(found, ours_found)


def same_records(theirs: list[dict], own: list[dict]) -> str:
    """Returns how far two lists of records agree, in their order."""
    if not theirs or len(theirs) != len(own):
        return f"{len(theirs)} records of theirs, {len(own)} of ours"
    pairs = [(a["segmentation"], b["segmentation"]) for a, b in zip(theirs, own, strict=True)]
    ious = np.array([1.0 if a == b else rle_iou([a], [b])[0, 0] for a, b in pairs])  # empty masks are equal, too
    points = sum(a["point_coords"] == b["point_coords"] for a, b in zip(theirs, own, strict=True))
    scores = max(abs(a[key] - b[key]) for a, b in zip(theirs, own, strict=True) for key in ("predicted_iou", "stability_score"))
    same = f"{100 * (ious >= 0.99).mean():.1f} % of IoU 0.99 and more, the least {ious.min():.3f}"
    return f"{len(own)} records each, {same}, {points} of the same click, scores within {scores:.0e}"


if __name__ == "__main__":
    main()
