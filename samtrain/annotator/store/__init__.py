"""The store of the browser tool: images, leases, masks, drafts, people and rounds in SQLite or PostgreSQL."""

from __future__ import annotations

from samtrain.annotator.store.errors import Conflict, NotFound, StoreError
from samtrain.annotator.store.rows import (
    Draft,
    ImageRow,
    Lease,
    MaskRow,
    Model,
    NewImage,
    NewMask,
    RoundRow,
    Work,
)
from samtrain.annotator.store.store import Store, open_store

__all__ = [
    "Conflict", "Draft", "ImageRow", "Lease", "MaskRow", "Model", "NewImage", "NewMask", "NotFound", "RoundRow", "Store",
    "StoreError", "Work", "open_store",
]  # fmt: skip
