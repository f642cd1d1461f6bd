"""The `zero_shot` node of the config, and the data sets that it lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CLICKED = ("points", "fairness", "learning_curve")  # protocols in which objects are clicked
OWN = {  # settings that only some protocols have
    "native": (*CLICKED, "instances"), "max_masks": CLICKED,
    "boxes": ("instances",), "group_by": ("fairness",), "groups": ("fairness",),
    "run": ("learning_curve",),
}  # fmt: skip


@dataclass(frozen=True)
class KnownSet:
    """A public data set of which samtrain knows where to get it, as in conf/zero_shot_sets/sa23.yaml.

    shards:         where its shards belong on this machine
    split:          the part of the data set that the paper used
    images, masks:  how many of them the paper used
    get:            how to download it, and how to turn it into shards
    """

    shards: str
    split: str
    images: int
    masks: int
    licence: str
    home: str
    get: str


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """The `zero_shot` node: which experiment runs, and on what."""

    protocol: Literal["points", "proposals", "instances", "edges", "automatic", "fairness", "learning_curve", "text"] = "points"
    sets: dict[str, str | list[str] | KnownSet] = field(default_factory=dict)
    max_masks: int | None = None
    native: bool | None = None
    num_workers: int = 1
    split: str = "test"
    boxes: str | None = None
    group_by: str | None = None
    groups: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"zero_shot.num_workers is {self.num_workers}: give a whole number of at least 1")
        if self.max_masks is not None and self.max_masks < 1:
            raise ValueError(f"zero_shot.max_masks is {self.max_masks}: give at least 1 object per image, or null for all")
        for key, protocols in OWN.items():
            value = getattr(self, key)
            if value is not None and self.protocol not in protocols:
                raise ValueError(
                    f"zero_shot.{key} is {value!r}, which has no meaning with zero_shot.protocol={self.protocol}: leave it "
                    f"out, or choose zero_shot.protocol={' or '.join(protocols)}"
                )
