"""Readers for the forms in which people store masks: SA-1B JSONs, COCO or LVIS, label maps, binary masks per object, or none.

Each form is a class that lists the images and reads the masks of one image. It checks only what reading needs. If an image
cannot be read it raises `Refused`, with a short reason to count and a detail to show.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samtrain.data.coco_fields import id_text
from samtrain.data.prepare.label_maps import LabelRules, Note, objects_of_binary, objects_of_labels
from samtrain.data.prepare.mask_files import IMAGES, MASKS, MaskFinder, Refused, files_below
from samtrain.data.prepare.mask_reader import read_pages
from samtrain.data.prepare.names import pair_names
from samtrain.ops.rle import rle_area

log = logging.getLogger(__name__)

# the size, and LVIS' categories that the image has none of, and those of which not every object is annotated
KEPT_OF_IMAGES = ("width", "height", "neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class Entry:
    """One image: its name relative to the source, its file, and the files that hold its masks."""

    name: str
    image: Path
    evidence: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RawAnnotations:
    """The contents of one image: its size if known, and objects that each have a `segmentation`.

    sized_by: what says the size, for messages
    notes:    what looks as if it were meant otherwise; it is counted, and nothing is left out for it
    LVIS' lists of categories, which decide what counts in its AP, are in `image`.
    """

    image: dict[str, Any]
    objects: list[dict[str, Any]]
    sized_by: str = "its JSON"
    notes: tuple[Note, ...] = ()


class MaskSource(Protocol):
    """Reads images and masks that are stored in one form."""

    def entries(self) -> list[Entry]:
        """Returns every image, sorted by name."""

    def read(self, entry: Entry) -> RawAnnotations:
        """Returns the masks of one image; raises Refused."""


class Sa1bFolder:
    """Reads images at any depth with a JSON of the same stem beside each; if one of the two is missing, `read` refuses."""

    def __init__(self, source: Path) -> None:
        self.source = Path(os.path.abspath(source))

    def entries(self) -> list[Entry]:
        jsons = {path.with_suffix(""): path for path in files_below(self.source, {".json"})}
        listed = []
        for path in files_below(self.source, IMAGES):
            beside = jsons.get(path.with_suffix(""))
            listed.append(Entry(path.relative_to(self.source).as_posix(), path, (beside,) if beside else ()))
        alone = jsons.keys() - {entry.image.with_suffix("") for entry in listed}
        listed += [Entry(jsons[stem].relative_to(self.source).as_posix(), stem, (jsons[stem],)) for stem in alone]
        return sorted(listed, key=lambda entry: entry.name)

    def read(self, entry: Entry) -> RawAnnotations:
        if not entry.evidence:
            raise Refused("no JSON beside the image", f"expected {entry.image.with_suffix('.json').name}")
        try:
            content = json.loads(entry.evidence[0].read_bytes())
        except (ValueError, RecursionError) as error:
            raise Refused("the JSON cannot be parsed", str(error)) from error
        image = content.get("image", {}) if isinstance(content, dict) else None
        lists = [content.get("annotations"), content.get("evaluation_only") or []] if isinstance(content, dict) else [None]
        if not (isinstance(image, dict) and all(isinstance(o, list) and all(isinstance(e, dict) for e in o) for o in lists)):
            raise Refused(
                "the JSON is not in SA-1B's form", 'expected {"image": {}, "annotations": [{"segmentation": RLE}]}'
            )
        # if x.jpg and x.png are beside x.json, the JSON belongs to the one that it names
        named = entry.image.with_name(Path(str(image.get("file_name"))).name or entry.image.name)
        if named != entry.image and named.is_file():
            raise Refused("the JSON beside the image names another image", named.name)
        return RawAnnotations(image, [each for objects in lists for each in objects or ()])


class Unlabelled:
    """Reads images at any depth that have no masks yet, because people will annotate them."""

    def __init__(self, source: Path) -> None:
        self.source = Path(os.path.abspath(source))

    def entries(self) -> list[Entry]:
        files = files_below(self.source, IMAGES)
        return sorted((Entry(path.relative_to(self.source).as_posix(), path) for path in files), key=lambda entry: entry.name)

    def read(self, entry: Entry) -> RawAnnotations:
        return RawAnnotations({}, [])


class CocoInstances:
    """Reads COCO's or LVIS's instance JSON, with polygons or RLE, and the folder of its images.

    An image is the file below the folder that `pair_names` finds for its file_name, never one outside of the folder. With
    `categories` only the objects of the categories of these names are read.
    """

    def __init__(self, source: Path, annotations: Path, categories: Sequence[str] | None = None) -> None:
        self.source, self.annotations = source, annotations
        content = self._content()
        by_name = {self._name(image): image for image in content["images"]}
        if len(by_name) < len(content["images"]):
            raise ValueError(f"data.annotations: {annotations} has two images of one file_name: merge them and their masks")
        self._pairs = pair_names(by_name, self._files(by_name))
        self._images = {self._pairs.found.get(name, name): image for name, image in by_name.items()}
        self._objects = self._by_image(content, categories)

    def _content(self) -> dict[str, Any]:
        """Returns the JSON, with its two lists checked; raises ValueError."""
        try:
            content = json.loads(self.annotations.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"data.annotations: {self.annotations} cannot be parsed as JSON ({error}): give the instance JSON"
            ) from error
        lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
        if not all(isinstance(each, list) and all(isinstance(e, dict) for e in each) for each in lists):
            raise ValueError(
                f"data.annotations: {self.annotations} is not a COCO JSON, which has the lists 'images' and 'annotations': "
                "for SA-1B's JSONs beside the images set data.annotations=null"
            )
        return content

    def _by_image(self, content: dict[str, Any], categories: Sequence[str] | None) -> dict[Any, list[dict[str, Any]]]:
        """Returns the annotations by the id of their image, as the image's own entry writes it, with their category."""
        images = IdIndex(self._image_ids(content["images"]))
        objects: dict[Any, list[dict[str, Any]]] = {own: [] for own in images}
        known = self._categories(content)
        category_ids = IdIndex(known)
        chosen = None if categories is None else self._chosen(categories, known)
        lost = []
        for each in content["annotations"]:
            category = category_ids.find(each.get("category_id"))
            if (key := images.find(each.get("image_id"))) is None:
                lost.append(each.get("image_id"))
            elif chosen is None or category in chosen:
                objects[key].append(each if category is None else {**each, "category_id": category, **known[category]})
        if lost:
            shown = f"for example image_id {lost[0]!r}, while images have ids such as {next(iter(images), None)!r}"
            if len(lost) == len(content["annotations"]):
                raise ValueError(
                    f"data.annotations: no annotation in {self.annotations} belongs to an image that it lists ({shown})"
                )
            log.warning("%s has %d annotations of images that it does not list (%s).", self.annotations, len(lost), shown)
        return objects

    def _image_ids(self, images: list[dict[str, Any]]) -> list[Any]:
        """Returns the ids of the images; raises ValueError unless each has its own."""
        seen = set()
        for image in images:
            own = image.get("id")
            if not isinstance(own, (int, float, str)):
                file = image.get("file_name")
                raise ValueError(f"data.annotations: image {file} in {self.annotations} has the id {own!r}: give it one")
            if own in seen:
                raise ValueError(f"data.annotations: {self.annotations} has two images with the id {own!r}: give each its own")
            seen.add(own)
        return [image["id"] for image in images]

    @staticmethod
    def _categories(content: dict[str, Any]) -> dict[Any, dict[str, Any]]:
        """Returns what an object gets from its category, by the category's id: its name, and LVIS' frequency."""
        named = {"name": "category_name", "frequency": "frequency"}
        listed = [each for each in content.get("categories") or [] if isinstance(each, dict)]
        listed = [each for each in listed if isinstance(each.get("id"), (int, float, str))]
        return {each["id"]: {ours: each[key] for key, ours in named.items() if key in each} for each in listed}

    def _chosen(self, names: Sequence[str], known: dict[Any, dict[str, Any]]) -> set[Any]:
        """Returns the ids of the categories with these names; raises ValueError for a name that the JSON does not have."""
        ids: dict[Any, set[Any]] = defaultdict(set)
        for number, fields in known.items():
            ids[fields.get("category_name")].add(number)
        if unknown := [name for name in names if name not in ids]:
            raise ValueError(
                f"data.categories holds {', '.join(unknown)}, which {self.annotations} does not have: choose from "
                f"{', '.join(map(str, ids)) or 'nothing, because it lists no categories'}"
            )
        return {number for name in names for number in ids[name]}

    def entries(self) -> list[Entry]:
        known = set(self._pairs.found.values())
        # a name without a file stands for the folder, because it may lead out of it
        files = {name: self.source / name if name in known else self.source for name in self._images}
        return [Entry(name, files[name], (self.annotations,)) for name in sorted(self._images)]

    def read(self, entry: Entry) -> RawAnnotations:
        if entry.image == self.source:
            raise Refused("no file for the image's file_name", self._pairs.why_not(entry.name))
        image = self._images[entry.name]
        kept = {key: image[key] for key in KEPT_OF_IMAGES if key in image}
        return RawAnnotations({"image_id": image["id"], **kept}, self._objects[image["id"]])

    def _files(self, names: Iterable[str]) -> set[str]:
        """Returns the images below the folder, and files of other extensions that the JSON names exactly."""
        files = {path.relative_to(os.path.abspath(self.source)).as_posix() for path in files_below(self.source, IMAGES)}
        return files | {name for name in names if name not in files and self._is_inside(name)}

    def _is_inside(self, name: str) -> bool:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name:
            return False
        try:
            return (self.source / path).is_file()
        except (OSError, ValueError):  # too long, or with a zero byte
            return False

    def _name(self, image: dict[str, Any]) -> str:
        # LVIS has no file_name; its URL ends with COCO's split and the file
        name = image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:])
        if not name:
            raise ValueError(f"data.annotations: image {image.get('id')} in {self.annotations} needs a file_name or coco_url")
        return str(name)


