"""The HTTP contract, one file per noun; docs/annotate-api.md describes it with examples."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from samtrain.annotator.requests import body_of

MAX_ID = 2**31 - 1  # of the store's integers

Id = Annotated[int, Path(ge=0, le=MAX_ID)]
Body = Annotated[dict[str, Any], Depends(body_of)]


def annotator_of(request: Request) -> str:
    """Returns the name of who asks, which `Safety` has found out."""
    name = request.scope["state"]["annotator"]
    assert isinstance(name, str)
    return name


Annotator = Annotated[str, Depends(annotator_of)]


def as_json(content: Any, status: int = 200) -> Response:
    """Returns an answer in JSON; plain values only, which is much faster than FastAPI's own encoder for long masks."""
    return Response(to_json(content), status, media_type="application/json")


def to_json(content: Any) -> bytes:
    """Returns plain values as JSON."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
