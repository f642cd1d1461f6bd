"""Finds the mask files of an image."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection
from glob import escape
from pathlib import Path

from samtrain.data.tar_index import IMAGE_EXTENSIONS

IMAGES = frozenset(f".{extension}" for extension in (*IMAGE_EXTENSIONS, "gif", "jp2", "ppm", "pgm"))
# what people have, too, and nothing here reads
OTHER_IMAGES = frozenset((".heic", ".heif", ".avif", ".dng", ".nef", ".cr2", ".svs", ".ndpi", ".czi", ".nd2", ".lif", ".dcm"))
MASKS = IMAGES | {".npy"}


class Refused(ValueError):
    """Raised for an image or object that is left out: `reason` is one of a few and counted, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MaskFinder:
    """Pairs images with their mask files: one file per image, or one per object if `several` is true.

    `masks` is a folder below `source` with the files `masks/<image>.*` or, if `several`, `masks/<image>/*` and
    `masks/<image>_<k>.*`. There <image> is the image's path without its extension, and also without its first folder if that
    is needed to find files. Or `masks` is a glob with the image's `{folder}` and `{stem}`, such as `{folder}/{stem}_masks.*`
    or `{folder}/../masks/*.png`.
    """

    def __init__(self, source: Path, masks: str, *, several: bool) -> None:
        self.source, self.masks, self.several = _normal(source), masks, several
        self._is_glob = "{stem}" in masks or "{folder}" in masks
        if not self._is_glob and not (source / masks).is_dir():
            raise ValueError(
                f"data.masks is {masks!r}, which is not a folder below {source}: give one, or a glob with {{stem}} in it"
            )

    def images(self) -> list[tuple[str, Path, tuple[Path, ...]]]:
        """Returns (name relative to the source, file, mask files) of each image that is not a mask itself, sorted by name."""
        folder = None if self._is_glob else _normal(self.source / self.masks)
        known = {} if folder is None else self._by_image(folder)
        files = files_below(self.source, IMAGES)
        found = {path: self._globbed(path) if folder is None else self._known(path, known) for path in files}
        masks = {mask for several in found.values() for mask in several}
        if folder not in (None, _normal(self.source)):
            masks |= {path for path in files if folder in path.parents}
        return [(path.relative_to(self.source).as_posix(), path, found[path]) for path in files if path not in masks]

    def _by_image(self, folder: Path) -> dict[str, list[Path]]:
        """Returns the mask files below the folder, by the path of the image that they may belong to."""
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
    """Returns all files with one of the suffixes at any depth, without hidden ones, sorted with numbers in natural order."""
    folder = _normal(folder)
    found = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # symbolic links may form a cycle
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
    """Returns a sort key that puts mask_2 before mask_10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.as_posix()))


def _normal(path: Path) -> Path:
    return Path(os.path.abspath(path))