class IdIndex:
    """Finds ids also if only one of two lists writes them as text."""

    def __init__(self, ids: Iterable[Any]) -> None:
        self._known = {own: own for own in ids}
        # ids as text, unless two ids are the same text
        texts = Counter(map(id_text, self._known))
        self._by_text = {text: own for own in self._known if texts[text := id_text(own)] == 1}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._known)

    def find(self, given: Any) -> Any:
        """Returns the id as the list writes it, or None if it has no such id."""
        if not isinstance(given, (int, float, str)):
            return None
        return self._known.get(given, self._by_text.get(id_text(given)))


class LabelMaps:
    """Reads one label map per image (PNG, TIFF or npy), of the same size, in which each value but the background is one object.

    Each page of a TIFF is a map of further objects.
    """

    def __init__(self, source: Path, masks: str, rules: LabelRules | None = None) -> None:
        self.finder, self.rules = MaskFinder(source, masks, several=False), rules or LabelRules()

    def entries(self) -> list[Entry]:
        return [Entry(*found) for found in self.finder.images()]

    def read(self, entry: Entry) -> RawAnnotations:
        self.finder.check(entry.image)
        if len(entry.evidence) != 1:
            names = ", ".join(path.name for path in entry.evidence) or f"none with {', '.join(sorted(MASKS))}"
            raise Refused("not exactly one label map", f"found {names}; data.masks is {self.finder.masks!r}")
        objects, notes, sizes = [], [], set()
        for labels in read_pages(entry.evidence[0], labels=True):
            sizes.add(labels.shape)
            of_page, noticed = objects_of_labels(labels, self.rules, entry.evidence[0].name)
            objects += of_page
            notes += noticed
        return _in_one_size(sizes, objects, notes, entry.evidence[0].name)


