"""Leases: who works on an image now, for how long, and which opinion that is.

An image is handed to one annotator at a time. The page renews its lease by a heartbeat; a lease that is not renewed ends, and
the image returns to the pool. What its old holder sends after that is refused, never merged silently.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, insert, not_, or_, select, tuple_, update
from sqlalchemy.sql import ColumnElement

from samtrain.annotator.store.database import Database
from samtrain.annotator.store.errors import Conflict, NotFound
from samtrain.annotator.store.images import read_image
from samtrain.annotator.store.rows import ImageRow, Lease
from samtrain.annotator.store.schema import AGREEMENTS, IMAGES, OPINIONS, ROUNDS

IMPLICIT_SECONDS = 120.0  # the lease that a save without a token takes: as long as annotate.lease_seconds
_FREE: dict[str, Any] = {"lease_annotator": None, "lease_token": None, "lease_expires": None}


class Leases:
    """The part of the store that hands out images."""

    database: Database

    def lease(self, image_id: int, annotator: str, seconds: float) -> Lease:
        """Takes the lease of an image, or renews it if this annotator holds it; raises Conflict if somebody else does.

        An image that is done or skipped can be leased, too, so that it can be corrected; a closed one cannot.
        """

        def work(connection: Connection) -> Lease:
            image, now = self._locked(connection, image_id)
            return take(connection, image, annotator, now, seconds)

        return self.database.write(work)

    def lease_next(
        self, annotator: str, seconds: float, *, after: int | None = None, split: str | None = None, round: int | None = None
    ) -> Lease | None:
        """Takes the lease of the next image that this annotator should work on; None if nothing is left to hand out.

        Open images come in the order of their ranks. An image that is done and wants a second opinion comes in the same
        order, for annotators who have not worked on it. With `after`, the id of an image, those behind it come first.
        """

        def work(connection: Connection) -> Lease | None:
            now = self.database.now(connection)
            image = _next(connection, annotator, now, after, split, round)
            return None if image is None else take(connection, image, annotator, now, seconds)

        return self.database.write(work)

    def heartbeat(self, image_id: int, annotator: str, token: str, seconds: float) -> Lease:
        """Renews a lease, even one that has ended if nobody took the image since; raises Conflict if somebody did."""

        def work(connection: Connection) -> Lease:
            image, now = self._locked(connection, image_id)
            if image.lease_token != token or image.lease_annotator != annotator:
                raise _lost(image, now)
            return take(connection, image, annotator, now, seconds)

        return self.database.write(work)

    def release(self, image_id: int, token: str) -> None:
        """Gives a lease back; does nothing if the lease is not held by this token any more."""
        mine = and_(IMAGES.c.id == image_id, IMAGES.c.lease_token == token)
        self.database.write(lambda connection: connection.execute(update(IMAGES).where(mine).values(**_FREE)) and None)

    def finish(self, image_id: int, annotator: str, token: str | None = None, state: str = "done") -> ImageRow:
        """Says that this annotator is done with an image, or has skipped it, and gives the lease back.

        Raises Conflict if the lease is lost. Said again by the same annotator, because the answer was lost, it changes nothing.
        """
        if state not in ("done", "skipped"):
            raise ValueError(f"an image is finished as done or skipped, got {state[:80]!r}")

        def work(connection: Connection) -> ImageRow:
            image, now = self._locked(connection, image_id)
            if token != image.lease_token and (image.state, image.done_by, image.lease_token) == (state, annotator, None):
                return read_image(connection, image_id, now)
            allow_write(connection, image, annotator, token, now)
            number = opinion_of(connection, image, annotator)
            _note_opinion(connection, image, number, annotator, state, now)
            changes = _FREE | {"opinions_done": _count_opinions(connection, image_id)}
            if number == 0:  # the first opinion counts
                changes |= {"state": state, "done_by": annotator, "done_at": now}
            connection.execute(update(IMAGES).where(IMAGES.c.id == image_id).values(**changes))
            return read_image(connection, image_id, now)

        return self.database.write(work)

    def reopen(self, image_id: int, annotator: str | None = None) -> ImageRow:
        """Takes an image back that was done or skipped; raises Conflict if its round is closed or somebody else works on it."""

        def work(connection: Connection) -> ImageRow:
            image, now = self._locked(connection, image_id)
            check_open(connection, image)
            if annotator is not None and _holder(image, now) not in (None, annotator):
                raise _lost(image, now)
            forget_agreement(connection, image_id)
            connection.execute(delete(OPINIONS).where(OPINIONS.c.image_id == image_id, OPINIONS.c.number == 0))
            changes: dict[str, Any] = {"state": "open", "done_by": None, "done_at": None}
            changes["opinions_done"] = _count_opinions(connection, image_id)
            connection.execute(update(IMAGES).where(IMAGES.c.id == image_id).values(**changes))
            return read_image(connection, image_id, now)

        return self.database.write(work)

    def _locked(self, connection: Connection, image_id: int) -> tuple[Row[Any], float]:
        """Returns an image, locked until the transaction ends, and the time; raises NotFound."""
        image = connection.execute(_lock(select(IMAGES).where(IMAGES.c.id == image_id))).one_or_none()
        if image is None:
            raise NotFound(f"there is no image {image_id}")
        return image, self.database.now(connection)


# ---- steps of a transaction that holds the image's row


def take(connection: Connection, image: Row[Any], annotator: str, now: float, seconds: float) -> Lease:
    """Takes or renews the lease; an annotator who holds it, perhaps in another tab, gets the same token again."""
    check_open(connection, image)
    if _holder(image, now) not in (None, annotator):
        raise _lost(image, now)
    if not 0 < seconds <= 86_400:
        raise ValueError(f"a lease lasts between 0 and 86400 seconds, got {seconds}")
    token = image.lease_token if image.lease_annotator == annotator and image.lease_token else secrets.token_urlsafe(16)
    changes = {"lease_annotator": annotator, "lease_token": token, "lease_expires": now + seconds}
    connection.execute(update(IMAGES).where(IMAGES.c.id == image.id).values(**changes))
    return Lease(image.id, annotator, token, now + seconds, seconds, opinion_of(connection, image, annotator))


def allow_write(connection: Connection, image: Row[Any], annotator: str, token: str | None, now: float) -> None:
    """Raises Conflict unless the lease `token` holds; without a token takes the lease if nobody else has it."""
    check_open(connection, image)
    if token is not None:
        if image.lease_token != token or image.lease_annotator != annotator:
            raise _lost(image, now)
        if image.lease_expires <= now:
            raise Conflict(
                f"your lease of image {image.id} ended {now - image.lease_expires:.0f} s ago, and nobody has taken the image "
                "since: take the lease again, look at the masks, then save",
                reason="expired",
            )
        return
    if _holder(image, now) not in (None, annotator):
        raise _lost(image, now)
    if image.state == "done" and image.done_by != annotator and opinion_of(connection, image, annotator) == 0:
        words = f"image {image.id} is done, by {image.done_by}: take its lease first to change it"
        raise Conflict(words, reason="done", holder=image.done_by)
    take(connection, image, annotator, now, IMPLICIT_SECONDS)


def check_open(connection: Connection, image: Row[Any]) -> None:
    """Raises Conflict if the image is closed or its round is over; the round stays as it is until the transaction ends."""
    over = image.state == "closed"
    if image.round is not None and not over:
        query = select(ROUNDS.c.state).where(ROUNDS.c.number == image.round).with_for_update(read=True)
        over = connection.execute(query).scalar() == "closed"
    if over:
        words = "is closed" if image.round is None else f"belongs to round {image.round}, which is closed"
        raise Conflict(f"image {image.id} {words}: its masks do not change any more. Go to the next image", reason="closed")


def opinion_of(connection: Connection, image: Row[Any], annotator: str) -> int:
    """Returns the number of the opinion that this annotator works on: the one given before, or the first that is missing."""
    if image.opinions_wanted == 1:
        return 0
    query = select(OPINIONS.c.number, OPINIONS.c.annotator).where(OPINIONS.c.image_id == image.id)
    given = {number: name for number, name in connection.execute(query)}
    mine = [number for number, name in given.items() if name == annotator]
    missing = [number for number in range(image.opinions_wanted) if number not in given]
    return (mine or missing or [0])[0]


def forget_agreement(connection: Connection, image_id: int) -> None:
    """Removes the agreement of two opinions, because one of them changes."""
    connection.execute(delete(AGREEMENTS).where(AGREEMENTS.c.image_id == image_id))


def _note_opinion(connection: Connection, image: Row[Any], number: int, annotator: str, state: str, now: float) -> None:
    forget_agreement(connection, image.id)
    here = and_(OPINIONS.c.image_id == image.id, OPINIONS.c.number == number)
    if connection.execute(update(OPINIONS).where(here).values(state=state, done_at=now)).rowcount == 0:
        values = {"image_id": image.id, "number": number, "annotator": annotator, "state": state, "done_at": now}
        connection.execute(insert(OPINIONS).values(**values))


def _count_opinions(connection: Connection, image_id: int) -> int:
    return int(connection.execute(select(func.count()).where(OPINIONS.c.image_id == image_id)).scalar_one())


def _holder(image: Row[Any], now: float) -> str | None:
    """Returns who holds the lease now."""
    return image.lease_annotator if image.lease_expires is not None and image.lease_expires > now else None


def _lost(image: Row[Any], now: float) -> Conflict:
    holder = _holder(image, now)
    if holder is not None:
        words = f"{holder} works on image {image.id} now: nothing was saved. Go to the next image, or ask {holder} to finish"
        return Conflict(words, reason="leased", holder=holder)
    words = f"your lease of image {image.id} has ended, and others may have worked on it since"
    if image.done_by is not None:
        words += f" ({image.done_by} has finished it)"
    return Conflict(f"{words}: take the lease again, look at the masks, then save", reason="expired", holder=image.done_by)


# ---- the next image


def _next(
    connection: Connection, annotator: str, now: float, after: int | None, split: str | None, round: int | None
) -> Row[Any] | None:
    mine = exists().where(OPINIONS.c.image_id == IMAGES.c.id, OPINIONS.c.annotator == annotator)
    free = or_(IMAGES.c.lease_expires.is_(None), IMAGES.c.lease_expires <= now, IMAGES.c.lease_annotator == annotator)
    conditions: list[ColumnElement[bool]] = [free, not_(mine)]
    conditions += [column == value for column, value in ((IMAGES.c.split, split), (IMAGES.c.round, round)) if value is not None]
    order: list[Any] = [IMAGES.c.rank, IMAGES.c.id]
    if after is not None:
        start = connection.execute(select(IMAGES.c.rank, IMAGES.c.id).where(IMAGES.c.id == after)).one_or_none()
        if start is not None:
            order.insert(0, tuple_(IMAGES.c.rank, IMAGES.c.id) <= tuple_(start.rank, start.id))
    first = IMAGES.c.state == "open"
    second = and_(IMAGES.c.state == "done", IMAGES.c.opinions_done < IMAGES.c.opinions_wanted, IMAGES.c.done_by != annotator)
    closed = select(ROUNDS.c.number).where(ROUNDS.c.state == "closed")
    conditions.append(or_(IMAGES.c.round.is_(None), IMAGES.c.round.not_in(closed)))
    query = select(IMAGES).where(*conditions, or_(first, second)).order_by(*order).limit(1)
    # skip images that another server is handing out; if nothing else is left, wait for it
    found = connection.execute(_lock(query, skip_locked=True)).one_or_none()
    return found if found is not None else connection.execute(_lock(query)).one_or_none()


def _lock(query: Select[Any], *, skip_locked: bool = False) -> Select[Any]:
    return query.with_for_update(of=IMAGES, skip_locked=skip_locked)
