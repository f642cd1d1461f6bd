"""The masks of the store: accepted once, changed with the lease, never lost."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, and_, bindparam, func, insert, or_, select, update

from samtrain.annotator.store.database import Database
from samtrain.annotator.store.errors import Conflict, NotFound
from samtrain.annotator.store.leases import allow_write, forget_agreement, opinion_of
from samtrain.annotator.store.rows import MASK_STATES, MAX_SECONDS, ORIGINS, MaskRow, NewMask, check_json, check_text, one_of
from samtrain.annotator.store.schema import IMAGES, MASKS
from samtrain.ops.rle import RLE, rle_area, rle_to_box_xywh, to_compressed

_COLUMNS = [MASKS.c[each.name] for each in fields(MaskRow)]
CHANGEABLE = (
    "segmentation", "label", "state", "seconds", "predicted_iou", "stability_score",
    "point_coords", "point_labels", "box", "strokes", "story", "origin", "model",
)  # fmt: skip
REVIEWED = ("state", "label")  # what may change of a locked mask


class Masks:
    """The part of the store that holds masks; each write checks the lease of the image in its own transaction.

    `token` is that of the lease; None takes the lease if the image is free, as a script on one's own machine does.
    """

    database: Database

    def accept(self, image_id: int, annotator: str, mask: NewMask, token: str | None = None) -> MaskRow:
        """Stores a mask and returns it when it is on disk; a request that was stored before returns the same mask.

        A mask with a `parent` replaces it: the parent becomes deleted, in the same transaction. Raises NotFound, Conflict,
        and ValueError if the mask is empty or does not fit the image.
        """

        values = _values(mask, self._size(image_id))  # before the transaction, which keeps others waiting

        def work(connection: Connection) -> MaskRow:
            image, now = self._locked(connection, image_id)  # type: ignore[attr-defined]
            if (repeated := _repeated(connection, image_id, annotator, mask.request)) is not None:
                return repeated
            allow_write(connection, image, annotator, token, now)
            opinion = opinion_of(connection, image, annotator)
            if mask.parent is not None:
                parent = _find(connection, mask.parent, image_id)
                _check_change(parent, {"state": "deleted"}, opinion, None)
                _update(connection, parent, {"state": "deleted"}, now)
            if image.opinions_wanted > 1:
                forget_agreement(connection, image_id)
            return _insert(connection, [values], image, annotator, opinion, now)[0]

        return self.database.write(work)

    def add_masks(self, image_id: int, annotator: str, masks: Sequence[NewMask]) -> list[MaskRow]:
        """Adds masks that are there before people come, prefilled or imported, in one transaction; needs no lease.

        Repeated with the same `request` ids, it adds nothing.
        """

        size = self._size(image_id)
        values = [_values(mask, size) for mask in masks]

        def work(connection: Connection) -> list[MaskRow]:
            image, now = self._locked(connection, image_id)  # type: ignore[attr-defined]
            found = [_repeated(connection, image_id, annotator, mask.request) for mask in masks]
            new = [each for each, row in zip(values, found, strict=True) if row is None]
            added = iter(_insert(connection, new, image, annotator, 0, now))
            return [next(added) if row is None else row for row in found]

        return self.database.write(work)

    def change(
        self,
        mask_id: int,
        annotator: str,
        changes: Mapping[str, Any],
        token: str | None = None,
        revision: int | None = None,
    ) -> MaskRow:
        """Changes fields of a mask (see CHANGEABLE) and returns it when that is on disk.

        With `revision`, raises Conflict if the mask was changed since that revision was read. A locked mask is only rejected
        and taken back.
        """
        if unknown := sorted(set(changes) - set(CHANGEABLE)):
            raise ValueError(f"a mask has no changeable {', '.join(unknown)[:200]}: give some of {', '.join(CHANGEABLE)}")

        def work(connection: Connection) -> MaskRow:
            mask = _find(connection, mask_id)
            image, now = self._locked(connection, mask.image_id)  # type: ignore[attr-defined]
            mask = _find(connection, mask_id)  # as it is now that the image is locked
            allow_write(connection, image, annotator, token, now)
            _check_change(mask, changes, opinion_of(connection, image, annotator), revision)
            if image.opinions_wanted > 1:
                forget_agreement(connection, image.id)
            return _update(connection, mask, _changed(mask, changes, (image.height, image.width)), now)

        return self.database.write(work)

    def set_doubt(self, doubts: Mapping[int, float]) -> None:
        """Sets the doubt of masks by their ids, for review; revisions stay, because the masks do not change."""
        rows = [{"mask_id": number, "new": _number(doubt, "doubt")} for number, doubt in doubts.items()]
        query = update(MASKS).where(MASKS.c.id == bindparam("mask_id")).values(doubt=bindparam("new"))
        if rows:
            self.database.write(lambda connection: connection.execute(query, rows) and None)

    def delete(self, mask_id: int, annotator: str, token: str | None = None, revision: int | None = None) -> MaskRow:
        """Marks a mask as deleted; its row stays, so that `restore` can undo this."""
        return self.change(mask_id, annotator, {"state": "deleted"}, token, revision)

    def reject(self, mask_id: int, annotator: str, token: str | None = None, revision: int | None = None) -> MaskRow:
        """Marks a prefilled or imported mask as wrong."""
        return self.change(mask_id, annotator, {"state": "rejected"}, token, revision)

    def restore(self, mask_id: int, annotator: str, token: str | None = None, revision: int | None = None) -> MaskRow:
        """Accepts a mask that was deleted or rejected."""
        return self.change(mask_id, annotator, {"state": "accepted"}, token, revision)

    def _size(self, image_id: int) -> tuple[int, int]:
        """Returns (H, W) of an image, which never changes; raises NotFound."""
        query = select(IMAGES.c.height, IMAGES.c.width).where(IMAGES.c.id == image_id)
        row = self.database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFound(f"there is no image {image_id}")
        return row.height, row.width

    def mask(self, mask_id: int, *, annotator: str | None = None) -> MaskRow:
        """Returns a mask; raises NotFound, with `annotator` also for one that this annotator may not see (see `masks`)."""

        def work(connection: Connection) -> MaskRow:
            mask = _find(connection, mask_id)
            if annotator is not None and not (mask.opinion == 0 and mask.locked):
                image = connection.execute(select(IMAGES).where(IMAGES.c.id == mask.image_id)).one()
                if mask.opinion != opinion_of(connection, image, annotator):
                    raise NotFound(f"there is no mask {mask_id}")
            return mask

        return self.database.read(work)

    def saved(self, image_id: int, annotator: str, request: str) -> MaskRow | None:
        """Returns the mask that an earlier `accept` with this request has stored, None if there was none."""
        return self.database.read(lambda connection: _repeated(connection, image_id, annotator, request))

    def masks(
        self, image_id: int, states: Sequence[str] = ("accepted",), *, annotator: str | None = None, opinion: int = 0
    ) -> list[MaskRow]:
        """Returns the masks of an image in the order they were made.

        With `annotator`, those that this annotator may see: who gives a second opinion does not see the masks of the first,
        but prefilled ones. Without, those of one opinion; number 0 are the masks that count.
        """

        def work(connection: Connection) -> list[MaskRow]:
            image = connection.execute(select(IMAGES).where(IMAGES.c.id == image_id)).one_or_none()
            if image is None:
                raise NotFound(f"there is no image {image_id}")
            seen = MASKS.c.opinion == (opinion if annotator is None else opinion_of(connection, image, annotator))
            if annotator is not None:
                seen = or_(seen, and_(MASKS.c.opinion == 0, MASKS.c.locked))
            query = select(*_COLUMNS).where(MASKS.c.image_id == image_id, MASKS.c.state.in_(states), seen).order_by(MASKS.c.id)
            return [_to_mask(row) for row in connection.execute(query)]

        return self.database.read(work)

    def count_masks(self, round: int) -> int:
        """Returns the number of masks that people have accepted in a round, without those that were there before."""
        ours = (MASKS.c.round == round, MASKS.c.state == "accepted", MASKS.c.opinion == 0, MASKS.c.locked.is_(False))
        query = select(func.count()).select_from(MASKS).where(*ours)
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))


def check_segmentation(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Returns the mask as compressed RLE with text counts; raises ValueError if it is empty or does not fit (H, W)."""
    rle = to_compressed(segmentation, size)
    if rle_area(rle) == 0:
        raise ValueError("the mask is empty: click or paint the object first")
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _values(mask: NewMask, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the checked columns of a new mask."""
    values = {each.name: getattr(mask, each.name) for each in fields(NewMask)}
    return values | _checked(values, size)


def _checked(values: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Returns the columns that follow from these fields; raises ValueError for a field that is wrong."""
    found: dict[str, Any] = {}
    if "segmentation" in values:
        rle = check_segmentation(values["segmentation"], size)
        found |= {"segmentation": rle, "area": rle_area(rle), "bbox": rle_to_box_xywh(rle)}
    if "seconds" in values and not 0 <= _number(values["seconds"], "seconds") <= MAX_SECONDS:
        raise ValueError(f"seconds is {values['seconds']}: give the seconds of work on the mask, from 0 to {MAX_SECONDS:.0f}")
    for name in ("predicted_iou", "stability_score", "doubt"):
        if values.get(name) is not None:
            _number(values[name], name)
    for name in ("label", "model"):
        check_text(values.get(name), name)
    for name in ("strokes", "story"):
        check_json(values.get(name), name)
    if "point_coords" in values or "point_labels" in values:
        _check_points(values["point_coords"], values["point_labels"])
        found["clicks"] = len(values["point_labels"])
    if values.get("box") is not None:
        _check_coordinates(values["box"], (4,), "a box is (x1, y1, x2, y2)")
    return found


def _check_points(coords: Any, labels: Any) -> None:
    if not isinstance(labels, list) or any(type(each) is not int or each not in (0, 1) for each in labels):
        raise ValueError("labels is a list with 1 (foreground) or 0 (background) for each point")
    _check_coordinates(coords, (len(labels), 2), "points is a list of (x, y) with one label each") if labels or coords else None


def _check_coordinates(values: Any, shape: tuple[int, ...], words: str) -> None:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{words} in pixels of the image, got {str(values)[:80]}") from error
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{words} in pixels of the image, got {str(values)[:80]}")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} is a finite number, got {str(value)[:80]}")
    return float(value)