class BinaryMasks:
    """Reads one mask per object, which is bright inside the object: a file or a page of a TIFF.

    An image without mask files has no objects if `empty_images` is true; otherwise it is refused.
    """

    def __init__(self, source: Path, masks: str, rules: LabelRules | None = None, *, empty_images: bool = False) -> None:
        self.finder, self.rules = MaskFinder(source, masks, several=True), rules or LabelRules()
        self.empty_images = empty_images

    def entries(self) -> list[Entry]:
        return [Entry(*found) for found in self.finder.images()]

    def read(self, entry: Entry) -> RawAnnotations:
        self.finder.check(entry.image)
        if not entry.evidence and self.empty_images:
            return RawAnnotations({}, [])
        if not entry.evidence:
            raise Refused("no mask files", f"data.masks is {self.finder.masks!r}, looked for {', '.join(sorted(MASKS))}")
        pages = [(path.name, page) for path in entry.evidence for page in read_pages(path, labels=False)]
        objects, notes = [], []
        for name, values in pages:
            of_page, noticed = objects_of_binary(values, self.rules, name, alone=len(pages) == 1)
            objects += [{**each, "file": name} for each in of_page]
            notes += noticed
        if self.empty_images and not any(rle_area(each["segmentation"]) for each in objects):
            objects = []  # a black mask says that the image has no objects
        return _in_one_size({values.shape for _, values in pages}, objects, notes, entry.evidence[0].name)


def _in_one_size(
    sizes: set[tuple[int, int]], objects: list[dict[str, Any]], notes: list[Note], name: str
) -> RawAnnotations:
    """Returns the annotations of an image from masks of these sizes (H, W); raises Refused unless all are equal."""
    if len(sizes) != 1:
        raise Refused("mask files of different sizes", f"{sorted(sizes)} (H, W)")
    height, width = sizes.pop()
    return RawAnnotations({"width": width, "height": height}, objects, f"its mask file {name}", tuple(notes))
