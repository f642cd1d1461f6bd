"""Times the click evaluation of ViT-B in images per second, against a loop over segment_anything.SamPredictor.

The loop encodes an image once, then calls `predict` for each click of each object, feeds the last mask back and places the next
click at the centre of the larger error. Both place the same clicks. `--data` is a folder in SA-1B's format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from models import official_sam, our_sam
from paired import arguments, begin, compare, finish

from samtrain.data.decode import decode_shown
from samtrain.data.prepare.formats import Sa1bFolder
from samtrain.evaluators.clicks import click_ious
from samtrain.inference.predictor import SamPredictor
from samtrain.ops.points import centre_points
from samtrain.ops.rle import decode_rle


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--objects", type=int, default=8, help="most objects per image")
    parser.add_argument("--clicks", type=int, default=5)
    options = parser.parse_args()
    begin(options)
    from segment_anything import SamPredictor as OfficialPredictor

    official = official_sam()
    theirs, ours = OfficialPredictor(official), SamPredictor(our_sam(official))
    images = load(options.data, options.images, options.objects)
    found: dict[str, np.ndarray] = {}

    def peer() -> None:
        found["theirs"] = np.concatenate([clicked_one_by_one(theirs, *image, options.clicks) for image in images])

    def own() -> None:
        found["ours"] = np.concatenate([clicked_together(ours, *image, options.clicks) for image in images])

    what = f"{options.clicks} clicks on {sum(len(masks) for _, masks in images)} objects of {len(images)} images, ViT-B"
    row = compare(what, "segment_anything", peer, own, pairs=options.pairs)
    apart = np.abs(found["theirs"] - found["ours"])
    note = f"IoUs apart by {apart.max():.1e} at most, {(apart < 1e-3).mean() * 100:.1f} % within 1e-3"
    pace = f"images/s {len(images) / row.peer_seconds:.3f} and {len(images) / row.our_seconds:.3f}"
    finish(options, "clicks", [row], {what: f"{note}; {pace}"})


def load(folder: Path, count: int, objects: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns images with their (N, H, W) masks."""
    source = Sa1bFolder(folder)
    found = []
    for entry in source.entries():
        if len(found) == count:
            break
        masks = [decode_rle(each["segmentation"]) for each in source.read(entry).objects]
        masks = [mask for mask in masks if mask.sum() > 500][:objects]
        if len(masks) >= 2:
            found.append((decode_shown(entry.image.read_bytes(), entry.name), np.stack(masks)))
    return found


def clicked_together(predictor: SamPredictor, image: np.ndarray, masks: np.ndarray, clicks: int) -> np.ndarray:
    """Returns (N, clicks) IoUs; all objects of an image are clicked together."""
    predictor.set_image(image)
    scores = click_ious(predictor.decoder(), torch.from_numpy(masks), clicks)
    return torch.stack([scores[f"iou_{k}"] for k in range(1, clicks + 1)], dim=1).numpy()


def clicked_one_by_one(predictor, image: np.ndarray, masks: np.ndarray, clicks: int) -> np.ndarray:
    """Returns (N, clicks) IoUs of the usual loop over objects and clicks."""
    predictor.set_image(image)
    ious = np.zeros((len(masks), clicks))
    for n, truth in enumerate(masks):
        points = [centre(truth)[0]]
        labels, low_res = [1], None
        for k in range(clicks):
            answers, scores, logits = predictor.predict(
                np.array(points), np.array(labels), mask_input=low_res, multimask_output=k == 0
            )
            best = scores.argmax()
            mask, low_res = answers[best], logits[[best]]
            ious[n, k] = (mask & truth).sum() / max((mask | truth).sum(), 1)
            (missing, depth), (surplus, other) = centre(truth & ~mask), centre(mask & ~truth)
            is_missing = depth > other
            points.insert(0, missing if is_missing else surplus)
            labels.insert(0, int(is_missing))
    return ious


def centre(region: np.ndarray) -> tuple[list[float], float]:
    """Returns the place farthest from the border of a region, and its distance."""
    points, radius = centre_points(torch.from_numpy(region)[None])
    return points[0].tolist(), float(radius[0])


if __name__ == "__main__":
    main()
