"""Reads CVAT's own export, "CVAT for images 1.1": one XML with polygons, brush masks and ellipses."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from samtrain.data.prepare.formats import CocoInstances
from samtrain.ops.rle import encode_mask
from samtrain.terminal import counted

log = logging.getLogger(__name__)

WITHOUT_MASK = ("box", "polyline", "points", "cuboid", "skeleton", "tag")  # shapes that outline no object
ELLIPSE_CORNERS = 90  # of the polygon that stands for an ellipse: within 0.1 % of its area


class CvatImages(CocoInstances):
    """Reads the objects of an XML as COCO's: shapes of one label and one group are one object, all others are their own."""

    def _content(self) -> dict[str, Any]:
        root = self._root()
        names = [label.findtext("name") or "" for label in root.iter("label") if label.find("name") is not None]
        names += [shape.get("label", "") for image in root.iter("image") for shape in image]
        categories = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        left_out: Counter[str] = Counter()
        for number, image in enumerate(root.iter("image")):
            size = _number(image, "width"), _number(image, "height")
            images.append({"id": number, "file_name": image.get("name"), "width": int(size[0]), "height": int(size[1])})
            left_out.update(shape.tag for shape in image if shape.tag in WITHOUT_MASK)
            for label, segmentation in _objects(image, (int(size[1]), int(size[0]))):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": categories[label],
                        "segmentation": segmentation,
                    }
                )
        if left_out:
            log.warning(
                "%s has shapes that outline no object, and they are left out: %s.", self.annotations,
                ", ".join(counted(count, name) for name, count in left_out.items()),
            )  # fmt: skip
        listed = [{"id": number, "name": name} for name, number in categories.items()]
        return {"images": images, "annotations": annotations, "categories": listed}

    def _root(self) -> Element:
        """Returns the XML's root; raises ValueError for other files."""
        try:
            root = ElementTree.parse(self.annotations).getroot()
        except (ElementTree.ParseError, OSError) as error:
            raise ValueError(f"data.annotations: {self.annotations} cannot be parsed as XML ({error})") from error
        if root.tag != "annotations" or root.find("image") is None:
            kind = "a video's tracks" if root.find("track") is not None else f"an XML of <{root.tag}> without images"
            raise ValueError(
                f"data.annotations is {self.annotations}, which holds {kind}: "
                "export the task from CVAT as 'CVAT for images 1.1'"
            )
        return root


def _objects(image: Element, size: tuple[int, int]) -> list[tuple[str, Any]]:
    """Returns the label and COCO's segmentation of each object of an image of `size` (H, W)."""
    grouped: dict[Any, list[Element]] = defaultdict(list)
    for number, shape in enumerate(image):
        if shape.tag in ("polygon", "mask", "ellipse"):
            group = shape.get("group_id", "0")
            grouped[(group, shape.get("label")) if group not in ("", "0") else number].append(shape)
    return [(shapes[0].get("label", ""), _segmentation(shapes, size)) for shapes in grouped.values()]


def _segmentation(shapes: list[Element], size: tuple[int, int]) -> Any:
    """Returns polygons, or RLEs if a shape is a brush mask."""
    if all(shape.tag != "mask" for shape in shapes):
        return [_corners(shape) for shape in shapes]
    from samtrain.data.prepare.segmentations import to_rle

    return [encode_mask(_brush(shape, size)) if shape.tag == "mask" else to_rle([_corners(shape)], size) for shape in shapes]


def _corners(shape: Element) -> list[float]:
    """Returns x, y, x, y, ... of a polygon or an ellipse."""
    if shape.tag == "polygon":
        return [float(value) for corner in shape.get("points", "").split(";") for value in corner.split(",")]
    cx, cy, rx, ry = (_number(shape, name) for name in ("cx", "cy", "rx", "ry"))
    turn = math.radians(float(shape.get("rotation", 0)))
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_CORNERS, endpoint=False)
    x, y = rx * np.cos(angles), ry * np.sin(angles)
    turned = np.stack([cx + x * math.cos(turn) - y * math.sin(turn), cy + x * math.sin(turn) + y * math.cos(turn)], axis=1)
    return turned.flatten().tolist()


def _brush(shape: Element, size: tuple[int, int]) -> np.ndarray:
    """Returns (H, W) bool: the runs of a brush mask, off and on in turns, row by row in its box."""
    left, top, width, height = (int(_number(shape, name)) for name in ("left", "top", "width", "height"))
    runs = [int(value) for value in shape.get("rle", "").split(",")]
    if sum(runs) != width * height or left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(
            f"data.annotations: a brush mask of {sum(runs)} pixels does not fill its box of {width} x {height} at ({left}, "
            f"{top}) in an image of {size[1]} x {size[0]}"
        )
    mask = np.zeros(size, bool)
    window = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask[top : top + height, left : left + width] = window
    return mask


def _number(element: Element, name: str) -> float:
    """Returns a number; raises ValueError that says where it is missing."""
    try:
        return float(element.attrib[name])
    except (KeyError, ValueError) as error:
        raise ValueError(f"data.annotations: a <{element.tag}> has no number {name!r}: export it from CVAT again") from error


def is_cvat(path: Path) -> bool:
    """Returns whether a file of annotations is an XML."""
    return path.suffix.lower() == ".xml"
