"""Finds the data sets of `zero_shot.sets` on disk, and says how to get those that are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from samtrain.evaluators.config import KnownSet

log = logging.getLogger(__name__)


def find_sets(
    sets: Mapping[str, str | list[str] | KnownSet], locate: Callable[[str | list[str]], list[str]]
) -> tuple[dict[str, list[str]], dict[str, KnownSet]]:
    """Returns the files of every set by its name, and the known sets that are not on this machine.

    `locate` turns the paths of a set into files. Raises ValueError for a set that was given by its path and does not
    exist, and if none of the known sets was found.
    """
    found: dict[str, list[str]] = {}
    missing: dict[str, KnownSet] = {}
    for name, given in sets.items():
        if not isinstance(given, KnownSet):
            try:
                found[name] = locate(given)
            except (ValueError, OSError) as error:
                raise ValueError(f"{error} (zero_shot.sets.{name})") from error
        elif files := _locate_known(given, locate):
            found[name] = files
        else:
            missing[name] = given
            log.warning(
                "%s was not found at %s. Its licence: %s. How to get it: %s",
                name, given.shards, given.licence, " ".join(given.get.split()),
            )  # fmt: skip
    if missing and not found:
        raise ValueError(
            f"none of the {len(missing)} datasets was found: the log above says how to get each one and where it belongs "
            "(zero_shot.sets)"
        )
    return found, missing


def _locate_known(known: KnownSet, locate: Callable[[str | list[str]], list[str]]) -> list[str]:
    """Returns the files of a known set, none if it was not downloaded."""
    try:
        return locate(known.shards)
    except (ValueError, OSError):
        return []
