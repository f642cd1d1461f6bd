"""The config nodes of stage 3: `generate`, which makes automatic masks, and `audit`, which measures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The settings of task=generate (conf/generate/); those of the mask generator itself are in `generator`.

    Raises ValueError for values that contradict each other or are out of range.
    """

    input: str | list[str] | None  # a folder of images, a glob, or tars; or a list of these
    output: str | None  # the folder for the shards; None: shards/ in the run's directory
    num_workers: int  # processes on this machine
    num_parts: int  # machines or jobs that share the work
    part: int  # which of them this one is
    images_per_shard: int
    first_image_id: int
    on_error: Literal["skip", "raise"]
    panels: int  # images that the report shows
    truth: bool  # compare the masks with the JSONs of the input images
    release: dict[str, Any] | None  # how images are shrunk and blurred, as an object with `_target_`

    def __post_init__(self) -> None:
        for key in ("num_workers", "num_parts", "images_per_shard"):
            if getattr(self, key) < 1:
                raise ValueError(f"generate.{key} is {getattr(self, key)}: set it to 1 or more")
        for key in ("first_image_id", "panels"):
            if getattr(self, key) < 0:
                raise ValueError(f"generate.{key} is {getattr(self, key)}: set it to 0 or more")
        if not 0 <= self.part < self.num_parts:
            raise ValueError(
                f"generate.part is {self.part}: set it to a number from 0 to {self.num_parts - 1}, or raise generate.num_parts"
            )
        if self.truth and self.release:
            raise ValueError(
                "generate.truth compares at the size of the input images, but generate.release may resize them: set only one"
            )
        if self.output is None and self.num_workers * self.num_parts > 1:
            raise ValueError("generate.output is null, but several processes need one folder: set generate.output=FOLDER")

    def of_shards(self) -> dict[str, Any]:
        """Returns the settings that decide the bytes of the shards; the others may differ between workers and runs."""
        return {key: getattr(self, key) for key in ("images_per_shard", "first_image_id", "release")}


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The `audit` node (paper, section 5, "Mask quality"); one of `corrected` and `truth` is given.

    dataset:    shards of automatic masks
    corrected:  a folder with a corrected JSON per image
    truth:      shards of the same images with ground truth, from which corrections are simulated
    images:     how many images are sampled
    target_iou: at this IoU with the object the simulated annotator stops correcting
    min_iou:    a mask that is below this IoU with every object shows none of them and is left out
    """

    dataset: str | list[str] | None
    corrected: str | None
    truth: str | list[str] | None
    images: int
    target_iou: float
    min_iou: float

    def __post_init__(self) -> None:
        if self.corrected is not None and self.truth is not None:
            raise ValueError("audit.corrected and audit.truth are both set: set one of them to null")
        if self.images < 1:
            raise ValueError(f"audit.images is {self.images}: set it to 1 or more")
        for key in ("target_iou", "min_iou"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"audit.{key} is {getattr(self, key)}: set it to a number from 0 to 1")
