"""Which images are held back for validation and test: by image or by group, so that no scene straddles."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Grouping = Callable[[str], str | None]  # the relative name of an image -> its group, None where none is known


def grouping(group_by: str | None, source: Path) -> Grouping:
    """The function that `data.group_by` names.

    - None: each image is its own group.
    - `images.csv:patient`: a column of a CSV whose column `file_name`, or else its first, names the image; the path
      is absolute, or from the working folder, the folder of images or the one above.
    - Anything else: a regular expression searched in the relative file name; its first parenthesis, or all of it, is
      the group.
    """
    if group_by is None:
        return lambda name: name
    if found := group_csv(group_by, source):
        groups = _read_column(*found, group_by)
        return lambda name: groups.get(name) or groups.get(Path(name).name) or None
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ValueError(
            f"data.group_by is {group_by!r}, no regular expression ({error}); give one, or <file>.csv:<column>"
        ) from error
    return lambda name: (match := pattern.search(name)) and match[1 if pattern.groups else 0]


def group_csv(group_by: str | None, source: Path) -> tuple[Path, str] | None:
    """The CSV and its column, if that is what `group_by` names."""
    column = re.fullmatch(r"(.+\.csv):([^:]+)", group_by or "", flags=re.IGNORECASE)
    if not column:
        return None
    candidates = [Path(column[1]).expanduser(), *(folder / column[1] for folder in (source, source.absolute().parent))]
    for path in candidates:
        if path.is_file():
            return path, column[2]
    raise ValueError(f"data.group_by names {column[1]!r}, no such file among {', '.join(map(str, candidates))}")


def _read_column(path: Path, column: str, group_by: str) -> dict[str, str]:
    """ImageToAnnotate name -> group."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        fields = reader.fieldnames or []
        if column not in fields:
            raise ValueError(
                f"data.group_by is {group_by!r}: {path} has no column {column!r}, its columns are {fields}"
            )
        key = "file_name" if "file_name" in fields else fields[0]
        return {row[key]: row[column] for row in reader}


def hold_back(
    groups: Iterable[str], *, fractions: Mapping[str, float], seed: int, rest: str = "pool"
) -> dict[str, str]:
    """Group -> split, for the group of each image.

    Groups are put in the order of a hash of (seed, group); each split of `fractions` takes from it until it has its
    share of the images, the `rest` keeps what is left. With as many groups as splits every split gets at least one;
    with fewer, the rest comes first, then the last of `fractions`.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode(errors="surrogateescape")).digest())
    wanted = {split: share * sizes.total() for split, share in fractions.items() if share > 0}
    chosen: dict[str, str] = {}
    held: Counter[str] = Counter()
    for group in order:
        # the first split that comes nearer to its share by taking the group
        split = next((s for s in wanted if held[s] + sizes[group] / 2 <= wanted[s]), rest)
        chosen[group] = split
        held[split] += sizes[group]
    return _without_empty(chosen, sizes, [rest, *reversed(wanted)])


def _without_empty(chosen: dict[str, str], sizes: Counter[str], splits: list[str]) -> dict[str, str]:
    """Gives an empty split the smallest group of a split that has several; `splits` in the order of need."""
    for split in splits:
        if split in chosen.values():
            continue
        counts = Counter(chosen.values())
        # with few groups a split of less need gives up its only one
        donors = [s for s in splits if counts[s] > 1] or [s for s in splits[splits.index(split) + 1 :] if counts[s]]
        if donors:
            group = min((g for g, s in chosen.items() if s in donors), key=sizes.__getitem__)
            chosen[group] = split
    return chosen
