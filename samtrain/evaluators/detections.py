"""A detector's boxes from a COCO result file, and their images in a set: found by id, or refused with both kinds of ids."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samtrain.data.coco_fields import id_text, some_ids
from samtrain.data.shards import Record

log = logging.getLogger(__name__)

SHOWN = 200  # characters of a wrong result in a message
KINDS = ("image_id", "key", "source_name")  # what a result may call an image


class Detections(NamedTuple):
    """The boxes of one image.

    boxes:       (N, 4) float64 xyxy in the image's pixels
    scores:      (N,) float64
    categories:  N category ids, None for a detector of one class
    """

    boxes: np.ndarray
    scores: np.ndarray
    categories: list[Any]


NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), [])


def read_detections(results: Sequence[dict[str, Any]], name: str, *, min_score: float = 0.0) -> dict[str, Detections]:
    """Returns the boxes of a COCO result file by `id_text` of the image id; raises ValueError that begins with its `name`."""
    if not isinstance(results, list):
        raise ValueError(f"{name} is not a list of results: set zero_shot.boxes to COCO results")
    by_image: dict[str, list[dict[str, Any]]] = {}
    for number, each in enumerate(results):
        box = each.get("bbox") if isinstance(each, dict) else None
        if not (_are_numbers(box, 4) and _is_id(each.get("image_id")) and _are_numbers([each.get("score")], 1)):
            raise ValueError(
                f"{name}: result {number} needs an image_id, a bbox [x, y, w, h] and a score, and is {str(each)[:SHOWN]}: set "
                "zero_shot.boxes to COCO results"
            )
        if not (each.get("category_id") is None or _is_id(each["category_id"])):
            raise ValueError(
                f"{name}: result {number} has the category_id {each['category_id']!r}: give a number or a text in the file "
                "that zero_shot.boxes names"
            )
        if each["score"] >= min_score:
            by_image.setdefault(id_text(each["image_id"]), []).append(each)
    found = {}
    for image_id, several in by_image.items():
        boxes = np.array([each["bbox"] for each in several], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([each["score"] for each in several], dtype=np.float64)
        found[image_id] = Detections(boxes, scores, [each.get("category_id") for each in several])
    return found


def _are_numbers(values: Any, count: int) -> bool:
    numbers = isinstance(values, list) and len(values) == count and all(isinstance(v, (int, float)) for v in values)
    return numbers and all(isfinite(value) for value in values)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, float, str))


class DetectionFile:
    """The boxes of `zero_shot.boxes` by image.

    A result names its image by `image_id` in the set's JSON, by the record's key, or by the name of the image's file. All
    results of a file use the same of these, the one that fits most of them (`match`).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            results = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"zero_shot.boxes: {path} cannot be parsed as JSON ({error}): give COCO results") from error
        self.by_id = read_detections(results, path)
        self.named_by = "image_id"

    def of(self, image: Record) -> Detections:
        """Returns the boxes of an image, none if the file does not name it."""
        return self.by_id.get(_names(image)[self.named_by], NOTHING)

    def choose_names(self, images: Iterable[Record]) -> tuple[dict[str, set[str]], dict[str | None, str]]:
        """Finds out how the results name the images of a set.

        Returns the names of the images by their kind, and the names of the categories by id; the id None stands for objects
        without a category.
        """
        names: dict[str, set[str]] = {kind: set() for kind in KINDS}
        categories: dict[str | None, str] = {}
        for image in images:
            for kind, text in _names(image).items():
                names[kind].add(text)
            for each in (*image.annotation["annotations"], *image.annotation.get("evaluation_only", [])):
                category = each.get("category_id")
                categories[None if category is None else id_text(category)] = str(each.get("category_name", "no name"))
        self.named_by = max(KINDS, key=lambda kind: len(self.by_id.keys() & names[kind]))
        return names, categories

    def match(self, images: Iterable[Record], name: str) -> None:
        """Logs what of the results does not fit the set `name`.

        Raises ValueError if no result is of an image of the set, and if no result is of a category of the set.
        """
        if not self.by_id:
            raise ValueError(f"zero_shot.boxes is {self.path}, which holds no results: give those of a detector")
        names, categories = self.choose_names(images)
        matched = self.by_id.keys() & names[self.named_by]
        if not matched:
            raise ValueError(
                f"zero_shot.boxes is {self.path}, and none of its {len(self.by_id)} images is in the set {name}: its image_id "
                f"are {some_ids(self.by_id)}, and the set has the image_id {some_ids(names['image_id'])} and the files "
                f"{some_ids(names['source_name'])}: give the detections of these images"
            )
        self._log_rest(matched, names[self.named_by], name)
        self._check_categories([c for text in matched for c in self.by_id[text].categories], categories, name)

    def _log_rest(self, matched: set[str], in_set: set[str], name: str) -> None:
        """Logs the images that are only in the file, and those that are only in the set."""
        if others := self.by_id.keys() - in_set:
            log.warning("%s has detections of %d images that the set %s does not hold: %s.", self.path, len(others), name,
                        some_ids(others))  # fmt: skip
        if without := in_set - matched:
            log.warning("%d of the %d images of the set %s have no detection in %s: %s.", len(without), len(in_set), name,
                        self.path, some_ids(without))  # fmt: skip

    def _check_categories(self, found: Sequence[Any], known: Mapping[str | None, str], name: str) -> None:
        """Raises ValueError if no detection has a category of the set; logs if some have not, or if there are no categories."""
        if None in found or None in known:
            lacking = "object" if None in known else "detection"
            log.warning("AP of the set %s is over one class, because not every %s has a category_id.", name, lacking)
            return
        given = [id_text(category) for category in found]
        others = [category for category in given if category not in known]
        if len(others) == len(given):
            raise ValueError(
                f"zero_shot.boxes is {self.path}, and none of its category_id ({some_ids(others)}) is in the set {name}, which "
                f"has {some_ids([f'{number} ({text})' for number, text in known.items()])}: give detections of these categories"
            )
        if others:
            log.warning("%d of %d detections in %s are of categories that no object of the set %s has: %s.", len(others),
                        len(given), self.path, name, some_ids(others))  # fmt: skip


def _names(image: Record) -> dict[str, str]:
    """Returns what a result may call an image."""
    about = image.annotation["image"]
    texts = id_text(about.get("image_id")), image.key, str(about.get("source_name", about.get("file_name")))
    return dict(zip(KINDS, texts, strict=True))

