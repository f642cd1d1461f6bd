"""The images that masks are made of: a folder, a glob, or tars; listed once, in an order that decides their ids."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.data.tar_index import list_members, split_name


@dataclass(frozen=True)
class InputImage:
    """An image as it lies in a file: the whole of it, or some bytes of a tar."""

    name: str
    path: Path
    offset: int
    size: int
    source_name: str  # the file's own name, in its folder or tar

    def read(self) -> bytes:
        """Its bytes; ValueError that names it where they are not all there.

        What may pass, as a server that does not answer, stays an OSError: such an image is not done with.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ValueError(f"{self.name}: it cannot be read ({error.strerror})") from error
        if len(data) < self.size:
            raise ValueError(f"{self.name}: {self.path} ended after {len(data)} of its {self.size} bytes")
        return data


def list_images(source: str | Sequence[str]) -> list[InputImage]:
    """The images below folders, of globs, and in tars, named by any of them or a list; of a folder in the order of names.

    A folder that holds tars and no image is a folder of tars. A tar that is cut gives what is whole in it. Raises
    ValueError for what has no image.
    """
    found: list[InputImage] = []
    for each in [source] if isinstance(source, str) else source:
        images = [image for path in _files(each) for image in _images(path)]
        if not images:
            kinds = ", ".join(sorted(IMAGES))
            raise ValueError(f"generate.input is {each!r}, where no image is ({kinds}, or tars of them)")
        found += images
    return found


def digest_of(images: Sequence[InputImage]) -> str:
    """The sha256 of names and sizes: the same input in the same order."""
    lines = "\n".join(f"{image.size} {image.source_name}" for image in images)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _files(source: str) -> list[Path]:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return files_below(path, IMAGES) or sorted(path.rglob("*.tar"))
    return [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))


def _images(path: Path) -> list[InputImage]:
    if path.suffix.lower() == ".tar":
        members, _ = list_members(str(path))
        wanted = [member for member in members if split_name(member[0])[1] not in ("", "json")]
        return [InputImage(f"{path}, {name}", path, offset, size, Path(name).name) for name, offset, size in wanted]
    if path.suffix.lower() in IMAGES and path.is_file():
        return [InputImage(str(path), path, 0, path.stat().st_size, path.name)]
    return []
