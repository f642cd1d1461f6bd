"""Frozen dataclasses from plain values, as YAML and JSON hold them: every key known, every value of the declared kind."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

MISSING_KEY = "(not set)"  # stands for the value of a key that one of two dicts does not have
KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def from_plain(kind: type[T], values: Any, name: str) -> T:
    """Returns the dataclass `kind` built from a dict; nested dataclasses and tuples are built along.

    `name` is the dotted name of the dict, such as "trainer" for a node of the config; "" stands for the whole config. Raises
    ValueError that names the key for an unknown key, a missing one, and a value of another kind than the field declares. A
    field may be declared as str, int, float, bool, None, Literal, list, dict, tuple, a dataclass, a union of these, or Any.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}: give its settings as key: value")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    prefix = f"{name}." if name else ""
    for key in values:
        if key not in known:
            raise ValueError(f"{prefix}{key} is not a setting{suggestion(str(key), known)}; {name} has {', '.join(known)}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{prefix}{key} is missing: set it")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def differences(here: Any, there: Any) -> list[tuple[str, Any, Any]]:
    """Returns (key, value here, value there) for each value that differs in two nested dicts; keys are dotted and sorted."""
    ours, theirs = _flat(here), _flat(there)
    pairs = [(key, ours.get(key, MISSING_KEY), theirs.get(key, MISSING_KEY)) for key in sorted(ours.keys() | theirs.keys())]
    return [each for each in pairs if each[1] != each[2]]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b.0": value} for nested dicts and lists."""
    if not isinstance(values, (dict, list)) or not values:
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def suggestion(key: str, known: Iterable[str]) -> str:
    """Returns " (did you mean NAME?)" with the known name that is nearest to a key, or "" if none is near."""
    near = get_close_matches(key, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _value(hint: Any, value: Any, name: str) -> Any:
    """Returns the value in the form that its field declares: lists may become tuples, and dicts dataclasses."""
    for option in _options(hint):
        if is_dataclass(option) and isinstance(value, dict):
            return from_plain(typing.cast(type, option), value, name)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            inner = [each for each in typing.get_args(option) if each is not Ellipsis]
            if len(inner) == 1 or len(inner) == len(value):
                return tuple(_value(inner[i % len(inner)], each, f"{name}.{i}") for i, each in enumerate(value))
        elif typing.get_origin(option) is dict and isinstance(value, dict):
            inner = typing.get_args(option)[1]
            return {key: _value(inner, each, f"{name}.{key}") for key, each in value.items()}
        elif _fits(option, value):
            return value
    raise ValueError(f"{name} is {value!r}: give {' or '.join(_describe(option) for option in _options(hint))}")


def _options(hint: Any) -> list[Any]:
    """The members of a union, or the hint itself."""
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (Union, types.UnionType) else [hint]


def _fits(hint: Any, value: Any) -> bool:
    if hint is Any:
        return True
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(hint) is list and isinstance(value, list):
        inner = typing.get_args(hint)[0]
        return all(any(_fits(option, each) for option in _options(inner)) for each in value)
    return isinstance(value, typing.get_origin(hint) or hint)


def _describe(hint: Any) -> str:
    """A field's kind in the words of an error."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (list, tuple):
        inner = [each for each in typing.get_args(hint) if each is not Ellipsis]
        if len(inner) > 1:
            return f"{len(inner)} values, each {' or '.join(map(_describe, _options(inner[0])))}"
        # "[a string, ...]", and for lists of lists "[[a number, ...], ...]"
        return f"[{' or '.join(map(_describe, _options(inner[0])))}, ...]" if inner else "a list"
    if is_dataclass(hint):
        return "settings as key: value"
    return KINDS.get(hint, getattr(hint, "__name__", str(hint)))
