"""What Hydra refuses, in samtrain's words: one sentence that names the key, the nearest one, and what to type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtrain.plain import suggestion

KEY = re.compile(r"(?:\+\+|\+|~|)(?P<key>[\w/.@-]+)")


def explain(error: Exception, arguments: Sequence[str], conf: Path) -> str:
    """Returns the message for an error that Hydra raised when it composed the config of the arguments."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], arguments, conf)
    if found := re.search(r"Could not find '([^']+)'", text):
        return _unknown_option(found[1], text)
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{found[1]} is a setting that exists, so give it without a plus sign: {found[1]}=VALUE"
    if found := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = found.groups()
        return (
            f"{key}={value} has a comma: for a list give '{key}=[{value}]', for one text give "
            f"\"{key}='{value}'\", and for a run with each value put -m first"
        )
    if "OverrideParse" in type(error).__name__:
        return (
            f"an argument cannot be read ({text.splitlines()[0]}): put a text with special characters into quotes inside "
            "quotes, as in checkpoint=\"'my model.ckpt'\", and close every bracket"
        )
    return text


def _unknown_key(key: str, arguments: Sequence[str], conf: Path) -> str:
    """Returns the message for a key that the config does not have; the config is composed again without the key."""
    others = [each for each in arguments if not (match := KEY.match(each)) or match["key"] != key]
    config = _composed([each for each in others if not each.startswith("-") and "=" in each], conf)
    *parents, last = key.split(".")
    node: Any = config
    for number, part in enumerate(parents):
        if not isinstance(node, dict) or part not in node:
            return _unknown(".".join(parents[: number + 1]), part, node, ".".join(parents[:number]))
        node = node[part]
    return _unknown(key, last, node, ".".join(parents))


def _unknown(key: str, part: str, node: Any, parent: str) -> str:
    known = list(map(str, node)) if isinstance(node, dict) else []
    has = f"; {parent or 'the config'} has {', '.join(known)}" if known else ""
    return f"{key} is not a setting{suggestion(part, known)}{has}"


def _unknown_option(name: str, text: str) -> str:
    """Returns the message for a file that a group such as `experiment` does not have."""
    group, _, option = name.rpartition("/")
    options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    choices = f": choose one of {', '.join(options)}" if options else ""
    return f"{group}={option} does not exist{suggestion(option, options)}{choices}"


def _composed(overrides: list[str], conf: Path) -> dict[str, Any]:
    """Returns the config of the other arguments, or of none if they cannot be composed either."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            config = compose("config", overrides=overrides)
        except Exception:  # another argument is wrong, too; the next try will name it
            config = compose("config")
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
