"""Reads Label Studio's full JSON export: brush masks, polygons and ellipses, in shares of the image's sides."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from samtrain.data.prepare.formats import CocoInstances
from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.ops.rle import RLE, encode_mask
from samtrain.terminal import counted

log = logging.getLogger(__name__)

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
ELLIPSE_CORNERS = 90
WITH_MASK = ("brushlabels", "polygonlabels", "ellipselabels", "brush", "polygon", "ellipse")


class LabelStudioTasks(CocoInstances):
    """Reads the objects of an export as COCO's; of several annotations of a task the first that was not cancelled counts."""

    def _content(self) -> dict[str, Any]:
        tasks, files = self._tasks(), {path.name for path in files_below(self.source, IMAGES)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        categories: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for number, task in enumerate(tasks):
            given = [each for each in task["annotations"] if isinstance(each, dict) and not each.get("was_cancelled")]
            counts["further annotations of a task"] += max(len(given) - 1, 0)
            results = [each for each in (given[0].get("result", []) if given else []) if isinstance(each, dict)]
            image = {"id": number, "file_name": _file_name(task, files)}
            sized = next((each for each in results if "original_width" in each), {})
            if sized:
                image |= {"width": sized["original_width"], "height": sized["original_height"]}
            images.append(image)
            for each in results:
                if each.get("type") not in WITH_MASK:
                    counts[str(each.get("type"))] += 1
                    continue
                name = _label(each)
                category = categories.setdefault(name, len(categories) + 1)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "segmentation": self._segmentation(each),
                    }
                )
        if left_out := {name: count for name, count in counts.items() if count}:
            log.warning(
                "%s has more than outlines of objects, and this is left out: %s.", self.annotations,
                ", ".join(f"{name} ({count})" for name, count in left_out.items()),
            )  # fmt: skip
        log.info("%s has %s.", self.annotations, counted(len(annotations), "object"))
        listed = [{"id": number, "name": name} for name, number in categories.items()]
        return {"images": images, "annotations": annotations, "categories": listed}

    def _tasks(self) -> list[dict[str, Any]]:
        """Returns the tasks of the export; raises ValueError for other files."""
        try:
            content = json.loads(self.annotations.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data.annotations: {self.annotations} cannot be parsed as JSON ({error})") from error
        if not is_label_studio(content):
            raise ValueError(
                f"data.annotations: {self.annotations} is not Label Studio's full export, a list of tasks with 'data' and "
                "'annotations': export the project as JSON, not as JSON-MIN"
            )
        return content

    def _segmentation(self, each: dict[str, Any]) -> Any:
        """Returns polygons or an RLE."""
        value, width, height = each.get("value", {}), each.get("original_width"), each.get("original_height")
        if each.get("image_rotation"):
            raise ValueError(f"data.annotations: {self.annotations} has a turned image: turn it back in Label Studio first")
        if not isinstance(width, int) or not isinstance(height, int):
            raise ValueError(f"data.annotations: a result in {self.annotations} has no original_width and original_height")
        if "rle" in value:
            return decode_brush(value["rle"], (height, width))
        if "points" in value:
            return [[coordinate for x, y in value["points"] for coordinate in (x * width / 100, y * height / 100)]]
        return [_ellipse(value, width, height)]


def is_label_studio(content: Any) -> bool:
    """Returns whether the content of a JSON is a list of Label Studio's tasks."""
    return isinstance(content, list) and all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list)
        for task in content
    )


def decode_brush(data: list[int], size: tuple[int, int]) -> RLE:
    """Returns the mask of a brush as COCO's RLE.

    The bytes are a stream of bits: the number of values (32 bits), the bits of a value less one (5), four lengths of counts
    less one (4 each), and then runs. A run has one bit, 1 for a repeated value, two bits that choose the length of its count,
    the count less one, and one value or as many as it counts. The values are R, G, B and A of each pixel, row by row (the
    format of @thi.ng/rle-pack). Raises ValueError for a stream of another size than (H, W).
    """
    bits = np.unpackbits(np.array(data, np.uint8))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise ValueError("data.annotations: a brush mask ends too early: export the project again")
        found = int("".join(map(str, bits[at : at + count])), 2)
        at += count
        return found

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"data.annotations: a brush mask has {total} values, in an image of {size[1]} x {size[0]} pixels")
    values = np.empty(total, np.uint8)
    done = 0
    while done < total:
        repeated, length = read(1), lengths[read(2)]
        end = done + 1 + read(length)
        if repeated:
            values[done:end] = read(word)
        else:
            values[done:end] = [read(word) for _ in range(end - done)]
        done = end
    return encode_mask(values.reshape(*size, 4)[..., 3] > 0)


def _ellipse(value: dict[str, Any], width: int, height: int) -> list[float]:
    turn = math.radians(value.get("rotation", 0))
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_CORNERS, endpoint=False)
    x = value["radiusX"] / 100 * width * np.cos(angles)
    y = value["radiusY"] / 100 * height * np.sin(angles)
    cx, cy = value["x"] / 100 * width, value["y"] / 100 * height
    turned = np.stack([cx + x * math.cos(turn) - y * math.sin(turn), cy + x * math.sin(turn) + y * math.cos(turn)], axis=1)
    return turned.flatten().tolist()


def _label(each: dict[str, Any]) -> str:
    names = each.get("value", {}).get(each["type"]) or each.get("value", {}).get("labels") or ["object"]
    return str(names[0])


def _file_name(task: dict[str, Any], files: set[str]) -> str:
    """Returns the name of a task's image, without the letters of an upload unless a file has them, too."""
    values = [value for value in task["data"].values() if isinstance(value, str)]
    address = next((value for value in values if _path(value).suffix.lower() in IMAGES), values[0] if values else "")
    path = _path(address)
    if path.name not in files and UPLOADED.match(path.name) and (short := UPLOADED.sub("", path.name)) in files:
        return short
    return path.as_posix()


def _path(address: str) -> PurePosixPath:
    """Returns the path in an address; local files are named by ?d=."""
    parts = urlsplit(address)
    given = parse_qs(parts.query).get("d")
    return PurePosixPath(unquote(given[0] if given else parts.path).lstrip("/"))
