"""Config keys that were renamed: their old names still work on the command line, with a warning."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

# old name to new name; keys below them are renamed along, such as generator.release.short_side
RENAMED = {
    "annotator.leaves_picture": "annotator.leaves_image",
    "audit.pictures": "audit.images",
    "generator.first_image_id": "generate.first_image_id",
    "generator.images_per_shard": "generate.images_per_shard",
    "generator.input": "generate.input",
    "generator.num_parts": "generate.num_parts",
    "generator.num_workers": "generate.num_workers",
    "generator.on_error": "generate.on_error",
    "generator.output": "generate.output",
    "generator.panels": "generate.panels",
    "generator.part": "generate.part",
    "generator.pictures_per_shard": "generate.images_per_shard",
    "generator.release": "generate.release",
    "generator.truth": "generate.truth",
    "generator/release": "generate/release",  # a group of config files
}
OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~|)(?P<key>[\w/.]+)(?P<rest>(?:[=@].*)?)", re.DOTALL)


def with_new_names(arguments: Sequence[str]) -> list[str]:
    """Returns the command-line arguments with renamed keys replaced; warns on stderr about each of them."""
    return [_with_new_name(argument) for argument in arguments]


def _with_new_name(argument: str) -> str:
    override = OVERRIDE.fullmatch(argument)
    if override is None:
        return argument
    for old, new in RENAMED.items():
        if override["key"] == old or override["key"].startswith(f"{old}."):
            print(f"Warning: {old} was renamed to {new}; please use the new name, the old one will go.", file=sys.stderr)
            prefix = override["prefix"]
            if prefix == "+" and "/" not in new:  # the new name may be in conf/, where a single + is refused
                prefix = "++"
            return prefix + new + override["key"].removeprefix(old) + override["rest"]
    return argument
