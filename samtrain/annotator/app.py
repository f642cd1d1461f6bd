"""Puts the routes together, turns errors into sentences, and stands the safety layer before everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from samtrain.annotator.errors import Refused
from samtrain.annotator.routes import as_json, export, images, masks, pages, rounds, status
from samtrain.annotator.safety import Safety
from samtrain.annotator.service import Service
from samtrain.annotator.store import Conflict, NotFound, StoreError


def make_app(service: Service) -> FastAPI:
    """Returns the ASGI application of one server process."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.events.start()
        service.start()
        yield
        service.events.stop()
        service.stop()

    # no schema and no pages of FastAPI's own, which load scripts from elsewhere
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(pages.routes())
    for noun in (status, images, masks, rounds, export):
        app.include_router(noun.routes(service))
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Safety, settings=service.settings, store=service.store, read_only=service.config.read_only)
    return app


def _refused(request: Request, error: Any) -> Response:
    return as_json({"error": error.sentence, **error.extra}, error.status)


def _conflict(request: Request, error: Any) -> Response:
    return as_json({"error": str(error), "reason": error.reason, "holder": error.holder}, 409)


def _not_found(request: Request, error: Any) -> Response:
    return as_json({"error": str(error)}, 404)


def _store(request: Request, error: Any) -> Response:
    return as_json({"error": str(error)}, 503)


def _wrong(request: Request, error: Any) -> Response:
    return as_json({"error": str(error)}, 400)


def _invalid(request: Request, error: Any) -> Response:
    """Answers a wrong id or query, by the first thing that is wrong with it."""
    first = error.errors()[0]
    place, name = first["loc"][0], str(first["loc"][-1])[:80]
    if place == "path":
        return as_json({"error": f"there is no such address: {name} is a whole number"}, 404)
    return as_json({"error": f"{name} is not valid: {first['msg']}"}, 400)


def _http(request: Request, error: Any) -> Response:
    words = {404: "there is no such address", 405: f"{request.method} is not possible here"}
    return as_json({"error": words.get(error.status_code, str(error.detail))}, error.status_code)


HANDLERS: dict[Any, Any] = {
    Refused: _refused, Conflict: _conflict, NotFound: _not_found, StoreError: _store, ValueError: _wrong,
    RequestValidationError: _invalid, HTTPException: _http,
}  # fmt: skip
