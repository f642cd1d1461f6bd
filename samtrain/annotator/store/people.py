"""Annotators and their tokens, their drafts, the model, the work, and the rounds."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from samtrain.annotator.store.database import Database
from samtrain.annotator.store.errors import Conflict, NotFound
from samtrain.annotator.store.rows import Draft, Model, RoundRow, Work, check_json
from samtrain.annotator.store.schema import ANNOTATORS, DRAFTS, IMAGES, META, ROUNDS

NAME = re.compile(r"[^\W_](?:[\w .@+-]{0,62}[\w])?")  # letters, digits and a few signs: it stands in file names and in the page
TOKEN_BYTES = 32


class People:
    """The part of the store that knows the annotators; of a token only its hash is stored."""

    database: Database

    def add_annotator(self, name: str) -> str:
        """Adds an annotator, or gives one a new token, and returns the token, which cannot be read again later."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} cannot be an annotator's name: give 1 to 64 letters, digits, spaces or . @ + - _")
        token = secrets.token_urlsafe(TOKEN_BYTES)

        def work(connection: Connection) -> None:
            values = {"name": name, "token_hash": _hash(token), "created_at": self.database.now(connection)}
            upsert(self.database, connection, ANNOTATORS, values, key=("name",))

        self.database.write(work)
        return token

    def annotator_of(self, token: str) -> str | None:
        """Returns the name of the annotator with this token, None if there is none."""
        wanted = _hash(token)
        rows = self.database.read(lambda connection: connection.execute(select(ANNOTATORS)).all())
        found = None
        for row in rows:  # all are compared, in constant time, so that an answer's time tells nothing
            if hmac.compare_digest(row.token_hash, wanted):
                found = row.name
        return found

    def annotators(self) -> list[str]:
        """Returns the names of all annotators."""
        query = select(ANNOTATORS.c.name).order_by(ANNOTATORS.c.created_at, ANNOTATORS.c.name)
        return self.database.read(lambda connection: list(connection.execute(query).scalars()))

    # ---- drafts

    def save_draft(self, image_id: int, annotator: str, content: Any, seq: int) -> Draft:
        """Stores what this annotator has in the works, and returns what is stored: a draft with a later `seq` stays."""
        check_json(content, "the draft")

        def work(connection: Connection) -> Draft:
            if connection.execute(select(IMAGES.c.id).where(IMAGES.c.id == image_id)).one_or_none() is None:
                raise NotFound(f"there is no image {image_id}")
            values = {"image_id": image_id, "annotator": annotator, "content": content, "seq": seq}
            values["updated_at"] = self.database.now(connection)
            upsert(self.database, connection, DRAFTS, values, key=("image_id", "annotator"), newer="seq")
            return _draft(connection.execute(_draft_query(image_id, annotator)).one())

        return self.database.write(work)

    def draft(self, image_id: int, annotator: str) -> Draft | None:
        """Returns the draft of this annotator on this image."""
        row = self.database.read(lambda connection: connection.execute(_draft_query(image_id, annotator)).one_or_none())
        return None if row is None else _draft(row)

    def drop_draft(self, image_id: int, annotator: str, seq: int | None = None) -> None:
        """Removes the draft; with `seq`, only if it is not later than that."""
        mine = [DRAFTS.c.image_id == image_id, DRAFTS.c.annotator == annotator]
        mine += [] if seq is None else [DRAFTS.c.seq <= seq]
        self.database.write(lambda connection: connection.execute(delete(DRAFTS).where(*mine)) and None)


