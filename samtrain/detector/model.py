"""Faster R-CNN with the one class "object" (Ren et al. 2015; section 4 of the paper): torchvision's model with our sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from samtrain.detector.backbones import load_resnet_weights, resnet_backbone, small_backbone

MAX_DETECTIONS = 300  # per image; a caller of `detect` may ask for fewer


@dataclass(frozen=True)
class DetectorConfig:
    """Everything that determines the shapes and the output of a detector; checkpoints hold it.

    image_size:      the longest side that an image is resized to, in pixels
    width:           channels of the pyramid, and of the first stage of the narrow network
    head_dim:        width of the two layers that classify a proposal
    roi_size:        cells per side that are pooled from a proposal
    anchor_sizes:    sides of the anchors of each pyramid level, in pixels of the resized image
    proposals:       proposals kept per image, in training and in use
    rpn_samples, roi_samples: anchors and proposals per image that the losses are computed on
    nms_thresh:      box IoU above which two detections are one; higher than the usual 0.5, because parts are inside wholes
    norm:            norm of ResNet: "group" or "frozen_batch"
    """

    name: str
    image_size: int
    width: int
    head_dim: int
    roi_size: int
    anchor_sizes: tuple[tuple[int, ...], ...]
    proposals: tuple[int, int]
    rpn_samples: int
    roi_samples: int
    nms_thresh: float = 0.7
    norm: str = "group"

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_sizes", tuple(tuple(level) for level in self.anchor_sizes))
        object.__setattr__(self, "proposals", tuple(self.proposals))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as checkpoints hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectorConfig:
        """Returns the config from plain values; raises ValueError for unknown and missing keys."""
        known = {field.name for field in fields(cls)}
        if values.keys() != known:
            raise ValueError(f"the keys are {', '.join(sorted(values))} and should be {', '.join(sorted(known))}")
        return cls(**values)


DETECTORS = {
    "small": DetectorConfig(
        name="small",
        image_size=96,
        width=32,
        head_dim=128,
        roi_size=5,
        anchor_sizes=((16, 22), (28, 36), (44, 52), (60, 72)),  # 90 % of the laptop scenes' boxes: 22 to 59 pixels
        proposals=(200, 200),
        rpn_samples=128,
        roi_samples=64,
    ),
    "resnet50_fpn": DetectorConfig(
        name="resnet50_fpn",
        image_size=1024,
        width=256,
        head_dim=1024,
        roi_size=7,
        anchor_sizes=((32,), (64,), (128,), (256,), (512,)),  # Lin et al. 2017
        proposals=(2000, 1000),
        rpn_samples=256,
        roi_samples=512,
    ),
}


def build_detector(name: str, *, seed: int = 0, backbone_weights: str | Path | None = None, **changes: Any) -> Detector:
    """Returns a new detector, one of `DETECTORS`, with `changes` to its config; its weights are a function of the seed.

    `backbone_weights` is a file of torchvision's resnet50, for `resnet50_fpn`; nothing is ever downloaded. Raises ValueError
    for unknown names and fields, and for weights that do not fit.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector.name is {name!r}: choose one of {', '.join(DETECTORS)}")
    if unknown := sorted(set(changes) - {field.name for field in fields(DetectorConfig)}):
        raise ValueError(f"DetectorConfig has no {', '.join(unknown)}: its fields are {', '.join(DETECTORS[name].to_dict())}")
    if backbone_weights is not None:
        if name != "resnet50_fpn":
            raise ValueError(
                f"detector.backbone_weights is set, but detector.name is {name!r}, which has no weights: set it to null"
            )
        changes["norm"] = "frozen_batch"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(replace(DETECTORS[name], **changes))
    if backbone_weights is not None:
        load_resnet_weights(detector.net.backbone, backbone_weights)
    return detector


class Detector(nn.Module):
    """Finds objects of any kind; boxes are in pixels of the given image."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _faster_rcnn(config)

    def losses(self, images: list[Tensor], boxes: list[Tensor]) -> dict[str, Tensor]:
        """Returns the four scalar losses of Faster R-CNN for (3, H, W) uint8 images and (N, 4) xyxy boxes of their objects."""
        targets = [{"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64, device=b.device)} for b in boxes]
        self.net.train()
        return self.net([_to_float(image) for image in images], targets)

    @torch.no_grad()
    def find(self, images: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Returns all boxes (N, 4) xyxy and scores (N,), 0 to 1, best first, of each (3, H, W) uint8 image."""
        self.net.eval()
        return [(found["boxes"].float(), found["scores"].float()) for found in self.net([_to_float(i) for i in images])]

    def detect(
        self, image: np.ndarray, *, score_thresh: float = 0.0, max_detections: int = 100
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes (N, 4) float32 xyxy in pixels of the (H, W, 3) uint8 RGB image, and scores (N,) float32, best first.

        The right and lower edges are one past the last pixel, as in COCO; a box prompt of SAM ends on the last pixel. There
        are at most `max_detections` boxes (up to 300), with scores of at least `score_thresh`; N may be 0. Raises ValueError
        for another kind of array.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"the image is {image.shape} {image.dtype}: give (H, W, 3) uint8, as decode_image returns it")
        if not 0 < max_detections <= MAX_DETECTIONS:
            raise ValueError(f"max_detections is {max_detections}: give 1 to {MAX_DETECTIONS}")
        device = next(self.parameters()).device
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
        ((boxes, scores),) = self.find([pixels])
        kept = (scores >= score_thresh).nonzero()[:max_detections, 0]
        return boxes[kept].cpu().numpy(), scores[kept].cpu().numpy()


def _to_float(image: Tensor) -> Tensor:
    """Returns an image as torchvision takes it, float in 0 to 1."""
    return image.float() / 255


def _faster_rcnn(config: DetectorConfig) -> FasterRCNN:
    backbone = small_backbone(config.width) if config.name == "small" else resnet_backbone(config.width, config.norm)
    levels = [str(i) for i in range(len(config.anchor_sizes) - 1)]  # the coarsest level only makes proposals
    ratios = ((0.5, 1.0, 2.0),) * len(config.anchor_sizes)
    return FasterRCNN(
        backbone,
        min_size=config.image_size,
        max_size=config.image_size,
        rpn_anchor_generator=AnchorGenerator(config.anchor_sizes, ratios),
        rpn_pre_nms_top_n_train=config.proposals[0],
        rpn_pre_nms_top_n_test=config.proposals[1],
        rpn_post_nms_top_n_train=config.proposals[0],
        rpn_post_nms_top_n_test=config.proposals[1],
        rpn_batch_size_per_image=config.rpn_samples,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=config.roi_size, sampling_ratio=2),
        box_head=TwoMLPHead(config.width * config.roi_size**2, config.head_dim),
        box_predictor=FastRCNNPredictor(config.head_dim, num_classes=2),  # background and object
        box_score_thresh=0.0,  # the caller of `detect` chooses the threshold
        box_nms_thresh=config.nms_thresh,
        box_detections_per_img=MAX_DETECTIONS,
        box_batch_size_per_image=config.roi_samples,
    )
