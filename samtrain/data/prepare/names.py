"""Pairs the names that other tools wrote with the names of files, one to one, and only where the meaning is certain."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from urllib.parse import unquote

MAX_NEAREST = 20  # names for which the nearest one is searched, which takes a second among 100,000 names
SHOWN = 3  # names in a message

Parts = tuple[str, ...]


@dataclass
class Pairs:
    """The pairs {given name: present name}, and what to say about a given name without a pair."""

    found: dict[str, str]
    present: Sequence[str]
    rivals: dict[str, list[str]] = field(default_factory=dict)  # given names that mean the same present name
    several: dict[str, list[str]] = field(default_factory=dict)  # present names that one given name may mean
    _searched: int = 0

    def why_not(self, given: str) -> str:
        """Returns why a given name has no pair, with the nearest present name if there is none that fits."""
        if given in self.several:
            return f"{given} may be any of {_listed(self.several[given])}"
        if given in self.rivals:
            return f"{given} would share a file with {_listed(self.rivals[given])}"
        self._searched += 1
        near = get_close_matches(given, self.present, n=1) if self._searched <= MAX_NEAREST else []
        return f"nothing fits {given}" + (f", the nearest is {near[0]}" if near else "")


def pair_names(given: Iterable[str], present: Iterable[str]) -> Pairs:
    """Pairs each given path with the present path that it means; a path that fits several others gets none.

    First come equal names, then names that differ only in how they are spelled (backslashes, percent-encoding, Unicode's
    normal forms, upper case). Last come names of which one is the other without its first folders. `present` may hold
    more names than `given`, and the other way round.
    """
    left, names = list(dict.fromkeys(given)), sorted(set(present))
    known = set(names)
    pairs = Pairs({name: name for name in left if name in known}, names)
    left = [name for name in left if name not in known]
    # spelled otherwise
    by_spelling = _grouped(names, spelled)
    left = _pair(pairs, left, lambda name: by_spelling[spelled(name)])
    # without the first folders of one of the two
    by_file = _grouped(names, lambda name: spelled(name)[-1:])
    _pair(pairs, left, lambda name: _same_end(spelled(name), by_file[spelled(name)[-1:]]))
    return pairs


def spelled(name: str) -> Parts:
    """Returns the parts of a path in one spelling: tools differ in slashes, percent-encoding, normal forms and case."""
    plain = unicodedata.normalize("NFC", unquote(name.replace("\\", "/"), errors="surrogateescape")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _grouped(names: Iterable[str], key: Callable[[str], Hashable]) -> defaultdict[Hashable, list[str]]:
    groups: defaultdict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


def _pair(pairs: Pairs, left: list[str], candidates: Callable[[str], list[str]]) -> list[str]:
    """Adds the pairs in which neither name has another candidate; returns the given names that have no candidate at all."""
    options = {name: candidates(name) for name in left}
    taken = {present: given for given, present in pairs.found.items()}
    wanted = _grouped((name for name, found in options.items() if len(found) == 1), lambda name: options[name][0])
    for name, found in options.items():
        if len(found) > 1:
            pairs.several[name] = found
        elif found and found[0] in taken:
            pairs.rivals[name] = [taken[found[0]]]
        elif found and len(wanted[found[0]]) > 1:
            pairs.rivals[name] = [other for other in wanted[found[0]][: SHOWN + 2] if other != name]
        elif found:
            pairs.found[name] = found[0]
    return [name for name, found in options.items() if not found]


def _same_end(parts: Parts, present: list[str]) -> list[str]:
    """Returns the present names of which one is the end of the other, and of these those with the longest common end."""
    lengths = {}
    for name in present:
        other = spelled(name)
        length = min(len(parts), len(other))
        if length and parts[-length:] == other[-length:]:
            lengths[name] = length
    return [name for name, length in lengths.items() if length == max(lengths.values())]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