class Progress:
    """The part of the store that says which model helps, what there is to do, and which rounds there were."""

    database: Database

    def set_model(self, model: Model) -> None:
        """Says which model helps from now on; the servers load it within about a second."""
        self._set("model", asdict(model))

    def model(self) -> Model | None:
        """Returns the model that helps now."""
        value = self._get("model")
        return None if value is None else Model(**value)

    def set_work(self, work: Work) -> None:
        """Says what there is to do now."""
        self._set("work", asdict(work))

    def work(self) -> Work | None:
        """Returns what there is to do now."""
        value = self._get("work")
        return None if value is None else Work(**value)

    def open_round(self, number: int, stage: int, goals: Mapping[str, float] | None = None) -> RoundRow:
        """Opens a round, with the model of now; one that is open already stays as it is. Raises Conflict if it was closed."""
        model = self.model()

        def work(connection: Connection) -> RoundRow:
            found = connection.execute(select(ROUNDS).where(ROUNDS.c.number == number).with_for_update()).one_or_none()
            if found is None:
                values: dict[str, Any] = {"number": number, "stage": stage, "state": "open", "goals": dict(goals or {})}
                values |= {"opened_at": self.database.now(connection), "model": asdict(model) if model else None}
                found = connection.execute(insert(ROUNDS).values(**values).returning(*ROUNDS.c)).one()
            if found.state == "closed":
                raise Conflict(f"round {number} was closed before, and a closed round does not open again", reason="closed")
            return _round(found)

        return self.database.write(work)

    def close_round(self, number: int) -> RoundRow:
        """Closes a round: from now on no mask of its images changes. Images that are still open become closed."""

        def work(connection: Connection) -> RoundRow:
            ours = IMAGES.c.round == number
            # its images first, as a save does: in the other order the two could wait for each other
            connection.execute(select(IMAGES.c.id).where(ours).order_by(IMAGES.c.id).with_for_update())
            found = connection.execute(select(ROUNDS).where(ROUNDS.c.number == number).with_for_update()).one_or_none()
            if found is None:
                raise NotFound(f"there is no round {number}")
            if found.state == "closed":
                return _round(found)
            free = {"lease_annotator": None, "lease_token": None, "lease_expires": None}
            connection.execute(update(IMAGES).where(ours).values(**free))
            connection.execute(update(IMAGES).where(ours, IMAGES.c.state == "open").values(state="closed"))
            values = {"state": "closed", "closed_at": self.database.now(connection)}
            query = update(ROUNDS).where(ROUNDS.c.number == number).values(**values).returning(*ROUNDS.c)
            return _round(connection.execute(query).one())

        return self.database.write(work)

    def rounds(self) -> list[RoundRow]:
        """Returns all rounds in order."""
        query = select(ROUNDS).order_by(ROUNDS.c.number)
        return self.database.read(lambda connection: [_round(row) for row in connection.execute(query)])

    def value(self, name: str) -> Any:
        """Returns a small JSON value that `set_value` stored under this name, None if there is none."""
        return self._get(f"value/{name}")

    def set_value(self, name: str, value: Any) -> None:
        """Stores a small JSON value under a name, for those who use the store."""
        self._set(f"value/{name}", value)

    def _set(self, name: str, value: Any) -> None:
        values = {"name": name, "value": json.dumps(value, allow_nan=False)}
        self.database.write(lambda connection: upsert(self.database, connection, META, values, key=("name",)))

    def _get(self, name: str) -> Any:
        query = select(META.c.value).where(META.c.name == name)
        value = self.database.read(lambda connection: connection.execute(query).scalar())
        return None if value is None else json.loads(value)


def upsert(
    database: Database,
    connection: Connection,
    table: Any,
    values: dict[str, Any],
    key: tuple[str, ...],
    newer: str | None = None,
) -> None:
    """Inserts a row, or updates the one with the same key; with `newer`, only if that column grows."""
    dialect: Any = sqlite if database.sqlite else postgresql
    query = dialect.insert(table).values(**values)
    changes = {name: query.excluded[name] for name in values if name not in key}
    where = None if newer is None else table.c[newer] < query.excluded[newer]
    connection.execute(query.on_conflict_do_update(index_elements=list(key), set_=changes, where=where))


def _draft_query(image_id: int, annotator: str) -> Any:
    return select(DRAFTS).where(DRAFTS.c.image_id == image_id, DRAFTS.c.annotator == annotator)


def _draft(row: Row[Any]) -> Draft:
    return Draft(**row._mapping)


def _round(row: Row[Any]) -> RoundRow:
    return RoundRow(**row._mapping)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
