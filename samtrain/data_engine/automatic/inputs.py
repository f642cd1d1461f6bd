"""Lists the images that get masks, from folders, globs and tars, in the order that decides their ids."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.data.prepare.unread import unread_files
from samtrain.data.tar_index import list_members, split_name

log = logging.getLogger(__name__)

MAX_SAMPLED = 4096  # images of which the digest covers a block: 256 MiB, which takes seconds, if there are millions of them
BLOCK = 1 << 16  # bytes


@dataclass(frozen=True)
class InputImage:
    """Where an image is stored: a whole file, or some bytes of a tar."""

    name: str
    path: Path
    offset: int
    size: int
    source_name: str  # the path below the input, or in its tar

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

    def sample(self) -> bytes:
        """Returns a block of bytes from the middle of the image; nothing if it cannot be read."""
        size = min(self.size, BLOCK)
        with suppress(OSError), open(self.path, "rb") as file:
            file.seek(self.offset + (self.size - size) // 2)
            return file.read(size)
        return b""


def list_images(source: str | Sequence[str]) -> list[InputImage]:
    """Returns the images of a folder at any depth, of a glob, of a tar, or of a list of these; folders are sorted by name.

    In a folder, the images come first and then those of its tars. A truncated tar gives the images that are complete. Files
    of a folder that are neither are counted in the log. Raises ValueError for an entry without images.
    """
    entries = [source] if isinstance(source, str) else list(source)
    base = Path(os.path.commonpath([_base(each) for each in entries])) if entries else Path()
    found: list[InputImage] = []
    for each in entries:
        files = _files(each)
        images = [image for path in files for image in _images(path, base)]
        if not images:
            kinds = ", ".join(sorted(IMAGES))
            raise ValueError(f"generate.input is {each!r}, and no image was found there: give {kinds} files, or tars")
        found += images
        folder = Path(os.path.expanduser(each))
        if folder.is_dir() and (unread := unread_files(folder, files, {".json"})):
            log.warning("Files below %s that are not read, because they are neither images nor tars: %s.", folder, unread)
    return _with_different_names(found, base)


def _base(source: str) -> str:
    """Returns the folder that the names of a folder's, glob's or file's images are relative to."""
    path = os.path.abspath(os.path.expanduser(source))
    while not os.path.isdir(path) and (glob.has_magic(path) or os.path.isfile(path)):
        path = os.path.dirname(path)
    return path


def _with_different_names(images: list[InputImage], base: Path) -> list[InputImage]:
    """Puts the tar's name before the names of its images if two tars hold the same names."""
    if len({image.source_name for image in images}) == len(images):
        return images
    inside = {image.path: f"{_below(image.path, base)}/" for image in images if image.path.suffix.lower() == ".tar"}
    return [replace(image, source_name=inside.get(image.path, "") + image.source_name) for image in images]


def digest_of(images: Sequence[InputImage]) -> str:
    """Returns the SHA-256 of names, sizes and samples of the content, which identifies the same images in the same order."""
    lines = "\n".join(f"{image.size} {image.source_name}" for image in images)
    state = hashlib.sha256(lines.encode(errors="surrogateescape"))
    for image in images[:: len(images) // MAX_SAMPLED + 1]:
        state.update(image.sample())
    return state.hexdigest()


def _files(source: str) -> list[Path]:
    """Returns the image files and tars of a folder or glob; a glob may match folders, too."""
    path = Path(os.path.expanduser(source))
    matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    found = [_files_in(match) if match.is_dir() else [match] for match in matches]
    return list(dict.fromkeys(file for files in found for file in files))


def _files_in(folder: Path) -> list[Path]:
    return files_below(folder, IMAGES) + files_below(folder, {".tar"})


def _images(path: Path, base: Path) -> list[InputImage]:
    """Returns the images of a tar, or the image file itself; empty for other files."""
    if path.suffix.lower() == ".tar":
        members, problems = list_members(str(path))
        for problem in problems:
            log.warning("%s: %s. Its complete images are used.", path, problem)
        wanted = [member for member in members if split_name(member[0])[1] not in ("", "json")]
        return [
            InputImage(f"{path}, {name}", path, offset, size, os.path.normpath(name)) for name, offset, size in wanted
        ]
    if path.suffix.lower() in IMAGES and path.is_file():
        return [InputImage(str(path), path, 0, path.stat().st_size, _below(path, base))]
    return []


def _below(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()
