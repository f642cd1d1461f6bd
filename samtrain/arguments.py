"""The command line as people type it: paths with special characters, `~`, options with dashes, a run directory alone."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtrain.renamed import with_new_names

OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|)(?P<key>[\w/.@-]+)=(?P<value>.*)", re.DOTALL)
# settings that hold a path: a number or a date there is a name, too
PATHS = {
    "run_dir", "data_dir", "checkpoint", "stage1_run", "data.root", "data.masks", "data.annotations", "predict.image",
    "embed.images", "embed.output", "generate.input", "generate.output", "generate.truth", "export.path", "export.image",
    "export.dataset", "validate.dataset", "audit.dataset", "audit.corrected", "audit.truth", "zero_shot.boxes",
    "zero_shot.groups", "zero_shot.run", "evaluator.general",
}  # fmt: skip
CONFIG_OPTIONS = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
WITH_VALUE = (*CONFIG_OPTIONS, "--cfg", "-c", "--package", "-p", "--info", "-i")
OPTIONAL = ("--info", "-i")  # its value may be left out
CHOICES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OPTIONS = {
    *WITH_VALUE, "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--experimental-rerun",
}  # fmt: skip


def understood(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments as Hydra reads them; those that resume a run become the command that started it.

    Raises ValueError for an option that does not exist.
    """
    options, overrides = _divided(with_new_names(arguments))
    multirun = bool({"-m", "--multirun"} & set(options))
    read = [readable(each, multirun=multirun) for each in overrides]
    return [*options, *read] if options else resumed(read)


def readable(argument: str, *, multirun: bool = False) -> str:
    """Returns an override with its value in quotes if Hydra's grammar cannot read it as a text, such as `a=b.ckpt`."""
    match = OVERRIDE.fullmatch(argument)
    if match is None:
        return argument
    prefix, key, value = match["prefix"], match["key"], match["value"]
    if key == "experiment" and not prefix:  # the group has no default that could be overridden
        prefix = "+"
    if key == "hydra.run.dir":
        key = "run_dir"
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    start = f"{prefix}{key}="
    if multirun and "," in value and not value.startswith(("[", "{", "'", '"')) and not _is_readable(start + value):
        return start + ",".join(part if _is_readable(start + part) else quoted(part) for part in value.split(","))
    return start + (quoted(value) if _needs_quotes(start, key, value, multirun) else value)


def quoted(text: str) -> str:
    """Returns a text in quotes, so that Hydra takes it as it is."""
    return "'" + text.replace("'", "\\'") + "'"


def resumed(arguments: list[str]) -> list[str]:
    """Returns the arguments that started the run if nothing but its directory, and perhaps more settings, is given.

    The run's own settings come first, so that later ones are compared with them. The working directory becomes the one that
    the run was started in, because its paths may be relative to it.
    """
    given = [match for each in arguments if (match := OVERRIDE.fullmatch(each))]
    chosen = [match for match in given if match["key"] == "run_dir"]
    if not chosen or len(given) < len(arguments) or any(match["key"] in ("task", "experiment") for match in given):
        return arguments
    run_dir = Path(os.path.abspath(_unquoted(chosen[-1]["value"])))
    stored = _read_yaml(run_dir / ".hydra" / "overrides.yaml")
    if stored is None or not (run_dir / ".hydra" / "config.yaml").is_file():
        return arguments
    started = _read_yaml(run_dir / ".hydra" / "environment.json") or {}
    if os.path.isdir(started.get("folder", "")):
        os.chdir(started["folder"])
    rest = [match.group() for match in given if match["key"] != "run_dir"]
    # a command that is typed whole again has the run's settings already
    ours = ("run_dir=", "hydra.", "hydra/", "+hydra", "++hydra")
    kept = [each for each in stored if not each.startswith(ours) and each not in rest]
    return [*_config_options(started.get("command", "")), *kept, *rest, f"run_dir={quoted(str(run_dir))}"]


def _needs_quotes(start: str, key: str, value: str, multirun: bool) -> bool:
    if not value or value[0] in "'\"" or (value[0] in "[{" and value[-1] in "]}"):
        return False
    if not _is_readable(start + value):
        return True
    parsed = _parsed(start + value)
    if parsed.is_sweep_override():  # a path with a comma, or values of a sweep
        return not multirun and (key in PATHS or os.path.exists(value))
    return key in PATHS and value != "null" and not isinstance(parsed.value(), str)


def _is_readable(override: str) -> bool:
    try:
        _parsed(override)
    except Exception:  # of the grammar, of an unknown function: the value is no expression
        return False
    return True


def _parsed(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def _unquoted(value: str) -> str:
    quote = value[:1]
    return value[1:-1].replace(f"\\{quote}", quote) if quote in ("'", '"') and value[-1:] == quote else value


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns Hydra's options with their values, which it wants first, and the settings.

    Raises ValueError for `--experiment=stage1`, `--seed 3` and other options that do not exist.
    """
    options: list[str] = []
    overrides: list[str] = []
    for each in arguments:
        name, _, value = each.partition("=")
        before = options[-1] if options else ""
        is_value = before in WITH_VALUE and not each.startswith("-") and (before not in OPTIONAL or each in CHOICES)
        if is_value or name in OPTIONS:
            options.append(each)
        elif each.startswith("--"):
            key = name[2:].replace("-", "_")
            key = f"+{key}" if key == "experiment" else key
            raise ValueError(f"{name} is no option: settings are given without dashes, as in {key}={value or 'VALUE'}")
        else:
            overrides.append(each)
    return options, overrides


def _config_options(command: str) -> list[str]:
    """Returns the options of a stored command that say where its config files are."""
    found: list[str] = []
    try:
        words = shlex.split(command)
    except ValueError:  # older versions stored commands without quotes
        words = command.split()
    for number, word in enumerate(words):
        if word in CONFIG_OPTIONS:
            found += words[number : number + 2]
        elif word.startswith(tuple(f"{option}=" for option in CONFIG_OPTIONS if option.startswith("--"))):
            found.append(word)
    return found


def _read_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
