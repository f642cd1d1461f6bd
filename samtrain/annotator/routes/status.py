"""Health, session, status, events, and the cookie that a link's token becomes."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from samtrain.annotator.errors import Refused
from samtrain.annotator.events import as_event
from samtrain.annotator.requests import check_fields, text_or_none
from samtrain.annotator.routes import Annotator, Body, as_json
from samtrain.annotator.safety import COOKIE
from samtrain.annotator.service import Service
from samtrain.version import version

COOKIE_SECONDS = 30 * 24 * 3600


def routes(service: Service) -> APIRouter:
    """Returns the routes around the session."""
    router = APIRouter(prefix="/api")
    settings = service.settings

    @router.get("/health")
    def health() -> Response:
        content = {"status": "ok", "version": version(), "model": service.model_in_use(), "queue": len(service.encoder)}
        if service.encoder.problem is not None:
            content |= {"status": "no model", "error": service.encoder.problem}
        return as_json(content)

    @router.get("/session")
    def session(annotator: Annotator) -> Response:
        now = service.status()
        shown = {
            "seconds_per_mask": settings.seconds_per_mask, "idle_seconds": settings.idle_seconds, "labels": settings.labels,
            "disjoint": settings.disjoint, "prefetch": settings.prefetch, "lease_seconds": settings.lease_seconds,
            "max_points": settings.max_points, "read_only": service.config.read_only, "review": False,
        }  # fmt: skip
        work = now["work"] or {}
        shown |= {"review": work.get("kind") == "review", **work.get("settings", {})}
        return as_json(
            {"annotator": annotator, "settings": shown, "work": now["work"], "model": now["model"], "status": now}
        )

    @router.get("/status")
    def status(annotator: Annotator) -> Response:
        return as_json(service.status())

    @router.get("/events")
    async def events(annotator: Annotator) -> Response:
        first = [as_event("status", await run_in_threadpool(service.status))]
        return StreamingResponse(service.events.stream(first), media_type="text/event-stream")

    @router.post("/login")
    def login(body: Body) -> Response:
        check_fields(body, ("token",))
        token = text_or_none(body, "token") or ""
        name = service.store.annotator_of(token) if token else None
        if name is None:
            raise Refused(401, "nobody has this token: open the link that was printed for you")
        answer = as_json({"annotator": name})
        answer.set_cookie(COOKIE, token, max_age=COOKIE_SECONDS, httponly=True, samesite="strict", path="/")
        return answer

    @router.post("/logout")
    def logout() -> Response:
        answer = as_json({"annotator": None})
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    return router

