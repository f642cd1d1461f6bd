"""Measures the precision and coverage of prefilled masks over the thresholds of conf/prefill/.

It takes the model and the detector of a round, and images with ground truth that neither has seen. All boxes are predicted
once; each setting of the thresholds then keeps some of the masks. One line per setting is printed, the highest coverage first:

    python experiments/prefill/study.py --model RUN/checkpoints/best.ckpt --detector RUN/rounds/7/detector/detector.pth
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from samtrain.data.decode import decode_image
from samtrain.data.scenes.synthetic import make_synthetic
from samtrain.data.shards import expand_urls, index_tar, read_record
from samtrain.data_engine.coverage import compare, coverage, share_above
from samtrain.data_engine.prefill import AutomaticMask, PrefillConfig, Prefiller
from samtrain.detector import load_detector
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.build import load_sam
from samtrain.ops.rle import RLE

GRID = {
    "box_score_thresh": (0.2, 0.5, 0.8),
    "pred_iou_thresh": (0.0, 0.75, 0.8, 0.85, 0.88),
    "stability_score_thresh": (0.0, 0.76, 0.8, 0.82, 0.84, 0.85, 0.86, 0.87, 0.88),
}
ImageToAnnotate = tuple[tuple[int, int], list[AutomaticMask], list[RLE]]  # size, proposed masks, true masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="any checkpoint that load_sam reads")
    parser.add_argument("--detector", required=True, help="a detector.pth")
    parser.add_argument("--images", nargs="+", help="tars in SA-1B's format; default: crowded scenes of seed 1000")
    parser.add_argument("--num-images", type=int, default=150)
    parser.add_argument("--size-limits", type=float, nargs=2, default=(500, 1000), help="areas between small, medium and large")
    parser.add_argument("--nms", type=float, default=PrefillConfig().nms_thresh)
    parser.add_argument("--out", type=Path, help="JSON file for all rows")
    arguments = parser.parse_args()
    tars = arguments.images or [make_synthetic("data/shards", splits={"crowded": 150}, size=(96, 96), seed=1000) / "crowded"]
    images = propose(arguments.model, arguments.detector, expand_urls(tars), arguments.num_images)
    rows = [measure(images, values, arguments) for values in itertools.product(*GRID.values())]
    for row in sorted(rows, key=lambda row: -row["covered"]):
        print(" ".join(f"{name} {value:.3f}" for name, value in row.items() if value is not None))
    if arguments.out:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        arguments.out.write_text(json.dumps({"command": settings, "rows": rows}, indent=1))


def propose(model: str, detector: str, tars: list[str], num_images: int) -> list[ImageToAnnotate]:
    """Returns the masks of all boxes above the lowest score of the grid, for each image."""
    predictor = SamPredictor(load_sam(model))
    prefiller = Prefiller(load_detector(detector), PrefillConfig(box_score_thresh=min(GRID["box_score_thresh"])))
    proposed: list[ImageToAnnotate] = []
    places = ((index, i) for index in map(index_tar, tars) for i in range(len(index)))
    for index, i in itertools.islice(places, num_images):
        record = read_record(index, i)
        sides = record.annotation["image"]
        image = decode_image(record.image_bytes, sides["width"], sides["height"], record.name)
        predictor.set_image(image)
        boxes, scores = prefiller.detector.detect(
            image, score_thresh=prefiller.config.box_score_thresh, max_detections=prefiller.config.max_detections
        )
        objects = [each["segmentation"] for each in record.annotation["annotations"]]
        proposed.append((image.shape[:2], prefiller.propose(image.shape[:2], boxes, scores, predictor), objects))
    return proposed


def measure(images: list[ImageToAnnotate], values: tuple[float, ...], arguments: argparse.Namespace) -> dict[str, float | None]:
    """Returns precision and coverage of one setting."""
    settings = dict(zip(GRID, values, strict=True))
    prefiller = Prefiller(None, PrefillConfig(**settings, nms_thresh=arguments.nms))  # type: ignore[arg-type]
    truths = []
    for size, masks, objects in images:
        sure = [m for m in masks if m.detector_score >= settings["box_score_thresh"] and prefiller.is_sure(m, size)]
        kept = [m.segmentation for m in prefiller.without_duplicates(sure, [])]
        truths.append(compare(objects, kept, kept))
    ious = [iou for truth in truths for iou in truth["automatic"]]
    by_size = coverage(truths, tuple(arguments.size_limits))
    numbers = {"precision": share_above(ious), "masks_per_image": len(ious) / len(images), "covered": by_size.pop("all")}
    return settings | numbers | {f"covered_{name}": value for name, value in by_size.items()}


if __name__ == "__main__":
    main()
