"""The images of the store: added once, changed by the engine, listed for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ColumnElement

from samtrain.annotator.store.database import Database
from samtrain.annotator.store.errors import NotFound
from samtrain.annotator.store.rows import IMAGE_STATES, SPLITS, ImageRow, NewImage, one_of
from samtrain.annotator.store.schema import IMAGES, MASKS

AT_ONCE = 500  # keys in one query; SQLite takes up to 32766 values
_MASKS = (
    select(func.count())
    .where(MASKS.c.image_id == IMAGES.c.id, MASKS.c.state == "accepted", MASKS.c.opinion == 0)
    .scalar_subquery()
    .label("masks")
)
_UNCHANGED: Any = object()


class Images:
    """The part of the store that holds images."""

    database: Database

    def add_images(self, images: Sequence[NewImage]) -> list[ImageRow]:
        """Adds images and returns their rows in the same order; one with a key that is there already is left as it is.

        Raises ValueError if the store holds an image of that key with other bytes or another size.
        """
        images = list(images)

        def work(connection: Connection) -> list[ImageRow]:
            now = self.database.now(connection)
            found = _by_key(connection, [each.key for each in images], now)
            new = {each.key: each for each in images if each.key not in found}
            if new:
                fields = ("key", "name", "source", "width", "height", "digest", "split", "round", "rank", "state")
                rows = [{name: getattr(each, name) for name in fields} for each in new.values()]
                for row, each in zip(rows, new.values(), strict=True):
                    row |= {"name": each.name or each.key, "added_at": now, "opinions_wanted": each.opinions_wanted}
                dialect: Any = sqlite if self.database.sqlite else postgresql
                query = dialect.insert(IMAGES).on_conflict_do_nothing(index_elements=["key"])  # another server may be faster
                connection.execute(query, [row | {"opinions_done": 0} for row in rows])
                found |= _by_key(connection, list(new), now)
            for each in images:
                _check_same(each, found[each.key])
            return [found[each.key] for each in images]

        return self.database.write(work)

    def update_images(
        self,
        ids: Iterable[int],
        *,
        state: str | None = None,
        split: str | None = None,
        round: int | None = _UNCHANGED,
        rank: float | None = None,
        opinions_wanted: int | None = None,
    ) -> None:
        """Changes images for the engine; what is not given stays. A closed image is not handed out, and its lease ends."""
        ids = list(ids)
        changes: dict[str, Any] = {"state": state, "split": split, "rank": rank, "opinions_wanted": opinions_wanted}
        changes = {name: value for name, value in changes.items() if value is not None}
        if state is not None:
            one_of(state, IMAGE_STATES, "state")
        if split is not None:
            one_of(split, SPLITS, "split")
        if round is not _UNCHANGED:
            changes["round"] = round
        if state == "closed":
            changes |= {"lease_annotator": None, "lease_token": None, "lease_expires": None}

        def work(connection: Connection) -> None:
            for begin in range(0, len(ids), AT_ONCE):
                connection.execute(update(IMAGES).where(IMAGES.c.id.in_(ids[begin : begin + AT_ONCE])).values(**changes))

        if changes:
            self.database.write(work)

    def image(self, image_id: int) -> ImageRow:
        """Returns an image; raises NotFound."""
        return self._one(IMAGES.c.id == image_id, f"there is no image {image_id}")

    def image_of(self, key: str) -> ImageRow:
        """Returns the image with this key; raises NotFound."""
        return self._one(IMAGES.c.key == key, f"there is no image with the key {key[:80]!r}")

    def images(
        self,
        *,
        state: str | None = None,
        split: str | None = None,
        round: int | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[ImageRow]:
        """Returns images in the order in which they are handed out."""
        query = _rows().where(*_filters(state, split, round)).order_by(IMAGES.c.rank, IMAGES.c.id).limit(limit).offset(offset)

        def work(connection: Connection) -> list[ImageRow]:
            now = self.database.now(connection)
            return [to_image(row, now) for row in connection.execute(query)]

        return self.database.read(work)

    def count_images(self, *, state: str | None = None, split: str | None = None, round: int | None = None) -> int:
        """Returns the number of images."""
        query = select(func.count()).select_from(IMAGES).where(*_filters(state, split, round))
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def _one(self, condition: ColumnElement[bool], missing: str) -> ImageRow:
        def work(connection: Connection) -> ImageRow:
            row = connection.execute(_rows().where(condition)).one_or_none()
            if row is None:
                raise NotFound(missing)
            return to_image(row, self.database.now(connection))

        return self.database.read(work)


def to_image(row: Row[Any], now: float) -> ImageRow:
    """Returns a row of `IMAGES` and its number of masks; a lease that has ended is none."""
    values = dict(row._mapping)
    annotator, expires, _ = values.pop("lease_annotator"), values.pop("lease_expires"), values.pop("lease_token")
    held = annotator is not None and expires is not None and expires > now
    return ImageRow(**values, leased_by=annotator if held else None, lease_expires=expires if held else None)


def read_image(connection: Connection, image_id: int, now: float) -> ImageRow:
    """Returns an image that is there."""
    return to_image(connection.execute(_rows().where(IMAGES.c.id == image_id)).one(), now)


def _rows() -> Select[Any]:
    return select(IMAGES, _MASKS)


def _filters(state: str | None, split: str | None, round: int | None) -> list[ColumnElement[bool]]:
    given = ((IMAGES.c.state, state), (IMAGES.c.split, split), (IMAGES.c.round, round))
    return [column == value for column, value in given if value is not None]


def _by_key(connection: Connection, keys: Sequence[str], now: float) -> dict[str, ImageRow]:
    found = {}
    for begin in range(0, len(keys), AT_ONCE):
        for row in connection.execute(_rows().where(IMAGES.c.key.in_(keys[begin : begin + AT_ONCE]))):
            found[row.key] = to_image(row, now)
    return found


def _check_same(new: NewImage, old: ImageRow) -> None:
    if (new.width, new.height) != (old.width, old.height) or (new.digest and old.digest and new.digest != old.digest):
        raise ValueError(
            f"image {new.key} was added before with {old.width} x {old.height} pixels and other bytes: its masks do not fit "
            "the new file. Give the new file another name, or give annotate.store another file"
        )
