"""Objects that a config node names by `_target_`: ours or a user's, checked before they are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

SPECIAL = ("_target_", "_partial_")  # the keys of Hydra's that a node may have beside the arguments


def build(node: Any, name: str, *, methods: Sequence[str] = (), of: type | None = None, **supplied: Any) -> Any:
    """Returns the object that a node with `_target_` describes.

    `name` is the node's dotted name, for errors. `supplied` are arguments that samtrain adds where the object takes them.
    Raises ValueError for a node that `check_target` refuses, for what the object's own constructor refuses, and if the object
    lacks one of `methods` or is no instance of `of`.
    """
    check_target(node, name, supplied=tuple(supplied))
    arguments = _arguments(_locate(node["_target_"], f"{name}._target_"))
    taken = {key for key in supplied if arguments is None or key in [argument.name for argument in arguments]}
    try:
        made = instantiate({**node, **{key: supplied[key] for key in taken}}, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError):
            raise ValueError(str(cause)) from error
        raise ValueError(f"{name}._target_ is {node['_target_']}, which could not be made: {cause}") from error
    if of is not None and not isinstance(made, of):
        raise ValueError(
            f"{name}._target_ is {node['_target_']}, which makes a {type(made).__name__}: give a subclass of "
            f"{of.__module__}.{of.__qualname__}"
        )
    if missing := [method for method in methods if not callable(getattr(made, method, None))]:
        raise ValueError(
            f"{name}._target_ is {node['_target_']}, which has no method {missing[0]}: it needs {', '.join(methods)}"
        )
    return made


def check_target(node: Any, name: str, *, supplied: Sequence[str] = ()) -> None:
    """Raises ValueError that names the key if a node has no `_target_` that can be called with its other keys.

    Nodes with a `_target_` inside are checked, too.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(f"{name} is {node!r}: give {name}._target_, a class or function, and its arguments beside it")
    given = [key for key in node if key not in SPECIAL]
    arguments = _arguments(_locate(node["_target_"], f"{name}._target_"))
    if arguments is not None:
        names = [argument.name for argument in arguments]
        if unknown := [key for key in given if key not in names]:
            is_ours = str(node["_target_"]).startswith("samtrain.") or "." in name
            hint = "" if is_ours else f". To leave samtrain's settings out, give ~{name} '+{name}={{_target_: ...}}'"
            known = ", ".join(names) or "no settings"
            raise ValueError(f"{name}.{unknown[0]} is not a setting of {node['_target_']}; {name} has {known}{hint}")
        required = [argument.name for argument in arguments if argument.default is inspect.Parameter.empty]
        missing = [argument for argument in required if argument not in (*given, *supplied)]
        if missing and not node.get("_partial_"):
            raise ValueError(f"{name}.{missing[0]} is missing: {node['_target_']} needs it")
    for key in given:
        if isinstance(node[key], dict) and "_target_" in node[key]:
            check_target(node[key], f"{name}.{key}")


def find_target(node: Any, name: str) -> Callable[..., Any]:
    """Returns the class or function that a node names by `_target_`; raises ValueError as `check_target` does."""
    check_target(node, name)
    return _locate(node["_target_"], f"{name}._target_")


def _locate(target: Any, name: str) -> Callable[..., Any]:
    """Returns the class or function of a dotted name."""
    try:
        found = get_object(str(target))
    except Exception as error:  # whatever the user's module raises when it is imported
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"{name} is {target!r}, which cannot be imported ({reason}): give MODULE.NAME, and put the module's folder on "
            "PYTHONPATH"
        ) from error
    if not callable(found):
        raise ValueError(f"{name} is {target!r}, which is a {type(found).__name__}: give a class or a function")
    return found


def _arguments(target: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Returns the arguments that can be given by name; None if the target takes any."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some built-in classes have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
