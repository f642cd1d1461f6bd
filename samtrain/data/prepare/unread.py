"""Counts the files of an input folder that nothing reads, so that a format without a reader is not passed over in silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path


def unread_files(folder: Path, read: Iterable[Path], ignored: Collection[str] = ()) -> str:
    """Returns how many files below the folder are not among those that are read, such as "3 .heic, 2 hidden", or "".

    `ignored` are suffixes that are not counted.
    """
    known = {os.path.abspath(path) for path in read}
    counts: Counter[str] = Counter()
    for parent, folders, names in os.walk(os.path.abspath(folder)):
        hidden = os.path.basename(parent).startswith(".") and parent != os.path.abspath(folder)
        if hidden:
            folders.clear()  # one for the folder, however much it holds
            counts["hidden"] += 1
            continue
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if os.path.join(parent, name) not in known and suffix not in ignored:
                counts["hidden" if name.startswith(".") else suffix or "without an extension"] += 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
