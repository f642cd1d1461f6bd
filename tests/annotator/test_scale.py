"""The page's first requests and a save ask the database the same number of questions, however much it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra annotate")

from serving import SIZE, Client, serving  # noqa: E402
from sqlalchemy import event  # noqa: E402

from samtrain.annotator.serve import Server  # noqa: E402
from samtrain.annotator.store import NewMask  # noqa: E402
from samtrain.ops.rle import encode_mask  # noqa: E402

MASK = encode_mask(np.ones(SIZE, dtype=bool))


def counted(server: Server, method: str, path: str, body: Any = None) -> int:
    """The statements that one request costs."""
    engine, found = server.store.database.engine, []

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            found.append(statement)

    server.service.forget_status()
    event.listen(engine, "before_cursor_execute", count)
    try:
        assert Client(server)(method, path, body)[0] < 300
    finally:
        event.remove(engine, "before_cursor_execute", count)
    return len(found)


def costs(folder: Path, images: int, masks: int) -> list[int]:
    with serving(folder, images=images) as (server, _):
        server.service._ended.set()  # its own look at the store would be counted as well
        server.service._watcher.join(20)
        for row in server.store.images():
            server.store.add_masks(row.id, "somebody", [NewMask(segmentation=MASK)] * masks)
        last = images
        return [
            counted(server, "GET", "/api/session"),
            counted(server, "GET", "/api/images"),
            counted(server, "POST", "/api/next"),
            counted(server, "GET", f"/api/images/{last}/masks"),
            counted(server, "POST", f"/api/images/{last}/masks", {"segmentation": MASK}),
        ]


def test_requests_cost_the_same_however_much_there_is(tmp_path: Path) -> None:
    few, many = costs(tmp_path / "few", 2, 1), costs(tmp_path / "many", 20, 15)
    assert few == many and max(few) <= 20
