"""The settings of `task=prepare`, and the reader that they choose."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from samtrain.data.prepare.cvat import CvatImages, is_cvat
from samtrain.data.prepare.formats import BinaryMasks, CocoInstances, LabelMaps, MaskSource, Sa1bFolder, Unlabelled
from samtrain.data.prepare.label_maps import LabelRules
from samtrain.data.prepare.label_studio import LabelStudioTasks
from samtrain.data.prepare.mask_files import files_below
from samtrain.data.prepare.yolo import YoloPolygons

Form = Literal["auto", "sa1b", "coco", "label_maps", "binary_masks", "yolo", "cvat", "label_studio", "unlabelled"]
OF_FILE = {"coco": CocoInstances, "cvat": CvatImages, "label_studio": LabelStudioTasks}  # forms with one file for all images


@dataclass(frozen=True)
class PrepareConfig:
    """Which images and masks are prepared, and how; every field is a key of `data=folder`.

    root:         folder that holds the images, at any depth
    form:         sa1b (a JSON beside each image), coco, cvat or label_studio (`annotations` names the file), label_maps or
                  binary_masks (`masks` says where they are), yolo (labels beside images), or unlabelled, images without masks
                  that people will annotate; auto chooses coco if `annotations` is set, cvat if it is an XML, else sa1b
    masks:        folder or glob of mask files, see `MaskFinder`
    annotations:  COCO or LVIS instance JSON, CVAT's XML, Label Studio's JSON; a list is refused with what to do instead
    background:   the value of a label map's background; None: 0, or a negative value that looks like it
    ignore_values: values of label maps that are no object; None: 255 if it looks like VOC's void
    components:   each connected region of a mask or of a label is an object
    group_by:     None, `<file>.csv:<column>` or a regular expression on the file name, see `grouping`
    categories:   names of the categories whose objects are kept (COCO and LVIS), None for all
    crowds:       ignore keeps regions with iscrowd 1 for evaluation only; objects takes each of them for one object
    empty_images: images without objects are kept, instead of left out
    val, test:    shares of the images that are held back
    seed:         decides which images are held back
    strict:       the first refused record ends the run
    max_count:    records per shard
    """

    root: str
    form: Form = "auto"
    masks: str | None = None
    annotations: str | list[str] | None = None
    categories: list[str] | None = None
    crowds: Literal["ignore", "objects"] = "ignore"
    empty_images: bool = False
    background: int | None = None
    ignore_values: list[int] | None = None
    components: bool = False
    group_by: str | None = None
    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    strict: bool = False
    max_count: int = 500

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"data.form is {self.form!r}: choose one of {', '.join(get_args(Form))}")
        if not Path(self.root).is_dir():
            raise ValueError(f"data.root is {self.root!r}, which is not a folder: give the folder that holds the images")
        if isinstance(self.annotations, list):
            raise ValueError(
                f"data.annotations names {len(self.annotations)} files, and one set has one: prepare a set for each file and "
                "use their shards together (data=sa1b), or merge the files into one with different ids"
            )
        if self.crowds not in ("ignore", "objects"):
            raise ValueError(f"data.crowds is {self.crowds!r}: choose ignore or objects")
        if self.categories is not None and self.annotations is None and self.form != "yolo":
            raise ValueError(
                f"data.categories is {self.categories}, and only data.form=coco has categories (or cvat, label_studio, yolo): "
                "set data.annotations=<json>, or data.categories=null"
            )
        _check_masks(self)
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise ValueError(
                f"data.val and data.test are {self.val} and {self.test}: give shares of 0 or more with a sum below 1, so that "
                "images are left to train on"
            )
        if self.max_count < 1:
            raise ValueError(f"data.max_count is {self.max_count}: give 1 or more records per shard")

    def absolute(self) -> PrepareConfig:
        """Returns the same config with absolute paths, which do not depend on the working directory."""
        assert not isinstance(self.annotations, list), "__post_init__ refuses lists"
        annotations = self.annotations and os.path.abspath(self.annotations)
        return replace(self, root=os.path.abspath(self.root), annotations=annotations)

    def parameters(self) -> dict[str, Any]:
        """Returns what prepare.json records and what the name of the prepared folder depends on."""
        # `root` is called "source" there: prepared sets on disk are found by a digest of these names
        return {"source" if f.name == "root" else f.name: getattr(self, f.name) for f in fields(PrepareConfig)}


def _check_masks(config: PrepareConfig) -> None:
    """Raises ValueError for settings of mask files that do not fit each other or are out of range."""
    form, of_files = config.form, config.form in ("label_maps", "binary_masks")
    if config.masks and not of_files:
        raise ValueError(
            f"data.masks is {config.masks!r} and data.form is {form}, which reads no mask files: set data.form=label_maps for "
            "one file per image with a value for each object, or data.form=binary_masks for a file or page per object"
        )
    if config.components and not of_files:
        raise ValueError(f"data.components is true and data.form is {form}, which reads no masks: set data.components=false")
    given: dict[str, Any] = {"background": config.background, "ignore_values": config.ignore_values}
    for key, value in given.items():
        if value is None:
            continue
        several = value if isinstance(value, list | tuple) and key == "ignore_values" else [value]
        if not all(type(each) is int for each in several):
            raise ValueError(f"data.{key} is {value!r}: give whole numbers, such as 255, and for data.ignore_values [255]")
        if form != "label_maps":
            raise ValueError(f"data.{key} is set and data.form is {form}, but only label maps use it: set data.{key}=null")
    if config.ignore_values is not None and not isinstance(config.ignore_values, list | tuple):
        raise ValueError(f"data.ignore_values is {config.ignore_values!r}: give a list, such as [255]")


def is_unlabelled(config: PrepareConfig) -> bool:
    """Returns whether the images have no masks, by `form` or, if that is auto, because nothing names or holds any."""
    if config.form != "auto":
        return config.form == "unlabelled"
    return not config.annotations and not files_below(Path(config.absolute().root), {".json"})


def mask_source(config: PrepareConfig) -> MaskSource:
    """Returns the reader for the form that the config names; raises ValueError if the files it needs are missing."""
    config = config.absolute()
    folder, form, annotations = Path(config.root), config.form, config.annotations
    assert not isinstance(annotations, list), "PrepareConfig refuses lists"
    if form == "auto":
        if is_unlabelled(config):
            raise ValueError(
                f"data.form is auto and {folder} holds no JSON beside its images, so they have no masks. If they have masks in "
                "files, set data.form=label_maps or binary_masks and data.masks, for COCO set data.annotations=<json>. If they "
                "have none yet, let people annotate them: +experiment=stage1 annotator=web data=folder data.root=<folder>"
            )
        form = "sa1b" if not annotations else "cvat" if is_cvat(Path(annotations)) else "coco"
    if form == "unlabelled":
        return Unlabelled(folder)
    if form == "sa1b":
        return Sa1bFolder(folder)
    if form == "yolo":
        return YoloPolygons(folder, config.categories)
    if form in OF_FILE:
        if not annotations or not Path(annotations).is_file():
            wanted = {"coco": "the instance JSON", "cvat": "the XML", "label_studio": "the JSON"}[form]
            raise ValueError(
                f"data.form is {form} and data.annotations is {annotations!r}, which is not a file: give {wanted}"
            )
        return OF_FILE[form](folder, Path(annotations), config.categories)
    if not config.masks:
        raise ValueError(
            f"data.form is {form} and data.masks is not set: give the folder of the masks, or a glob with {{stem}} in it"
        )
    ignored = None if config.ignore_values is None else tuple(config.ignore_values)
    rules = LabelRules(config.background, ignored, config.components)
    if form == "label_maps":
        return LabelMaps(folder, config.masks, rules)
    return BinaryMasks(folder, config.masks, rules, empty_images=config.empty_images)
