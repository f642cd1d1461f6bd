"""Dataclasses from plain values: what is accepted, and errors that name the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from samtrain.plain import from_plain


@dataclass(frozen=True)
class Inner:
    side: int


@dataclass(frozen=True)
class Node:
    rate: float
    steps: int | None = None
    name: str = "a"
    on_error: Literal["raise", "skip"] = "raise"
    betas: tuple[float, float] = (0.9, 0.999)
    names: tuple[str, ...] = ()
    points: list[int | float] = field(default_factory=list)
    flag: bool = False
    inner: Inner | None = None
    free: Any = None
    by_name: dict[str, str | Inner] = field(default_factory=dict)


def test_values_take_the_form_of_their_fields() -> None:
    node = from_plain(
        Node, {"rate": 1, "betas": [0.5, 0.6], "names": ["x", "y"], "inner": {"side": 3}, "free": {"a": 1}}, "node"
    )
    assert node == Node(1, betas=(0.5, 0.6), names=("x", "y"), inner=Inner(3), free={"a": 1})


def test_dataclasses_inside_a_dict_are_built_along() -> None:
    node = from_plain(Node, {"rate": 1, "by_name": {"a": "text", "b": {"side": 3}}}, "node")
    assert node.by_name == {"a": "text", "b": Inner(3)}
    with pytest.raises(ValueError, match="node.by_name.b.side is 'x'"):
        from_plain(Node, {"rate": 1, "by_name": {"b": {"side": "x"}}}, "node")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "node.rate is missing"),
        ({"rate": "fast"}, "node.rate is 'fast': give a number"),
        ({"rate": True}, "node.rate is True: give a number"),
        ({"rate": 1, "step": 2}, r"node.step is not a setting \(did you mean steps\?\); node has rate, steps, name"),
        ({"rate": 1, "steps": 2.5}, "node.steps is 2.5: give a whole number or null"),
        ({"rate": 1, "on_error": "stop"}, "node.on_error is 'stop': give one of raise, skip"),
        ({"rate": 1, "betas": [0.9]}, "node.betas is .*: give 2 values, each a number"),
        ({"rate": 1, "names": ["a", 3]}, "node.names.1 is 3: give a string"),
        ({"rate": 1, "points": ["a"]}, r"node.points is .*: give \[a whole number or a number, ...\]"),
        ({"rate": 1, "flag": 1}, "node.flag is 1: give true or false"),
        ({"rate": 1, "inner": {"side": None}}, "node.inner.side is None: give a whole number"),
        ({"rate": 1, "inner": 3}, "node.inner is 3: give settings as key: value or null"),
        (3, "node is 3: give its settings as key: value"),
    ],
)
def test_errors_name_the_key(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(Node, values, "node")
