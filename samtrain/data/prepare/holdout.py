"""Chooses the images that are held back for validation and test, by image or by group so that no group is in two splits."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from samtrain.data.prepare.names import pair_names
from samtrain.data.tables import open_csv

Grouping = Callable[[str], str | None]  # the relative name of an image -> its group, or None


def grouping(group_by: str | None, source: Path, names: Iterable[str]) -> Grouping:
    """Returns the function that maps the name of an image, one of `names`, to its group, as `data.group_by` says.

    - None: each image is its own group.
    - `images.csv:patient`: the group is in this column of the CSV, and the image's name in its column `file_name` or else
      the first one. The path is absolute, or relative to the working directory, the folder of images, or its parent. A row
      belongs to one image: `pair_names` says which.
    - Anything else is a regular expression that is searched in the relative file name. The group is what its first
      parenthesis matches, or the whole match.
    """
    if group_by is None:
        return lambda name: name
    if found := group_csv(group_by, source):
        groups = _read_column(*found, group_by)
        pairs = pair_names(names, groups)
        return lambda name: groups.get(pairs.found.get(name, "")) or None
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ValueError(
            f"data.group_by is {group_by!r}, which is not a regular expression ({error}): give one, or <file>.csv:<column>"
        ) from error
    return lambda name: (match := pattern.search(name)) and match[1 if pattern.groups else 0]


def group_csv(group_by: str | None, source: Path) -> tuple[Path, str] | None:
    """Returns the CSV and its column, if that is what `group_by` names."""
    column = re.fullmatch(r"(.+\.csv):([^:]+)", group_by or "", flags=re.IGNORECASE)
    if not column:
        return None
    candidates = [Path(column[1]).expanduser(), *(folder / column[1] for folder in (source, source.absolute().parent))]
    for path in candidates:
        if path.is_file():
            return path, column[2]
    raise ValueError(
        f"data.group_by is {group_by!r} and the CSV was not found: save it as one of {', '.join(map(str, candidates))}"
    )


def _read_column(path: Path, column: str, group_by: str) -> dict[str, str]:
    """Returns {image name: group}."""
    with open_csv(path, "data.group_by") as file:
        reader = csv.DictReader(file)
        fields = reader.fieldnames or []
        if column not in fields:
            raise ValueError(
                f"data.group_by is {group_by!r} and {path} has no column {column!r}: choose one of {', '.join(fields)}"
            )
        key = "file_name" if "file_name" in fields else fields[0]
        groups: dict[str, str] = {}
        for row in reader:
            if not row[key] or row[column] is None:
                continue  # a line that ends early names no image, or no group
            if groups.setdefault(row[key], row[column]) != row[column]:
                raise ValueError(
                    f"data.group_by is {group_by!r} and {path} has {row[key]} in the groups {groups[row[key]]!r} and "
                    f"{row[column]!r}: leave one row for each image"
                )
        return groups


def joined_groups(images: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns a common name for all groups that share an image; `images` has the (group, content) of every image.

    Without this, an image that was copied from one group to another could be trained on and tested on.
    """
    # a forest: each group points to one with a smaller name, or to itself
    above: dict[str, str] = {}
    first: dict[str, str] = {}  # the group in which each content was seen first

    def root(group: str) -> str:
        while above.setdefault(group, group) != group:
            above[group] = group = above[above[group]]
        return group

    for group, content in images:
        one, other = sorted((root(group), root(first.setdefault(content, group))))
        above[other] = one
    return {group: root(group) for group in above}


def hold_back(
    groups: Iterable[str], *, fractions: Mapping[str, float], seed: int, rest: str = "pool"
) -> dict[str, str]:
    """Returns {group: split}; `groups` has the group of every image.

    Groups are sorted by a hash of (seed, group). Each split of `fractions` takes groups in this order until it has its share
    of the images, and `rest` gets the others. No split stays empty if there are as many groups as splits. With fewer, `rest`
    is served first, then `fractions` from its last split.
    """
    # a hash puts the groups in an order that does not change when groups are added
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode(errors="surrogateescape")).digest())
    wanted = {split: share * sizes.total() for split, share in fractions.items() if share > 0}
    chosen: dict[str, str] = {}
    held: Counter[str] = Counter()
    for group in order:
        # the first split that is closer to its share with this group than without
        split = next((s for s in wanted if held[s] + sizes[group] / 2 <= wanted[s]), rest)
        chosen[group] = split
        held[split] += sizes[group]
    return _without_empty(chosen, sizes, [rest, *reversed(wanted)])


def _without_empty(chosen: dict[str, str], sizes: Counter[str], splits: list[str]) -> dict[str, str]:
    """Gives each empty split the smallest group of a split that has several; `splits` is in order of priority."""
    for split in splits:
        if split in chosen.values():
            continue
        counts = Counter(chosen.values())
        # with fewer groups than splits, a split of lower priority gives up its only group
        donors = [s for s in splits if counts[s] > 1] or [s for s in splits[splits.index(split) + 1 :] if counts[s]]
        if donors:
            group = min((g for g, s in chosen.items() if s in donors), key=sizes.__getitem__)
            chosen[group] = split
    return chosen
