"""Reads YOLO's polygons: a text file per image, one line per object, in shares of the image's sides."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from samtrain.data.prepare.formats import Entry, RawAnnotations
from samtrain.data.prepare.mask_files import IMAGES, Refused, files_below
from samtrain.data.prepare.record_checks import shown_size

NUM_OF_BOX = 5  # numbers of a line that holds a class and a box


class YoloPolygons:
    """Reads images and their labels: `labels/a/b.txt` for `images/a/b.jpg`, or `b.txt` beside it.

    A line is the number of the class and then x, y, x, y, ... in shares of the image's width and height. Names of classes are
    read from a YAML in the folder that has `names`. An image without a label file, or with an empty one, has no objects.
    """

    def __init__(self, source: Path, categories: list[str] | None = None) -> None:
        self.source, self.names = Path(os.path.abspath(source)), _class_names(source)
        if categories and (unknown := sorted(set(categories) - set(self.names.values()))):
            raise ValueError(
                f"data.categories holds {', '.join(unknown)}, which no YAML in {source} names: choose from "
                f"{', '.join(self.names.values()) or 'nothing'}"
            )
        self.categories = categories

    def entries(self) -> list[Entry]:
        texts = set(files_below(self.source, {".txt"}))
        listed = []
        for path in files_below(self.source, IMAGES):
            name = path.relative_to(self.source)
            found = [each for each in self._candidates(name) if each in texts]
            listed.append(Entry(name.as_posix(), path, tuple(found[:1])))
        return listed

    def _candidates(self, name: Path) -> list[Path]:
        """Returns where the labels of an image may be: the last folder `images` becomes `labels`, or beside the image."""
        parts = list(name.with_suffix(".txt").parts)
        beside = self.source.joinpath(*parts)
        if "images" in parts[:-1]:
            place = len(parts) - 2 - parts[:-1][::-1].index("images")
            return [self.source.joinpath(*parts[:place], "labels", *parts[place + 1 :]), beside]
        # data.root may be the folder of images itself
        if self.source.name == "images":
            return [self.source.parent.joinpath("labels", *parts), beside]
        return [beside]

    def read(self, entry: Entry) -> RawAnnotations:
        width, height = shown_size(entry.image)
        lines = entry.evidence[0].read_text(encoding="utf-8", errors="replace").splitlines() if entry.evidence else []
        objects = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                found = self._object(line, (width, height), f"{entry.evidence[0].name} line {number}")
                if self.categories is None or found.get("category_name") in self.categories:
                    objects.append(found)
        return RawAnnotations({"width": width, "height": height}, objects)

    def _object(self, line: str, size: tuple[int, int], where: str) -> dict[str, Any]:
        try:
            category, *shares = (float(value) for value in line.split())
        except ValueError as error:
            raise Refused("a line of labels is no list of numbers", f"{where}: {line[:40]}") from error
        if len(shares) + 1 == NUM_OF_BOX:
            raise Refused("the labels are boxes, not polygons", f"{where}: expected a class and x, y, x, y, ... of an outline")
        if len(shares) < 6 or len(shares) % 2 or not category.is_integer():
            raise Refused("a line of labels is no polygon", f"{where}: {len(shares) + 1} numbers")
        if min(shares) < 0 or max(shares) > 1:
            raise Refused("corners are not shares of the image's sides", f"{where}: {min(shares):g} to {max(shares):g}")
        corners = [share * size[i % 2] for i, share in enumerate(shares)]
        named = {"category_name": self.names[int(category)]} if int(category) in self.names else {}
        return {"segmentation": [corners], "category_id": int(category), **named}


def _class_names(folder: Path) -> dict[int, str]:
    """Returns the names of the classes by their number, from a YAML of the data set; {} without one."""
    import yaml

    for root in (folder, folder.parent) if folder.name == "images" else (folder,):
        for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, list):
                return {number: str(name) for number, name in enumerate(names)}
            if isinstance(names, dict):
                return {int(number): str(name) for number, name in names.items() if re.fullmatch(r"\d+", str(number))}
    return {}
