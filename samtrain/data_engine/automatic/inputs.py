"""The pictures that masks are made of: a folder, a glob, or tars; listed once, in an order that decides their ids."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samtrain.data.prepare.mask_files import PICTURES, files_below
from samtrain.data.tar_index import list_members, split_name


@dataclass(frozen=True)
class InputPicture:
    """A picture as it lies in a file: the whole of it, or some bytes of a tar."""

    name: str
    path: Path
    offset: int
    size: int
    source_name: str  # the file's own name, in its folder or tar

    def read(self) -> bytes:
        """Its bytes; ValueError that names it where they are not all there.

        What may pass, as a server that does not answer, stays an OSError: such a picture is not done with.
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


def list_pictures(source: str | Sequence[str]) -> list[InputPicture]:
    """The pictures below folders, of globs, and in tars, named by any of them or a list; of a folder in the order of names.

    A folder that holds tars and no picture is a folder of tars. A tar that is cut gives what is whole in it. Raises
    ValueError for what has no picture.
    """
    found: list[InputPicture] = []
    for each in [source] if isinstance(source, str) else source:
        pictures = [picture for path in _files(each) for picture in _pictures(path)]
        if not pictures:
            kinds = ", ".join(sorted(PICTURES))
            raise ValueError(f"generator.input is {each!r}, where no picture is ({kinds}, or tars of them)")
        found += pictures
    return found


def digest_of(pictures: Sequence[InputPicture]) -> str:
    """The sha256 of names and sizes: the same input in the same order."""
    lines = "\n".join(f"{picture.size} {picture.source_name}" for picture in pictures)
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _files(source: str) -> list[Path]:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return files_below(path, PICTURES) or sorted(path.rglob("*.tar"))
    return [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))


def _pictures(path: Path) -> list[InputPicture]:
    if path.suffix.lower() == ".tar":
        members, _ = list_members(str(path))
        wanted = [member for member in members if split_name(member[0])[1] not in ("", "json")]
        return [InputPicture(f"{path}, {name}", path, offset, size, Path(name).name) for name, offset, size in wanted]
    if path.suffix.lower() in PICTURES and path.is_file():
        return [InputPicture(str(path), path, 0, path.stat().st_size, path.name)]
    return []
