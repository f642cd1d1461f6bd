"""What `task=prepare` is asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from samtrain.data.prepare.formats import BinaryMasks, CocoInstances, LabelMaps, MaskSource, Sa1bFolder
from samtrain.data.prepare.mask_files import files_below

FORMS = ("auto", "sa1b", "coco", "label_maps", "binary_masks")


@dataclass(frozen=True)
class PrepareConfig:
    """What is prepared, and how; every field is a key of `data=folder`.

    source:       folder of images, at any depth
    form:         sa1b (a JSON beside each image), coco (`annotations` names the JSON), label_maps or binary_masks
                  (`masks` says where)
    masks:        folder or glob of mask files, see `MaskFinder`
    annotations:  COCO or LVIS instance JSON
    group_by:     None, `<file>.csv:<column>` or a regular expression on the file name, see `grouping`
    val, test:    shares of the images that are held back
    seed:         decides which
    strict:       the first refused record ends the run
    max_count:    records a shard
    """

    source: str
    form: str = "auto"
    masks: str | None = None
    annotations: str | None = None
    group_by: str | None = None
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    strict: bool = False
    max_count: int = 500

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"data.form is {self.form!r}, allowed are {', '.join(FORMS)}")
        if not Path(self.source).is_dir():
            raise ValueError(
                f"data.root is {self.source!r}, which is no folder; name the folder that holds the images"
            )
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise ValueError(
                f"data.val and data.test are {self.val} and {self.test}, want shares that leave something to train on"
            )

    def absolute(self) -> PrepareConfig:
        """The same, wherever it is called from."""
        annotations = self.annotations and os.path.abspath(self.annotations)
        return replace(self, source=os.path.abspath(self.source), annotations=annotations)


def mask_source(config: PrepareConfig) -> MaskSource:
    """The reader of the form that the config names; raises ValueError if what it needs is not there."""
    config = config.absolute()
    folder, form = Path(config.source), config.form
    if form == "auto":
        form = "coco" if config.annotations else "sa1b"
        if not config.annotations and not files_below(folder, {".json"}):
            raise ValueError(
                f"data.form is auto and {folder} holds no JSON beside its images; for masks in files set "
                "data.form=label_maps or binary_masks and data.masks, for COCO set data.annotations=<json>"
            )
    if form == "sa1b":
        return Sa1bFolder(folder)
    if form == "coco":
        if not config.annotations or not Path(config.annotations).is_file():
            raise ValueError(f"data.form is coco, data.annotations is {config.annotations!r}; name the instance JSON")
        return CocoInstances(folder, Path(config.annotations))
    if not config.masks:
        raise ValueError(
            f"data.form is {form}: data.masks says where the masks are, a folder or a glob with {{stem}} in it"
        )
    return LabelMaps(folder, config.masks) if form == "label_maps" else BinaryMasks(folder, config.masks)
