"""The settings of a detector's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from samtrain.detector.model import DETECTORS


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """The config node `detector`: the detector that is trained, what it starts from, and how it is trained.

    name, image_size:  one of `DETECTORS`, and the longest side that images are resized to; None: the detector's own
    init:              a detector.pth or .ckpt to start from; its sizes replace name and image_size; None: a new detector
    backbone_weights:  a .pth of torchvision's resnet50, for resnet50_fpn
    train_on:          the rounds' masks that it learns from: those of the first stage ("assisted"), or of all rounds before
    learning_rate:     AdamW's rate, which warms up and then falls as a cosine
    flip_probability:  probability of exchanging left and right
    max_mask_area:     share of the image above which a mask is not an object
    val_every_steps:   None: never
    """

    name: str = "small"
    image_size: int | None = None
    init: str | None = None
    backbone_weights: str | None = None
    train_on: Literal["assisted", "all"] = "assisted"
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 20
    gradient_clip_val: float = 1.0
    flip_probability: float = 0.5
    max_mask_area: float = 0.9
    val_every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name not in DETECTORS:
            raise ValueError(f"detector.name is {self.name!r}: choose one of {', '.join(DETECTORS)}")
        for name in ("image_size", "steps", "batch_size", "learning_rate", "gradient_clip_val", "val_every_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"detector.{name} is {value}: give a number above 0")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"detector.{name} is {getattr(self, name)}: give 0 or more")
        for name in ("flip_probability", "max_mask_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"detector.{name} is {getattr(self, name)}: give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """What a training runs on and how often it logs: nothing here changes the weights of a training on the CPU."""

    accelerator: str = "auto"
    precision: Any = "32-true"  # what Lightning's Trainer takes
    num_workers: int = 0
    cache_images: bool = False
    on_error: str = "raise"
    checkpoint_every_steps: int = 100
    log_every_steps: int = 10
    progress: bool = False
