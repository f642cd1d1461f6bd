"""Generates all masks of an image from a grid of clicks, as segment_anything does and as SA-1B was made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from samtrain.inference.candidates import NEAR_EDGE, Candidate, Crop, MaskTests
from samtrain.inference.crops import RANGES, ClickedBox, check_settings, clicked_crops, clicked_tiles, point_grids_of
from samtrain.inference.frames import make_predictor
from samtrain.inference.predictor import OBJECTS_AT_A_TIME, chunks
from samtrain.inference.tiled import TiledPredictor
from samtrain.inference.transforms import as_rgb
from samtrain.modeling.sam import Sam
from samtrain.ops.logit_frame import LogitFrame, axis_of
from samtrain.ops.regions import fill_small_holes, remove_small_islands
from samtrain.ops.rle import rle_iou, runs_of, runs_to_counts, runs_to_mask
from samtrain.types import PointLabel, Prompts, Size

log = logging.getLogger(__name__)

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
Record = dict[str, Any]
Progress = Callable[[int, int], None]


class SamAutomaticMaskGenerator:
    """Generates masks for whole images (paper, section 4 and appendix B).

    The positional arguments, their defaults, and the order and content of the records are those of segment_anything's class.
    The keyword-only arguments are additions and off by default.

    A model that was trained on crops of native pixels (`sam.config.frame` is "native") sees the image in overlapping tiles,
    as in `TiledPredictor`: the grid of clicks covers the image, `points_per_side` of them per side of a tile, and each click is
    answered in the tile where it is most central. There are no further layers of crops.

    Args:
        model: the model, in evaluation mode, on any device.
        points_per_side: n for a grid of n x n clicks; None if `point_grids` is given.
        points_per_batch: clicks decoded together.
        pred_iou_thresh: predicted IoU that a mask must exceed; 0 keeps all masks.
        stability_score_thresh: stability that a mask must reach, the IoU of the masks cut at two logits.
        stability_score_offset: distance of these two logits from the mask threshold.
        box_nms_thresh: box IoU above which the worse of two masks of one crop is dropped.
        crop_n_layers: number of layers of crops beside the whole image; layer i has 2^i x 2^i crops.
        crop_nms_thresh: box IoU above which the mask of the larger of two crops is dropped.
        crop_overlap_ratio: overlap of the crops of layer 1, as a share of the image's short side.
        crop_n_points_downscale_factor: factor by which each layer of crops has fewer clicks per side than the one before.
        point_grids: one (K, 2) array of (x, y) in 0 to 1 for the image and for each layer of crops, instead of
            `points_per_side`.
        min_mask_region_area: pixels; smaller holes are filled and smaller islands removed. 0 changes nothing.
        output_mode: "binary_mask", "uncompressed_rle" or "coco_rle", the form of `segmentation` in the records.
        drop_small_masks: drops a mask if its largest island is smaller than `min_mask_region_area` (SA-1B, appendix B).
        max_mask_area: share of the image at which a mask is dropped for its size (SA-1B: 0.95).
        mask_nms_thresh: mask IoU above which the mask of lower predicted IoU is dropped, as the last step.
        crops_per_batch: crops encoded together, of one image or of several. None: 1 on a CPU, 8 elsewhere.
        bf16: runs the model under bfloat16 autocast; masks are computed in float32 from its logits.
        frame: "resize" or "native" instead of the model's own frame.

    Raises:
        ValueError: for settings out of range.
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
        frame: str | None = None,
    ) -> None:
        check_settings({name: value for name, value in locals().items() if name in RANGES})
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode is {output_mode!r}: use one of {', '.join(OUTPUT_MODES)}")
        self.predictor = make_predictor(model, frame=frame)
        if self.is_tiled and crop_n_layers:
            log.warning("crop_n_layers is %d and is not used, because images are cut into tiles already.", crop_n_layers)
        self.point_grids = point_grids_of(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        self.tests = MaskTests(
            pred_iou_thresh,
            stability_score_thresh,
            stability_score_offset,
            model.mask_threshold,
            max_mask_area,
            # the share of a crop of 1024 pixels that it is in segment_anything
            near_edge=NEAR_EDGE if not self.is_tiled else max(round(NEAR_EDGE * model.config.image_size / 1024), 1),
        )
        self.points_per_side, self.points_per_batch = points_per_side, points_per_batch
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

    @property
    def is_tiled(self) -> bool:
        """Returns whether the model sees tiles of the image's own pixels."""
        return isinstance(self.predictor, TiledPredictor)

    def generate(
        self, image: np.ndarray, *, output_size: Size | None = None, progress: Progress | None = None
    ) -> list[Record]:
        """Generates the masks of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            output_size: (H, W) of a smaller frame for the records; crops are still cut from the image at full size
                (SA-1B: short side 1500). None: the image's own.
            progress: called with the number of clicks done and the number of all clicks.

        Returns:
            One record per mask: `segmentation` (see `output_mode`), `area` in pixels, `bbox` xywh, `predicted_iou`,
            `point_coords` [[x, y]] of the click, `stability_score`, and `crop_box` xywh.

        Raises:
            ValueError: for another array, or for an output size larger than the image.
        """
        return next(self.generate_many([image], output_sizes=[output_size], progress=progress))

    def generate_many(
        self,
        images: Iterable[np.ndarray],
        *,
        output_sizes: Iterable[Size | None] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[list[Record]]:
        """Generates the masks of many images, as `generate` does for one; crops of successive images are encoded together.

        Args:
            images: (H, W, 3) uint8 RGB images; they are read as they are needed.
            output_sizes: the `output_size` of each image.
            progress: called with the number of clicks done, and the number of all clicks of the images read so far.

        Yields:
            The records of each image, in order.
        """
        for candidates in self._many(images, output_sizes, progress, self.tests):
            yield [self._record(candidate) for candidate in candidates]

    def candidates(self, image: np.ndarray) -> list[Candidate]:
        """Returns the masks of `generate` as candidates, with their low-resolution logits."""
        return next(self._many([image], None, None, replace(self.tests, keep_logits=True)))

    @torch.no_grad()
    def _many(
        self,
        images: Iterable[np.ndarray],
        output_sizes: Iterable[Size | None] | None,
        progress: Progress | None,
        tests: MaskTests,
    ) -> Iterator[list[Candidate]]:
        """Yields the candidates of each image that pass all tests, in order."""
        work: dict[int, _ImageWork] = {}
        done = todo = 0

        # Crops of all images in one queue; an image is read when its first crop is needed
        def queue() -> Iterator[Crop]:
            nonlocal todo
            for number, (image, output_size) in enumerate(zip(images, output_sizes or repeat(None), strict=False)):
                image = as_rgb(image)
                crops = self._crops(number, image.shape[:2], output_size or image.shape[:2])
                work[number] = _ImageWork(image, crops)
                todo += sum(len(crop.points) for crop in crops)
                yield from crops

        # Batches of crops; an image is finished with its last crop
        waiting, finished = queue(), 0
        while batch := list(islice(waiting, self.crops_per_batch)):
            for candidates, clicks in self._predict(batch, [work[crop.image].image for crop in batch], tests):
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

    # ---- predict

    def _crops(self, number: int, size: Size, output_size: Size) -> list[Crop]:
        """Returns the image and its crops, each with its map from the decoder's logits to the frame of the records."""
        if any(not 1 <= out <= side for out, side in zip(output_size, size, strict=True)):
            raise ValueError(f"output_size is {tuple(output_size)} (H, W) for an image of {size}: no side may be enlarged")
        config, device = self.predictor.model.config, self.predictor.device
        scale = (output_size[1] / size[1], output_size[0] / size[0]) * 2
        crops = []
        for layer, box, points in self._clicked_boxes(size):
            x0, y0, x1, y1 = box
            input_size = self.predictor.transform.size((y1 - y0, x1 - x0))
            rows, columns = (
                axis_of(edges, lengths, length, config.image_size, config.mask_size, device)
                for edges, lengths, length in zip(
                    ((y0, y1), (x0, x1)), zip(size, output_size, strict=True), input_size, strict=True
                )
            )
            if not len(rows[1].first) or not len(columns[1].first):
                continue  # the crop contains no pixel of the records' frame
            a, b, c, d = (edge * factor for edge, factor in zip(box, scale, strict=True))
            crops.append(Crop(number, layer, box, input_size, (a, b, c, d), output_size, LogitFrame(rows, columns), points))
        return crops

    def _clicked_boxes(self, size: Size) -> Iterator[ClickedBox]:
        """Yields layer, box and clicks (K, 2), in pixels of the box, of each part of an image of `size` that is encoded."""
        if isinstance(self.predictor, TiledPredictor):
            side, overlap = self.predictor.model.config.image_size, self.predictor.overlap
            return clicked_tiles(size, self.point_grids[0], self.points_per_side, side=side, overlap=overlap)
        return clicked_crops(size, self.point_grids, self.crop_n_layers, self.crop_overlap_ratio)

    def _predict(
        self, crops: list[Crop], images: list[np.ndarray], tests: MaskTests
    ) -> Iterator[tuple[list[Candidate], int]]:
        """Yields candidates in the order of crops, clicks and masks, with the number of clicks that were decoded for them."""
        # Clicks of all crops, in pixels of their crop and in the input frame
        sam, device = self.predictor.model, self.predictor.device
        points = [crop.points for crop in crops]
        coords = [self.predictor.transform.apply_coords(p, crop.size) for p, crop in zip(points, crops, strict=True)]
        owner = np.repeat(np.arange(len(crops)), [len(p) for p in points])
        points_n2, coords_n2 = np.concatenate(points), np.concatenate(coords)

        # Encode all crops, then decode a batch of clicks at a time
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
        """Returns (B, C, g, g), the embeddings of the crops."""
        sam, transform, device = self.predictor.model, self.predictor.transform, self.predictor.device
        inputs = torch.zeros(len(crops), 3, sam.config.image_size, sam.config.image_size, dtype=torch.uint8)
        for into, crop, image in zip(inputs, crops, images, strict=True):
            x0, y0, x1, y1 = crop.box
            h, w = crop.input_size
            into[:, :h, :w] = torch.from_numpy(transform.apply_image(image[y0:y1, x0:x1])).permute(2, 0, 1)
        sizes = torch.tensor([crop.input_size for crop in crops], device=device)
        return sam.encode(sam.preprocess(inputs.to(device), sizes))

    # ---- compare

    def _best(self, work: _ImageWork) -> list[Candidate]:
        """Returns the candidates of an image that are left after comparing them with each other."""
        # Within a crop, keep the better one of two overlapping boxes
        found = work.found
        kept = _nms(found, [c.predicted_iou for c in found], self.box_nms_thresh, [id(c.crop) for c in found])
        if work.several_crops:
            # Among crops, keep the one from the smaller crop; among tiles, which are all of one size, the better one
            areas = [(c.crop.box[2] - c.crop.box[0]) * (c.crop.box[3] - c.crop.box[1]) for c in kept]
            scores = [c.predicted_iou for c in kept] if self.is_tiled else [1 / area for area in areas]
            kept = _nms(kept, scores, self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            kept = self._without_small_regions(kept)
        if self.mask_nms_thresh is not None:
            kept = _mask_nms(kept, self.mask_nms_thresh)
        return kept

    def _without_small_regions(self, found: list[Candidate]) -> list[Candidate]:
        """Fills holes and removes islands, then compares boxes again; masks that did not change are kept first."""
        cleaned, untouched = [], []
        for candidate in found:
            changed, largest = _clean(candidate, self.min_mask_region_area)
            if not self.drop_small_masks or largest >= self.min_mask_region_area:
                cleaned.append(candidate)
                untouched.append(float(not changed))
        return _nms(cleaned, untouched, max(self.box_nms_thresh, self.crop_nms_thresh))

    def _record(self, candidate: Candidate) -> Record:
        """Returns the candidate as a record of segment_anything."""
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


class _ImageWork:
    """Holds an image and its candidates until all of its crops are done."""

    def __init__(self, image: np.ndarray, crops: list[Crop]) -> None:
        self.image = image
        self.found: list[Candidate] = []
        self.crops_left = len(crops)
        self.several_crops = len(crops) > 1


def _clicks(coords_N2: np.ndarray, device: torch.device) -> Prompts:
    """Returns prompts of one foreground click and the padding token per object."""
    coords = torch.zeros(len(coords_N2), 2, 2)
    coords[:, 0] = torch.from_numpy(coords_N2)
    labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.PADDING]).repeat(len(coords), 1)
    return Prompts(coords.to(device), labels.to(device))


def _nms(
    found: list[Candidate], scores: list[float], thresh: float, groups: list[int] | None = None
) -> list[Candidate]:
    """Returns the candidates left by non-maximum suppression of boxes within each group: groups in order, best ones first."""
    if not found:
        return []
    order = {group: i for i, group in enumerate(dict.fromkeys(groups or [0]))}
    index = torch.tensor([order[group] for group in groups] if groups else [0] * len(found))
    boxes = torch.tensor([c.box for c in found], dtype=torch.float32)
    kept = batched_nms(boxes, torch.tensor(scores), index, thresh)
    return [found[i] for i in sorted(kept.tolist(), key=lambda i: int(index[i]))]  # a stable sort: best first within a group


def _mask_nms(found: list[Candidate], thresh: float) -> list[Candidate]:
    """Returns the candidates left by non-maximum suppression of masks by predicted IoU, in their original order."""
    rles = [{"size": list(c.crop.frame_size), "counts": runs_to_counts(c.runs)} for c in found]
    ious = rle_iou(rles, rles)
    kept: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: -found[i].predicted_iou):
        if not kept or ious[i, kept].max() <= thresh:
            kept.append(i)
    return [found[i] for i in sorted(kept)]


def _clean(candidate: Candidate, min_area: int) -> tuple[bool, int]:
    """Fills holes and removes islands in place; returns whether there were any, and the size of the largest island."""
    size = candidate.crop.frame_size
    # cut out the mask with a margin so wide that background reaching beyond it is never taken for a small hole
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
    """Returns xywh as segment_anything writes it: sides are differences of coordinates, and whole numbers are integers."""
    x0, y0, x1, y1 = (int(edge) if edge == int(edge) else edge for edge in box)
    return [x0, y0, x1 - x0, y1 - y0]
