"""Reads what clients send: JSON of bounded size, prompts and masks with every number checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from samtrain.annotator.errors import Refused
from samtrain.annotator.prompting import Question
from samtrain.annotator.store import NewMask
from samtrain.ops.rle import RLE, rle_area, to_compressed
from samtrain.plain import suggestion
from samtrain.types import Size

MAX_SEQ = 2**53  # the largest whole number that JavaScript counts to
PROMPT_FIELDS = ("points", "labels", "box", "mask", "seq", "preview")
# the fields of a mask by their names in JSON, and in `NewMask`
MASK_FIELDS = {
    "segmentation": "segmentation", "points": "point_coords", "labels": "point_labels", "box": "box", "strokes": "strokes",
    "seconds": "seconds", "score": "predicted_iou", "stability_score": "stability_score", "origin": "origin",
    "parent": "parent", "label": "label", "story": "story", "request": "request", "model": "model",
}  # fmt: skip
NULLABLE = ("label", "box", "score", "stability_score", "model", "revision", "lease")  # fields of a change that may be null


async def body_of(request: Request) -> dict[str, Any]:
    """Returns the JSON object in a request's body, {} for an empty body; raises Refused for anything else."""
    data = await request.body()
    if not data:
        return {}
    try:
        content = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON ({str(error)[:200]})") from error
    if b"\\u0000" in data or not _is_text(data, content):
        raise Refused(400, "the body holds characters that are no text: leave out NUL and halves of surrogate pairs")
    if not isinstance(content, dict):
        raise Refused(400, 'the body is a JSON object, such as {"points": [[10, 20]], "labels": [1]}')
    return content


def check_fields(body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raises Refused for the first field that is not known."""
    for name in body:
        if name not in known:
            raise Refused(400, f"{name[:80]} is not a field here{suggestion(name[:80], known)}; there are {', '.join(known)}")


def question_of(body: Mapping[str, Any], size: Size, max_points: int) -> Question:
    """Returns the prompts in a body, for an image of `size` (H, W); raises Refused with a sentence for wrong ones."""
    check_fields(body, PROMPT_FIELDS)
    points, labels = _list(body, "points"), _list(body, "labels")
    if len(points) != len(labels):
        raise Refused(400, f"there are {len(points)} points and {len(labels)} labels: give one label, 1 or 0, for each point")
    if len(points) > max_points:
        raise Refused(400, f"there are {len(points)} points, and annotate.max_points is {max_points}")
    if any(type(label) is not int or label not in (0, 1) for label in labels):
        raise Refused(400, f"labels are 1 for foreground and 0 for background, got {str(labels)[:80]}")
    clicks = tuple((_inside(x, size[1], "x"), _inside(y, size[0], "y")) for x, y in (_pair(point) for point in points))
    box, mask = body.get("box"), body.get("mask")
    if not clicks and box is None and mask is None:
        raise Refused(400, "there are no prompts: give points with labels, a box, or a mask")
    return Question(
        points=clicks,
        labels=tuple(labels),
        box=None if box is None else _box(box, size),
        mask=None if mask is None else _mask(mask, size),
    )


def new_mask(body: Mapping[str, Any], model: str | None) -> NewMask:
    """Returns the mask that a body describes; what it does not say of its model is `model`, and the store checks the rest."""
    check_fields(body, (*MASK_FIELDS, "lease", "disjoint"))
    if body.get("segmentation") is None:
        raise Refused(400, 'a mask has a segmentation, {"size": [H, W], "counts": ...} at the full resolution of the image')
    _check_scores(body)
    found = {field: body[name] for name, field in MASK_FIELDS.items() if body.get(name) is not None}
    for name, kinds in (("parent", int), ("model", str), ("request", str), ("strokes", list), ("story", list)):
        if name in found and (not isinstance(found[name], kinds) or isinstance(found[name], bool)):
            raise Refused(400, f"{name} is {str(found[name])[:80]!r}, which is not what this field takes")
    if isinstance(parent := found.get("parent"), int) and not 0 < parent < 1 << 31:
        raise Refused(404, f"there is no mask {parent}")
    if len(str(found.get("model", ""))) > 128:
        raise Refused(400, "model is the digest of a checkpoint, of up to 128 characters")
    return NewMask(**{"model": model, **found})


def changes_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a mask in a body, as `store.change` takes them."""
    check_fields(body, (*MASK_FIELDS, "state", "revision", "lease"))
    _check_scores(body)
    for name, value in body.items():
        if value is None and name not in NULLABLE:
            raise Refused(400, f"{name} is null: give a value, or leave it out")
    names = {**MASK_FIELDS, "state": "state"}
    return {names[name]: value for name, value in body.items() if name in names}


def _check_scores(body: Mapping[str, Any]) -> None:
    for name in ("score", "stability_score"):
        if body.get(name) is not None:
            _number(body[name], name)


def text_or_none(body: Mapping[str, Any], name: str, limit: int = 500) -> str | None:
    """Returns a field that is a short text or missing."""
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > limit):
        raise Refused(400, f"{name} is a text of up to {limit} characters")
    return value


def whole(body: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Returns a field that is a whole number from 0."""
    value = body.get(name, default)
    if type(value) is not int or not 0 <= value <= MAX_SEQ:
        raise Refused(400, f"{name} is {str(value)[:80]}: give a whole number from 0")
    return value


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Returns a field that is true or false."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{name} is {str(value)[:80]}: give true or false")
    return default if value is None else value


def _is_text(data: bytes, content: Any) -> bool:
    """Returns whether the texts in a body can be written as UTF-8, as databases do."""
    if b"\\ud" not in data.lower():
        return True
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused(400, f"{name} is {str(value)[:80]}: give a list")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused(400, f"{name} is {str(value)[:80]}: give a number")
    try:
        found = float(value)
    except OverflowError as error:
        raise Refused(400, f"{name} is too large a number") from error
    if not math.isfinite(found):
        raise Refused(400, f"{name} is not finite: give a number")
    return found


def _pair(point: Any) -> tuple[Any, Any]:
    if not isinstance(point, list) or len(point) != 2:
        raise Refused(400, f"a point is [x, y] in pixels of the image, got {str(point)[:80]}")
    return point[0], point[1]


def _inside(value: Any, length: int, name: str) -> float:
    """Returns a coordinate; raises Refused if it is outside of the image, the far edge of which still counts as inside."""
    found = _number(value, name)
    if not 0 <= found <= length:
        raise Refused(400, f"{name} is {found:g}, outside of the image: give pixels of the image, from 0 to {length}")
    return found


def _box(box: Any, size: Size) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4:
        raise Refused(400, f"a box is [x0, y0, x1, y1] in pixels of the image, got {str(box)[:80]}")
    x0, y0, x1, y1 = (_inside(value, size[1 - i % 2], f"the box's {'xy'[i % 2]}{i // 2}") for i, value in enumerate(box))
    if not (x0 < x1 and y0 < y1):
        raise Refused(400, f"the box is {box}: give the left upper corner first, x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def _mask(mask: Any, size: Size) -> RLE:
    try:
        found = to_compressed(mask, size)
    except ValueError as error:
        raise Refused(400, f"mask: {error}") from error
    if rle_area(found) == 0:
        raise Refused(400, "mask is empty: give a mask with pixels, or none")
    return found
