"""All masks of an image, from a grid of clicks: `SamAutomaticMaskGenerator`, as segment_anything's and as SA-1B was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from samtrain.inference.candidates import Candidate, Crop, MaskTests
from samtrain.inference.predictor import OBJECTS_AT_A_TIME, SamPredictor, as_rgb, chunks
from samtrain.modeling.sam import Sam
from samtrain.ops.grids import crop_boxes, point_grid
from samtrain.ops.logit_frame import LogitFrame, axis_of
from samtrain.ops.regions import fill_small_holes, remove_small_islands
from samtrain.ops.rle import rle_iou, runs_of, runs_to_counts, runs_to_mask
from samtrain.types import PointLabel, Prompts, Size

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
Record = dict[str, Any]
Progress = Callable[[int, int], None]


class SamAutomaticMaskGenerator:
    """Generates masks for whole images; parameters, defaults, order and records are those of segment_anything's class.

    points_per_side or point_grids:  a grid of n x n clicks, or one (K, 2) array of (x, y) in 0 to 1 for each crop layer
    pred_iou_thresh, stability_score_thresh, stability_score_offset:  what a mask must reach to be kept
    box_nms_thresh, crop_nms_thresh:  box IoU above which the lesser of two masks of a crop, and of several crops, goes
    crop_n_layers, crop_overlap_ratio, crop_n_points_downscale_factor:  also look at 2^i x 2^i crops, for i up to the layers
    min_mask_region_area:  pixels; smaller holes are filled and smaller islands removed

    Beyond segment_anything, and off by default:

    drop_small_masks:  a mask whose largest island is smaller than `min_mask_region_area` goes whole (SA-1B, appendix B)
    max_mask_area:     share of the image; masks of so much and more go (SA-1B: 0.95)
    mask_nms_thresh:   mask IoU above which of two masks the one of lower predicted IoU goes, at the very end
    crops_per_batch:   crops encoded together, of one image or of several; None: 1 on a CPU, 8 elsewhere
    bf16:              runs the model under autocast; masks are made in float32 of what comes out
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = OBJECTS_AT_A_TIME,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        *,
        drop_small_masks: bool = False,
        max_mask_area: float | None = None,
        mask_nms_thresh: float | None = None,
        crops_per_batch: int | None = None,
        bf16: bool = False,
    ) -> None:
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is {output_mode!r}: take one of {', '.join(OUTPUT_MODES)}")
        if min(points_per_batch, crops_per_batch or 1) < 1:
            raise ValueError(f"points_per_batch {points_per_batch} and crops_per_batch {crops_per_batch} are at least 1")
        if stability_score_offset < 0:
            raise ValueError(f"stability_score_offset is {stability_score_offset}: take a number of 0 and more")
        self.predictor = SamPredictor(model)
        self.point_grids = _point_grids(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        self.tests = MaskTests(
            pred_iou_thresh, stability_score_thresh, stability_score_offset, model.mask_threshold, max_mask_area
        )
        self.points_per_batch = points_per_batch
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.drop_small_masks = drop_small_masks
        self.mask_nms_thresh = mask_nms_thresh
        self.crops_per_batch = crops_per_batch or (1 if model.device.type == "cpu" else 8)
        self.bf16 = bf16

    def generate(
        self, image: np.ndarray, *, output_size: Size | None = None, progress: Progress | None = None
    ) -> list[Record]:
        """Records of an (H, W, 3) uint8 RGB image.

        A record has `segmentation` (by `output_mode`), `area` in pixels, `bbox` xywh, `predicted_iou`, `point_coords`
        [[x, y]] of the click, `stability_score`, and `crop_box` xywh. `output_size` (H, W) puts them all in the frame of
        the image shrunk to it, while crops are cut from the image as it is (SA-1B: short side 1500). `progress` is
        called with the clicks done and to do. Raises ValueError for another array, or for a larger output size.
        """
        return next(self.generate_many([image], output_sizes=[output_size], progress=progress))

    def generate_many(
        self,
        images: Iterable[np.ndarray],
        *,
        output_sizes: Iterable[Size | None] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[list[Record]]:
        """`generate` for each of many images, in order; crops of neighbouring ones are encoded together.

        Images are taken as they are needed, and `progress` counts the clicks of those taken so far.
        """
        for candidates in self._many(images, output_sizes, progress, self.tests):
            yield [self._record(candidate) for candidate in candidates]

    def candidates(self, image: np.ndarray) -> list[Candidate]:
        """What `generate` makes its records of, with the low-resolution logits of each."""
        return next(self._many([image], None, None, replace(self.tests, keep_logits=True)))

    @torch.no_grad()
    def _many(
        self,
        images: Iterable[np.ndarray],
        output_sizes: Iterable[Size | None] | None,
        progress: Progress | None,
        tests: MaskTests,
    ) -> Iterator[list[Candidate]]:
        """The candidates that are left of each image, in order."""
        work: dict[int, _Work] = {}
        done = todo = 0

        def queue() -> Iterator[Crop]:
            nonlocal todo
            for number, (image, output_size) in enumerate(zip(images, output_sizes or repeat(None), strict=False)):
                image = as_rgb(image)
                crops = self._crops(number, image.shape[:2], output_size or image.shape[:2])
                work[number] = _Work(image, crops)
                todo += sum(len(self.point_grids[crop.layer]) for crop in crops)
                yield from crops

        waiting, finished = queue(), 0
        while batch := list(islice(waiting, self.crops_per_batch)):
            for candidates, clicks in self._look(batch, [work[crop.image].image for crop in batch], tests):
                for candidate in candidates:
                    work[candidate.crop.image].found.append(candidate)
                done += clicks
                if progress is not None:
                    progress(done, todo)
            for crop in batch:
                work[crop.image].crops_left -= 1
            while finished in work and not work[finished].crops_left:
                yield self._best(work.pop(finished))
                finished += 1

    # ---- look

    def _crops(self, number: int, size: Size, output_size: Size) -> list[Crop]:
        """The image and its crops, each with the way from the decoder's logits to the frame of the records."""
        if any(not 1 <= out <= side for out, side in zip(output_size, size, strict=True)):
            raise ValueError(f"output_size is {tuple(output_size)} (H, W) of an image of {size}: no side is enlarged")
        config, device = self.predictor.model.config, self.predictor.device
        scale = (output_size[1] / size[1], output_size[0] / size[0]) * 2
        crops = []
        for layer, box in crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio):
            x0, y0, x1, y1 = box
            if x0 >= x1 or y0 >= y1:
                continue  # of an image of few pixels
            input_size = self.predictor.transform.size((y1 - y0, x1 - x0))
            rows, columns = (
                axis_of(edges, lengths, length, config.image_size, config.mask_size, device)
                for edges, lengths, length in zip(
                    ((y0, y1), (x0, x1)), zip(size, output_size, strict=True), input_size, strict=True
                )
            )
            if not len(rows[1].first) or not len(columns[1].first):
                continue  # no pixel of the records' frame lies in it
            a, b, c, d = (edge * factor for edge, factor in zip(box, scale, strict=True))
            crops.append(Crop(number, layer, box, input_size, (a, b, c, d), output_size, LogitFrame(rows, columns)))
        return crops

    def _look(
        self, crops: list[Crop], images: list[np.ndarray], tests: MaskTests
    ) -> Iterator[tuple[list[Candidate], int]]:
        """Candidates of the crops in the order of crops, clicks and masks, with how many clicks they took."""
        sam, device = self.predictor.model, self.predictor.device
        points = [self.point_grids[crop.layer] * crop.size[::-1] for crop in crops]
        coords = [self.predictor.transform.apply_coords(p, crop.size) for p, crop in zip(points, crops, strict=True)]
        owner = np.repeat(np.arange(len(crops)), [len(p) for p in points])
        points_n2, coords_n2 = np.concatenate(points), np.concatenate(coords)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            cache = sam.projection_cache(self._encode(crops, images))
        for chunk in chunks(len(owner), self.points_per_batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                index = torch.from_numpy(owner[chunk]).to(device)
                output = sam.decode(cache, index, _clicks(coords_n2[chunk], device), multimask_output=True)
            logits, ious = output.low_res_logits.float(), output.iou_predictions.float()
            owners = [crops[i] for i in owner[chunk]]
            yield tests.passing(logits, ious, owners, points_n2[chunk]), len(owners)

    def _encode(self, crops: list[Crop], images: list[np.ndarray]) -> Tensor:
        """(B, C, g, g) embeddings of the crops."""
        sam, transform, device = self.predictor.model, self.predictor.transform, self.predictor.device
        inputs = torch.zeros(len(crops), 3, sam.config.image_size, sam.config.image_size, dtype=torch.uint8)
        for into, crop, image in zip(inputs, crops, images, strict=True):
            x0, y0, x1, y1 = crop.box
            h, w = crop.input_size
            into[:, :h, :w] = torch.from_numpy(transform.apply_image(image[y0:y1, x0:x1])).permute(2, 0, 1)
        sizes = torch.tensor([crop.input_size for crop in crops], device=device)
        return sam.encode(sam.preprocess(inputs.to(device), sizes))

    # ---- compare

    def _best(self, work: _Work) -> list[Candidate]:
        """What is left of an image's candidates when each is compared with the others."""
        # within a crop, the better ones first
        found = work.found
        kept = _nms(found, [c.predicted_iou for c in found], self.box_nms_thresh, [id(c.crop) for c in found])
        if work.several_crops:
            # those of smaller crops first
            areas = [(c.crop.box[2] - c.crop.box[0]) * (c.crop.box[3] - c.crop.box[1]) for c in kept]
            kept = _nms(kept, [1 / area for area in areas], self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            kept = self._without_small_regions(kept)
        if self.mask_nms_thresh is not None:
            kept = _mask_nms(kept, self.mask_nms_thresh)
        return kept

    def _without_small_regions(self, found: list[Candidate]) -> list[Candidate]:
        """Holes filled and islands removed; then boxes are compared again, and masks that were not touched come first."""
        cleaned, untouched = [], []
        for candidate in found:
            changed, largest = _clean(candidate, self.min_mask_region_area)
            if not self.drop_small_masks or largest >= self.min_mask_region_area:
                cleaned.append(candidate)
                untouched.append(float(not changed))
        return _nms(cleaned, untouched, max(self.box_nms_thresh, self.crop_nms_thresh))

    def _record(self, candidate: Candidate) -> Record:
        size = candidate.crop.frame_size
        if self.output_mode == "binary_mask":
            segmentation: Any = runs_to_mask(candidate.runs, size)
        elif self.output_mode == "coco_rle":
            segmentation = {"size": list(size), "counts": runs_to_counts(candidate.runs)}
        else:
            segmentation = {"size": list(size), "counts": candidate.runs.tolist()}
        return {
            "segmentation": segmentation,
            "area": candidate.area,
            "bbox": _xywh(candidate.box),
            "predicted_iou": candidate.predicted_iou,
            "point_coords": [list(candidate.point)],
            "stability_score": candidate.stability_score,
            "crop_box": _xywh(candidate.crop.box_in_frame),
        }


class _Work:
    """An image whose crops are being looked at."""

    def __init__(self, image: np.ndarray, crops: list[Crop]) -> None:
        self.image = image
        self.found: list[Candidate] = []
        self.crops_left = len(crops)
        self.several_crops = len(crops) > 1


def _point_grids(
    per_side: int | None, grids: Sequence[np.ndarray] | None, num_layers: int, downscale: int
) -> list[np.ndarray]:
    """A grid for the image and for each layer of crops; raises ValueError."""
    if (per_side is None) == (grids is None):
        raise ValueError("give points_per_side or point_grids, and null for the other")
    if grids is None:
        assert per_side is not None
        sides = [int(per_side / downscale**layer) for layer in range(num_layers + 1)]
        if min(sides) < 1:
            raise ValueError(
                f"points_per_side {per_side} with crop_n_points_downscale_factor {downscale} leaves {sides} points a side in "
                f"the {num_layers + 1} layers: take more points, fewer layers or a smaller factor"
            )
        return [point_grid(side) for side in sides]
    grids = [np.asarray(grid, dtype=np.float64) for grid in grids]
    if len(grids) <= num_layers or any(grid.ndim != 2 or grid.shape[1] != 2 for grid in grids):
        raise ValueError(
            f"point_grids has the shapes {[grid.shape for grid in grids]}: give an array (K, 2) of x, y in 0 to 1 "
            f"for each of {num_layers + 1} layers"
        )
    return grids


def _clicks(coords_N2: np.ndarray, device: torch.device) -> Prompts:
    """A foreground click each, and the padding that stands where there is no box."""
    coords = torch.zeros(len(coords_N2), 2, 2)
    coords[:, 0] = torch.from_numpy(coords_N2)
    labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.PADDING]).repeat(len(coords), 1)
    return Prompts(coords.to(device), labels.to(device))


def _nms(
    found: list[Candidate], scores: list[float], thresh: float, groups: list[int] | None = None
) -> list[Candidate]:
    """Those whose box no better one of the same group covers, groups in their order, in each the best first."""
    if not found:
        return []
    order = {group: i for i, group in enumerate(dict.fromkeys(groups or [0]))}
    index = torch.tensor([order[group] for group in groups] if groups else [0] * len(found))
    boxes = torch.tensor([c.box for c in found], dtype=torch.float32)
    kept = batched_nms(boxes, torch.tensor(scores), index, thresh)
    return [found[i] for i in sorted(kept.tolist(), key=lambda i: int(index[i]))]  # sorting keeps the order of equals


def _mask_nms(found: list[Candidate], thresh: float) -> list[Candidate]:
    """Those whose mask none of higher predicted IoU covers, in the order that they came in."""
    rles = [{"size": list(c.crop.frame_size), "counts": runs_to_counts(c.runs)} for c in found]
    ious = rle_iou(rles, rles)
    kept: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: -found[i].predicted_iou):
        if not kept or ious[i, kept].max() <= thresh:
            kept.append(i)
    return [found[i] for i in sorted(kept)]


