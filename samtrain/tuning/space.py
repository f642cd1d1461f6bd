"""The search space: config keys and the values that they may take, which include the default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMS = "{low: 0.1, high: 10.0, log: true}, {low: 1, high: 9, step: 2} or {choices: [a, b]}"
KEYS = {"low", "high", "log", "step", "choices"}
PLAIN = re.compile(r"[A-Za-z_][\w./-]*")  # text that needs no quotes in an override
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Dimension:
    """A config key and its values: a range of whole numbers or of floats with both ends, or choices.

    default: the value in the config, which trial 0 has
    """

    key: str
    default: Value
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Value, ...] = ()

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Any) -> Value:
        """Returns the value that Optuna chooses for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.key, self.choices)
        suggest = trial.suggest_int if self.is_whole else trial.suggest_float
        step = {} if self.step is None else {"step": self.step}
        return suggest(self.key, self.low, self.high, log=self.log, **step)

    def contains(self, value: Any) -> bool:
        """Returns whether a trial could have this value."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        assert self.low is not None and self.high is not None
        on_step = self.step is None or abs((value - self.low) / self.step - round((value - self.low) / self.step)) < 1e-9
        return self.low <= value <= self.high and on_step and (float(value).is_integer() or not self.is_whole)

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        extra = ", logarithmic" if self.log else f", step {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{extra}"


def read_space(space: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], *, model: str | None) -> list[Dimension]:
    """Returns the dimensions of `tune.space` with the values in the config as defaults; `{model}` in a key means `model`.

    Raises ValueError for an empty space, a key that the config does not have, values in another form, and a default that
    is not among the values.
    """
    if not space:
        raise ValueError("tune.space is empty: choose a search space such as tune=training, or add one to conf/tune/")
    return [_dimension(key.replace("{model}", str(model)), values, config) for key, values in space.items()]


def check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raises ValueError that names the key if its values are in none of the `FORMS`."""
    if unknown := sorted(set(values) - KEYS):
        raise ValueError(f"{name}.{unknown[0]} is not a setting; {name} has {', '.join(sorted(KEYS))}: give {FORMS}")
    is_range = "low" in values and "high" in values and "choices" not in values
    if not is_range and not (set(values) == {"choices"} and values["choices"]):
        raise ValueError(f"{name} is {dict(values)}: give {FORMS}")


def _dimension(key: str, values: Mapping[str, Any], config: Mapping[str, Any]) -> Dimension:
    name = f"tune.space.{key}"
    check_values(name, values)
    default = _at(config, key, name)
    if "choices" in values:
        dimension = Dimension(key, _plain(default), choices=tuple(map(_plain, values["choices"])))
    else:
        low, high = values["low"], values["high"]
        if not all(isinstance(v, (int, float)) for v in (low, high)) or not low < high:
            raise ValueError(f"{name} goes from {low!r} to {high!r}: give two ascending numbers")
        log, step = bool(values.get("log", False)), values.get("step")
        if log and (low <= 0 or step is not None):
            raise ValueError(f"{name} is logarithmic: give a low above 0, and no step")
        dimension = Dimension(key, default, low, high, log, step)
    if not dimension.contains(dimension.default):
        raise ValueError(f"{name} does not contain the default {default!r}, the setting of trial 0: widen the range or add it")
    return dimension


def _at(config: Mapping[str, Any], key: str, name: str) -> Any:
    """Returns the value of a dotted key; raises ValueError if the config does not have it."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else "nothing"
            raise ValueError(f"{name} is searched, but the config has no {key!r}: instead of {part!r} give one of: {known}")
        value = value[part]
    return value


def _plain(value: Any) -> Value:
    """Returns a choice as Optuna takes it: a list becomes the text that stands for it on the command line."""
    return "[" + ",".join(_text(each) for each in value) + "]" if isinstance(value, list) else value


def override(key: str, value: Value) -> str:
    """Returns `key=value` so that Hydra reads the same value again; text in brackets is a list."""
    is_list = isinstance(value, str) and value.startswith("[") and value.endswith("]")
    return f"{key}={value if is_list else _text(value)}"


def _text(value: Any) -> str:
    """Returns a value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
