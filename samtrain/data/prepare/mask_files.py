"""Finds the mask files of an image."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection
from glob import escape
from pathlib import Path

from braceexpand import braceexpand

from samtrain.data.tar_index import IMAGE_EXTENSIONS
from samtrain.files import printable

IMAGES = frozenset(f".{extension}" for extension in (*IMAGE_EXTENSIONS, "gif", "jp2", "ppm", "pgm"))
MASKS = IMAGES | {".npy"}
SHOWN = 3  # names in a message
log = logging.getLogger(__name__)


class Refused(ValueError):
    """Raised for an image or object that is left out: `reason` is one of a few and counted, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MaskFinder:
    """Pairs images with their mask files: one file per image, or one per object if `several` is true.

    `masks` is a folder below `source` with the files `masks/<image>.*` and, if `several`, `masks/<image>/*` and
    `masks/<image>_<k>.*`. There <image> is the image's path without its extension, and also without its first folder if that
    is needed to find files. Or `masks` is a glob with the image's `{folder}` and `{stem}`, such as `{folder}/{stem}_masks.*`
    or `{folder}/../masks/*.png`. A mask file that fits several images is given to none of them, and `check` says so.
    """

    def __init__(self, source: Path, masks: str, *, several: bool) -> None:
        self.source, self.several = _normal(source), several
        self.masks = os.path.relpath(masks, self.source) if os.path.isabs(masks) else masks
        self._shared: dict[Path, str] = {}  # what to say about an image with a mask that fits others too
        self._is_glob = "{stem}" in masks or "{folder}" in masks
        if unknown := set(re.findall(r"\{(\w*)\}", masks)) - {"stem", "folder"}:
            raise ValueError(f"data.masks is {masks!r}, but {{{min(unknown)}}} stands for nothing: use {{stem}}, {{folder}}")
        if not self._is_glob and not (source / masks).is_dir():
            raise ValueError(
                f"data.masks is {masks!r}, which is not a folder below {source}: give one, or a glob with {{stem}} in it"
            )

    def images(self) -> list[tuple[str, Path, tuple[Path, ...]]]:
        """Returns (name relative to the source, file, mask files) of each image that is not a mask itself, sorted by name."""
        folder = None if self._is_glob else _normal(self.source / self.masks)
        known = {} if folder is None else self._by_image(folder)
        files = files_below(self.source, IMAGES)
        if folder not in (None, self.source):
            files = [path for path in files if folder not in path.parents]
        found = {path: self._globbed(path) for path in files} if folder is None else self._known(files, known)
        masks = {mask for several in found.values() for mask in several}
        found = self._without_shared({path: found[path] for path in files if path not in masks})
        self._log_unused({path for several in known.values() for path in several} - masks - set(files))
        return [(self._name(path), path, own) for path, own in found.items()]

    def check(self, image: Path) -> None:
        """Raises Refused if a mask file of this image fits other images, too."""
        if image in self._shared:
            raise Refused("a mask file that fits several images", self._shared[image])

    def _without_shared(self, found: dict[Path, tuple[Path, ...]]) -> dict[Path, tuple[Path, ...]]:
        """Takes the mask files that fit several images from all of them."""
        users = defaultdict(list)
        for image, own in found.items():
            for mask in own:
                users[mask].append(image)
        for mask, images in users.items():
            for image in images if len(images) > 1 else []:
                others = ", ".join(self._name(other) for other in images[: SHOWN + 1] if other != image)
                self._shared[image] = f"{mask.name} is also that of {others}"
        return {image: () if image in self._shared else own for image, own in found.items()}

    def _log_unused(self, masks: set[Path]) -> None:
        if masks:
            example = min(masks, key=_natural)
            log.warning("%d mask files belong to no image (data.masks), for example %s.", len(masks), printable(str(example)))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.source).as_posix()

    def _by_image(self, folder: Path) -> dict[str, list[Path]]:
        """Returns the mask files below the folder, by the path of the image that they may belong to."""
        known = defaultdict(list)
        for path in files_below(folder, MASKS):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            known[stem].append(path)
            if not self.several:
                continue
            known[os.path.dirname(stem)].append(path)
            if numbered := re.fullmatch(r"(.+)_\d+", stem):
                known[numbered[1]].append(path)
        return known

    def _known(self, images: list[Path], known: dict[str, list[Path]]) -> dict[Path, tuple[Path, ...]]:
        """Returns the mask files of each image, by its whole name or else without its first folder."""
        names = {image: image.relative_to(self.source).with_suffix("").as_posix() for image in images}
        whole = {name for name in names.values() if name in known}
        found = {}
        for image, name in names.items():
            shorter = name.partition("/")[2]
            used = name if name in whole else shorter if shorter not in whole else ""
            found[image] = tuple(path for path in known.get(used, []) if path != image) if used else ()
        return found

    def _globbed(self, image: Path) -> tuple[Path, ...]:
        folder = image.parent.relative_to(self.source).as_posix()
        found = [path for pattern in _globs(self.masks, image.stem, folder) for path in self.source.glob(pattern)]
        files = {_normal(path) for path in found if path.suffix.lower() in MASKS}
        return tuple(sorted(files - {image}, key=_natural))


def _globs(masks: str, stem: str, folder: str) -> list[str]:
    """Returns the globs that `data.masks` stands for; braces with a comma, as in `{stem}_{a,b}.png`, are alternatives."""
    alternatives = braceexpand(masks.replace("{stem}", "\0").replace("{folder}", "\1"))
    return [each.replace("\0", escape(stem)).replace("\1", escape(folder)) for each in alternatives]


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
