"""Reads COCO's `segmentation` in the forms in which tools write it, and bounds what is handed to pycocotools."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from samtrain.ops.rle import RLE, to_compressed

# pycocotools walks along an outline in fifths of a pixel, with 24 bytes for each: 240 MB at most, for outlines that no mask has
MAX_OUTLINE = 2_000_000


def to_rle(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Converts any COCO `segmentation` (polygons, a list of runs, compressed runs) to RLE with text counts.

    Also reads what tools write where the meaning is certain: one polygon without the outer list, corners as [x, y] or
    {"x": x, "y": y}, numbers as text, counts as Python shows bytes (b'...'), JSON as text, several RLEs. Raises ValueError
    for anything else, for runs that do not fill `size` (H, W), and for polygons with outlines that are too long to be those
    of a mask.
    """
    segmentation = _parsed(segmentation)
    if isinstance(segmentation, list) and segmentation and all(_is_rle(each) for each in segmentation):
        rle = coco_mask.merge([to_compressed(_plain_rle(each), size) for each in segmentation])
    elif isinstance(segmentation, list):
        polygons = [_polygon(each) for each in _polygons(segmentation)]
        if not polygons:
            raise ValueError("the list of polygons is empty")
        _check_extent(polygons, size)
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    else:
        rle = to_compressed(_plain_rle(segmentation), size)
    counts = rle["counts"]
    return {"size": list(size), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def whole_number(value: Any) -> Any:
    """Returns a whole number that is written as a float or as text, such as 80.0 or "80", as int; else the value itself."""
    number = _number(value)
    return int(number) if number is not None and number == int(number) else value


def _number(value: Any) -> float | int | None:
    """Returns a finite number, also if it is written as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < 2**63 and math.isfinite(value) else None


def _parsed(segmentation: Any) -> Any:
    """Returns the content of a segmentation that is stored as the text of its JSON."""
    if isinstance(segmentation, str) and segmentation.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(segmentation)
        except (ValueError, RecursionError):
            return segmentation
    return segmentation


def _plain_rle(rle: Any) -> Any:
    """Returns the RLE with whole numbers as int, and counts that Python has shown as b'...' as bytes."""
    if not isinstance(rle, dict) or "counts" not in rle:
        return rle
    size, counts = rle.get("size"), rle["counts"]
    if isinstance(size, list):
        size = [whole_number(side) for side in size]
    if isinstance(counts, list):
        counts = [whole_number(run) for run in counts]
    elif isinstance(counts, str) and counts[:2] in ("b'", 'b"'):  # COCO's code has no quotes
        try:
            counts = ast.literal_eval(counts)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"RLE counts are {counts[:20]}..., which are not the bytes that they look like") from error
    return {**rle, "size": size, "counts": counts}


def _polygons(values: list[Any]) -> list[Any]:
    """Returns a list of polygons, also for one polygon without its outer list and for one that is a list of corners."""
    is_flat = bool(values) and not any(isinstance(value, (list, dict)) for value in values)
    is_corners = len(values) >= 3 and all(_is_corner(value) for value in values)
    return [values] if is_flat or is_corners else values


def _polygon(values: Any) -> list[float]:
    """Returns x, y, x, y, ... after checking for three corners or more, because pycocotools takes two for a box."""
    flat = values
    if isinstance(values, list) and values and all(_is_corner(value) for value in values):
        flat = [number for corner in values for number in (corner if isinstance(corner, list) else (corner["x"], corner["y"]))]
    numbers = [_number(value) for value in flat] if isinstance(flat, list) else []
    found = [float(number) for number in numbers if number is not None]
    if len(found) < len(numbers) or len(found) < 6 or len(found) % 2:
        raise ValueError(f"a polygon is a list of x, y, x, y, ... with three corners or more, not {str(values)[:60]}")
    return found


def _is_rle(value: Any) -> bool:
    return isinstance(value, dict) and not _is_corner(value)


def _is_corner(value: Any) -> bool:
    """Returns whether this is [x, y] or {"x": x, "y": y}."""
    if isinstance(value, dict):
        return {"x", "y"} <= value.keys()
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(each, (list, dict)) for each in value)


def _check_extent(polygons: list[list[float]], size: tuple[int, int]) -> None:
    """Raises ValueError for outlines longer than any mask has, and for corners in shares of the image's sides.

    pycocotools takes memory in proportion to an outline, and huge coordinates overflow its integers.
    """
    outline = 0.0
    for polygon in polygons:
        corners_N2 = np.array(polygon).reshape(-1, 2)
        low, high = corners_N2.min(axis=0), corners_N2.max(axis=0)
        outline += float(np.abs(np.diff(corners_N2, axis=0, append=corners_N2[:1])).max(axis=1).sum())
        # an upper bound of the largest coordinate, because a small polygon may be far away
        if outline > MAX_OUTLINE or max(-low.min(), high.max()) > MAX_OUTLINE:
            raise ValueError(
                f"the outline reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) and is {outline:g} pixels "
                f"long, in an image of {size[1]} x {size[0]} pixels"
            )
        if low.min() >= 0 and high.max() <= 1 and max(size) > 2:
            raise ValueError("all corners of the polygon are between 0 and 1: multiply them by the width and height")
