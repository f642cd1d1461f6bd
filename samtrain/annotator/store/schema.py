"""The tables of the store, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1
METADATA = MetaData()
_JSON = JSON(none_as_null=True)


def _states(column: str, *words: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(word) for word in words)})")


# the version of the schema, and what there is one of, as JSON: the model, the work
META = Table("meta", METADATA, Column("name", String, primary_key=True), Column("value", Text, nullable=False))

IMAGES = Table(
    "images",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("source", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("digest", String, nullable=False),
    Column("split", String, nullable=False),
    Column("round", Integer),
    Column("rank", Double, nullable=False),
    Column("state", String, nullable=False),
    Column("done_by", String),
    Column("done_at", Double),
    Column("opinions_wanted", Integer, nullable=False, default=1),
    Column("opinions_done", Integer, nullable=False, default=0),
    Column("lease_annotator", String),
    Column("lease_token", String),
    Column("lease_expires", Double),
    Column("added_at", Double, nullable=False),
    _states("state", "open", "done", "skipped", "closed"),
    _states("split", "train", "val", "test"),
    sqlite_autoincrement=True,
)
Index("images_in_order", IMAGES.c.rank, IMAGES.c.id)
Index("images_of_round", IMAGES.c.round)

# long values come last: SQLite reads a row from its front, and counting must not read the runs of every mask
MASKS = Table(
    "masks",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("image_id", Integer, ForeignKey("images.id"), nullable=False),
    Column("annotator", String, nullable=False),
    Column("state", String, nullable=False),
    Column("origin", String, nullable=False),
    Column("source", String, nullable=False),
    Column("locked", Boolean, nullable=False),
    Column("opinion", Integer, nullable=False),
    Column("round", Integer),
    Column("seconds", Double, nullable=False),
    Column("clicks", Integer, nullable=False),
    Column("area", BigInteger, nullable=False),
    Column("predicted_iou", Double),
    Column("stability_score", Double),
    Column("doubt", Double),
    Column("parent", Integer),
    Column("model", String),
    Column("label", String),
    Column("object_id", BigInteger),
    Column("request", String),
    Column("revision", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("bbox", _JSON, nullable=False),
    Column("box", _JSON),
    Column("point_coords", _JSON, nullable=False),
    Column("point_labels", _JSON, nullable=False),
    Column("segmentation", _JSON, nullable=False),
    Column("strokes", _JSON, nullable=False),
    Column("story", _JSON, nullable=False),
    UniqueConstraint("image_id", "request"),
    _states("state", "accepted", "rejected", "deleted"),
    sqlite_autoincrement=True,
)
Index("masks_of_image", MASKS.c.image_id, MASKS.c.state, MASKS.c.opinion)
Index("masks_of_round", MASKS.c.round, MASKS.c.source, MASKS.c.state)
# all that statistics count by: they read this index and no rows
_COUNTED = ("opinion", "state", "source", "annotator", "origin", "locked", "image_id", "seconds", "clicks")
Index("masks_counted", *(MASKS.c[name] for name in _COUNTED))

DRAFTS = Table(
    "drafts",
    METADATA,
    Column("image_id", Integer, ForeignKey("images.id"), primary_key=True),
    Column("annotator", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("content", _JSON),
)

# who has finished an image, the first opinion being number 0
OPINIONS = Table(
    "opinions",
    METADATA,
    Column("image_id", Integer, ForeignKey("images.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("annotator", String, nullable=False),
    Column("state", String, nullable=False),
    Column("done_at", Double, nullable=False),
    _states("state", "done", "skipped"),
)

# how well the first two opinions of an image agree; made when it is asked for, removed when one of them changes
AGREEMENTS = Table(
    "agreements",
    METADATA,
    Column("image_id", Integer, ForeignKey("images.id"), primary_key=True),
    Column("ious", _JSON, nullable=False),
    Column("unmatched", Integer, nullable=False),
)

ANNOTATORS = Table(
    "annotators",
    METADATA,
    Column("name", String, primary_key=True),
    Column("token_hash", String, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
)

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("stage", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("goals", _JSON, nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("closed_at", Double),
    Column("model", _JSON),
    _states("state", "open", "closed"),
)
