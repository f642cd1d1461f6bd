"""The page and its files: a fixed list, so that no text from a client is ever used as a path."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from samtrain.annotator.errors import Refused

STATIC = Path(__file__).resolve().parents[1] / "static"
KINDS = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml"}


def routes() -> APIRouter:
    """Returns the routes of the page."""
    router = APIRouter()
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}

    @router.get("/")
    async def page() -> Response:
        return _file(files, "index.html")

    @router.get("/static/{name:path}")
    async def static(name: str) -> Response:
        return _file(files, name)

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return _file(files, "favicon.svg") if "favicon.svg" in files else Response(status_code=204)

    return router


# small files of this package, so that reading them holds up nobody
def _file(files: dict[str, Path], name: str) -> Response:
    if name not in files:
        raise Refused(404, "there is no such page")
    path = files[name]
    kind = KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Response(path.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})
