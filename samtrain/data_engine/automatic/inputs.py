"""Lists the images that get masks, from folders, globs and tars, in the order that decides their ids."""

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
    """Where an image is stored: a whole file, or some bytes of a tar."""

    name: str
    path: Path
    offset: int
    size: int
    source_name: str  # the file's own name, in its folder or tar

    def read(self) -> bytes:
        """Returns the image's bytes; raises ValueError that names the image if they are missing or incomplete.

        A fault that may be temporary, such as a server that does not answer, is raised as OSError instead, so that the image
        is not recorded as unreadable.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ValueError(f"{self.name} cannot be read ({error.strerror})") from error
        if len(data) < self.size:
            raise ValueError(f"{self.name} is incomplete: {self.path} ends after {len(data)} of its {self.size} bytes")
        return data


def list_images(source: str | Sequence[str]) -> list[InputImage]:
    """Returns the images of a folder at any depth, of a glob, of a tar, or of a list of these; folders are sorted by name.

    In a folder with tars but no images, the images of the tars are returned. A truncated tar gives the images that are
    complete. Raises ValueError for an entry without images.
    """
    found: list[InputImage] = []
    for each in [source] if isinstance(source, str) else source:
        images = [image for path in _files(each) for image in _images(path)]
        if not images:
            kinds = ", ".join(sorted(IMAGES))
            raise ValueError(f"generate.input is {each!r}, and no image was found there: give {kinds} files, or tars")
        found += images
    return found


def digest_of(images: Sequence[InputImage]) -> str:
    """Returns the SHA-256 of names and sizes, which identifies the same images in the same order."""
    lines = "\n".join(f"{image.size} {image.source_name}" for image in images)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _files(source: str) -> list[Path]:
    """Returns the image files or tars of a folder or glob."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return files_below(path, IMAGES) or sorted(path.rglob("*.tar"))
    return [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))


def _images(path: Path) -> list[InputImage]:
    """Returns the images of a tar, or the image file itself; empty for other files."""
    if path.suffix.lower() == ".tar":
        members, _ = list_members(str(path))
        wanted = [member for member in members if split_name(member[0])[1] not in ("", "json")]
        return [InputImage(f"{path}, {name}", path, offset, size, Path(name).name) for name, offset, size in wanted]
    if path.suffix.lower() in IMAGES and path.is_file():
        return [InputImage(str(path), path, 0, path.stat().st_size, path.name)]
    return []
