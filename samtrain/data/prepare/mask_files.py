"""Mask files on a disk: which belong to an image, and what is in them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from glob import escape
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from samtrain.data.decode import UNREADABLE
from samtrain.data.tar_index import IMAGE_EXTENSIONS

IMAGES = frozenset(f".{extension}" for extension in (*IMAGE_EXTENSIONS, "gif", "jp2", "ppm", "pgm"))
MASKS = IMAGES | {".npy"}


class Refused(ValueError):
    """What is left out: `reason` is one of few, to be counted; `detail` says what came."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MaskFinder:
    """Pairs images with their mask files: one for each image or, with `several`, one for each object.

    `masks` is a folder, from `source`: `masks/<image>.*` or, with `several`, `masks/<image>/*` and
    `masks/<image>_<k>.*`, where <image> is the image's path without its extension and, if need be, without its
    first folder. Or it is a glob with `{folder}` and `{stem}` of the image in it: `{folder}/{stem}_masks.*`,
    `{folder}/../masks/*.png`.
    """

    def __init__(self, source: Path, masks: str, *, several: bool) -> None:
        self.source, self.masks, self.several = _normal(source), masks, several
        self._is_glob = "{stem}" in masks or "{folder}" in masks
        if not self._is_glob and not (source / masks).is_dir():
            raise ValueError(
                f"data.masks is {masks!r}, no folder below {source}; give a folder or a glob with {{stem}} in it"
            )

    def images(self) -> list[tuple[str, Path, tuple[Path, ...]]]:
        """(name relative to the source, file, mask files) of each image that is not a mask itself, by name."""
        folder = None if self._is_glob else _normal(self.source / self.masks)
        known = {} if folder is None else self._by_image(folder)
        files = files_below(self.source, IMAGES)
        found = {path: self._globbed(path) if folder is None else self._known(path, known) for path in files}
        masks = {mask for several in found.values() for mask in several}
        if folder not in (None, _normal(self.source)):
            masks |= {path for path in files if folder in path.parents}
        return [(path.relative_to(self.source).as_posix(), path, found[path]) for path in files if path not in masks]

    def _by_image(self, folder: Path) -> dict[str, list[Path]]:
        """Mask files below the folder by the path of the image that they may belong to."""
        known = defaultdict(list)
        for path in files_below(folder, MASKS):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if not self.several:
                known[stem].append(path)
                continue
            known[os.path.dirname(stem)].append(path)
            if numbered := re.fullmatch(r"(.+)_\d+", stem):
                known[numbered[1]].append(path)
        return known

    def _known(self, image: Path, known: dict[str, list[Path]]) -> tuple[Path, ...]:
        stem = image.relative_to(self.source).with_suffix("").as_posix()
        files = known.get(stem) or known.get(stem.partition("/")[2] or stem) or []
        return tuple(path for path in files if path != image)

    def _globbed(self, image: Path) -> tuple[Path, ...]:
        folder = image.parent.relative_to(self.source).as_posix()
        found = self.source.glob(self.masks.format(stem=escape(image.stem), folder=escape(folder)))
        files = {_normal(path) for path in found if path.suffix.lower() in MASKS}
        return tuple(sorted(files - {image}, key=_natural))


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """All files with one of the suffixes at any depth but hidden ones, numbers in names in their natural order."""
    folder = _normal(folder)
    found = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple:
    """Sorts mask_2 before mask_10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.as_posix()))


def _normal(path: Path) -> Path:
    return Path(os.path.abspath(path))


def read_labels(path: Path) -> np.ndarray:
    """(H, W) integers of a label map or binary mask; raises Refused for what is no image of one channel of whole
    numbers.
    """
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except UNREADABLE as error:
        raise Refused("the mask file cannot be read", f"{path.name}: {error}") from error
    values = np.squeeze(values)
    if values.ndim == 3 and (values.shape[2] == 2 or (values[..., :1] == values[..., 1:3]).all()):
        values = values[..., 0]  # grey with alpha, or grey saved as colour
    if values.ndim != 2:
        raise Refused("the mask file has several channels", f"{path.name}: shape {values.shape}, want (H, W)")
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    if values.dtype.kind not in "bui":
        raise Refused("the mask file holds fractions", f"{path.name}: {values.dtype}, want whole numbers")
    return values


def split_labels(labels_HW: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(value, (H, W) bool mask) of each value above 0, ascending."""
    positive = np.maximum(labels_HW, 0)
    values, dense = np.unique(positive, return_inverse=True)
    dense = dense.reshape(labels_HW.shape) + 1  # numbers without gaps; find_objects leaves 0 out
    for number, (value, window) in enumerate(zip(values, ndimage.find_objects(dense), strict=True), start=1):
        if value > 0:
            mask = np.zeros(labels_HW.shape, bool)
            mask[window] = dense[window] == number
            yield int(value), mask