# ---- steps of a transaction


def _changed(mask: MaskRow, changes: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Returns the columns that a change sets."""
    if "state" in changes:
        one_of(changes["state"], MASK_STATES, "state")
    if "origin" in changes:
        one_of(changes["origin"], ORIGINS, "origin")
    values = dict(changes)
    if {"point_coords", "point_labels"} & set(values):  # they are checked together
        values = {"point_coords": mask.point_coords, "point_labels": mask.point_labels} | values
    if isinstance(values.get("story"), list):  # what an import says of the mask stays its beginning
        values["story"] = [each for each in mask.story if isinstance(each, dict) and "id" in each] + values["story"]
    return values | _checked(values, size)


def _check_change(mask: MaskRow, changes: Mapping[str, Any], opinion: int, revision: int | None) -> None:
    if mask.opinion != opinion and not (mask.locked and mask.opinion == 0):
        words = f"mask {mask.id} belongs to another annotator's opinion of the image"
        raise Conflict(words, reason="opinion", holder=mask.annotator)
    if revision is not None and revision != mask.revision:
        raise Conflict(
            f"this mask was changed since you loaded it (revision {mask.revision}, yours is {revision}): load it again, "
            "then change it",
            reason="revision",
        )
    if mask.locked and (set(changes) - set(REVIEWED) or changes.get("state") == "deleted"):
        raise Conflict(
            f"mask {mask.id} was made before people came, and is locked: it stays as it is, or you reject it and draw another",
            reason="locked",
        )


def _repeated(connection: Connection, image_id: int, annotator: str, request: str | None) -> MaskRow | None:
    """Returns the mask that this request has made before."""
    if request is None:
        return None
    query = select(*_COLUMNS).where(MASKS.c.image_id == image_id, MASKS.c.request == request)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.annotator != annotator:
        raise Conflict(f"the request {request} was made by {row.annotator}: give each save an id of its own", reason="request")
    return _to_mask(row)


def _find(connection: Connection, mask_id: int, image_id: int | None = None) -> MaskRow:
    row = connection.execute(select(*_COLUMNS).where(MASKS.c.id == mask_id)).one_or_none()
    if row is None or image_id not in (None, row.image_id):
        raise NotFound(f"there is no mask {mask_id}" + ("" if image_id is None else f" of image {image_id}"))
    return _to_mask(row)


def _insert(
    connection: Connection, values: Sequence[dict[str, Any]], image: Row[Any], annotator: str, opinion: int, now: float
) -> list[MaskRow]:
    """Adds masks with these checked columns, and returns their rows in the same order."""
    same = {"image_id": image.id, "annotator": annotator, "opinion": opinion, "round": image.round}
    same |= {"revision": 0, "created_at": now, "updated_at": now}
    if not values:
        return []
    query = insert(MASKS).returning(*_COLUMNS, sort_by_parameter_order=True)
    return [_to_mask(row) for row in connection.execute(query, [{**each, **same} for each in values])]


def _update(connection: Connection, mask: MaskRow, values: Mapping[str, Any], now: float) -> MaskRow:
    values = {**values, "revision": mask.revision + 1, "updated_at": now}
    query = update(MASKS).where(MASKS.c.id == mask.id).values(**values).returning(*_COLUMNS)
    return _to_mask(connection.execute(query).one())


def _to_mask(row: Row[Any]) -> MaskRow:
    return MaskRow(**row._mapping)