def _clean(candidate: Candidate, min_area: int) -> tuple[bool, int]:
    """Fill holes and remove islands in place; whether there were any, and the size of the largest island."""
    size = candidate.crop.frame_size
    # with a margin in which background that goes on beyond it is large enough to be no hole
    x0, y0, x1, y1 = candidate.box
    top, left = max(y0 - min_area, 0), max(x0 - min_area, 0)
    mask = runs_to_mask(candidate.runs, size)[top : y1 + 1 + min_area, left : x1 + 1 + min_area]
    mask, filled = fill_small_holes(mask, min_area)
    mask, removed, largest = remove_small_islands(mask, min_area)
    if filled or removed:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        x0, x1, y0, y1 = (int(edge) for axis in (columns, rows) for edge in (axis[[0, -1]] if len(axis) else (0, 0)))
        candidate.box = (left + x0, top + y0, left + x1, top + y1)
        candidate.area = int(mask.sum())
        candidate.runs = runs_of(mask.T, (top, left), size)
    return filled or removed, largest


def _xywh(box: Sequence[float]) -> list[float]:
    """Differences, without the pixel that inclusive edges would add (as segment_anything writes); whole numbers as such."""
    x0, y0, x1, y1 = (int(edge) if edge == int(edge) else edge for edge in box)
    return [x0, y0, x1 - x0, y1 - y0]
