"""Images: the list, leases, tiles, encoding, prompts, drafts, and being done with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from samtrain.annotator.encoding import OPENED
from samtrain.annotator.errors import Refused, Stale
from samtrain.annotator.prompting import Decoded
from samtrain.annotator.requests import check_fields, flag, question_of, text_or_none, whole
from samtrain.annotator.routes import MAX_ID, Annotator, Body, Id, as_json, to_json
from samtrain.annotator.service import Service
from samtrain.annotator.sources import stamp_of
from samtrain.annotator.store import ImageRow, Lease
from samtrain.annotator.store.rows import IMAGE_STATES, SPLITS, one_of
from samtrain.annotator.tiles import TILE, levels, to_jpeg, to_png

MAX_LISTED = 1000  # images in one answer
LINES = "application/x-ndjson"  # of a client that takes the candidates one by one
Count = Annotated[int, Query(ge=0, le=MAX_ID)]


def routes(service: Service) -> APIRouter:
    """Returns the routes of images."""
    router = APIRouter(prefix="/api")
    store, seconds = service.store, service.settings.lease_seconds

    @router.get("/images")
    def images(
        annotator: Annotator, state: str | None = None, split: str | None = None, limit: Count = MAX_LISTED, offset: Count = 0
    ) -> Response:
        for value, allowed, name in ((state, IMAGE_STATES, "state"), (split, SPLITS, "split")):
            if value is not None:
                one_of(value, allowed, name)
        rows = store.images(state=state, split=split, limit=min(limit, MAX_LISTED), offset=offset)
        ready = service.encoder.encoded()
        return as_json([as_plain(row, encoded=row.id in ready) for row in rows])

    @router.get("/images/{image_id}")
    def image(image_id: Id, annotator: Annotator) -> Response:
        return as_json(_whole(service, store.image(image_id)))

    # ---- leases

    @router.post("/next")
    def next_image(annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("after",))
        after = None if body.get("after") is None else whole(body, "after")
        if service.is_swapping():
            return as_json({"image": None, "reason": "waiting", "message": "A newer model takes over first."})
        lease = store.lease_next(annotator, seconds, after=after)
        if lease is None:
            return as_json({"image": None, **_why_none(service)})
        found = store.image(lease.image_id)
        service.open_image(found)
        return as_json({"image": _whole(service, found), "lease": _lease(lease)})

    @router.post("/images/{image_id}/lease")
    def take(image_id: Id, annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("token",))
        token = text_or_none(body, "token")
        if token is not None:
            return as_json(_lease(store.heartbeat(image_id, annotator, token, seconds)))
        lease = store.lease(image_id, annotator, seconds)
        service.open_image(store.image(image_id))
        return as_json(_lease(lease))

    @router.delete("/images/{image_id}/lease")
    def release(image_id: Id, annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("token",))
        token = text_or_none(body, "token")
        if token is None and store.image(image_id).leased_by == annotator:
            token = store.lease(image_id, annotator, seconds).token
        if token is not None:
            store.release(image_id, token)
        return as_json({"released": token is not None})

    @router.post("/images/{image_id}/finish")
    def finish(image_id: Id, annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("state", "lease"))
        state, token = text_or_none(body, "state") or "done", text_or_none(body, "lease")
        found = store.reopen(image_id, annotator) if state == "open" else store.finish(image_id, annotator, token, state)
        service.forget_status()
        return as_json(_whole(service, found))

    # ---- pixels

    @router.get("/images/{image_id}/tiles/{level}/{column}/{row}")
    def tile(image_id: Id, level: Id, column: Id, row: Id, annotator: Annotator, request: Request) -> Response:
        found = service.image(image_id)
        headers = {"cache-control": "private, no-cache"}
        with suppress(OSError):  # reading says what is wrong
            headers["etag"] = f'"{stamp_of(found.source)}-{level}-{column}-{row}"'
        if "etag" in headers and request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        data = service.images.tile(found, min(level, 64), column, row)
        return Response(data, media_type="image/jpeg", headers=headers)

    @router.get("/images/{image_id}/pixels")
    def pixels(
        image_id: Id, annotator: Annotator, max_side: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None, kind: str = "png"
    ) -> Response:
        one_of(kind, ("png", "jpeg"), "kind")
        found = service.images.whole(service.image(image_id), max_side)
        return Response(to_png(found) if kind == "png" else to_jpeg(found), media_type=f"image/{kind}")

    # ---- the model

    @router.post("/images/{image_id}/encode")
    def encode(image_id: Id, annotator: Annotator) -> Response:
        job = service.encoder.request(service.image(image_id), OPENED)
        told = {"image": image_id, "state": job.state, "position": service.encoder.position(job)}
        return as_json(told if job.error is None else told | {"error": job.error})

    @router.post("/images/{image_id}/prompts")
    async def prompts(image_id: Id, annotator: Annotator, body: Body, request: Request) -> Response:
        found = await run_in_threadpool(service.image, image_id)
        seq, preview = whole(body, "seq", 0), flag(body, "preview")
        question = question_of(body, found.size, service.settings.max_points)
        try:
            decoded, model = await service.prompt(annotator, found, question, seq=seq, preview=preview)
        except Stale:
            return as_json({"error": "a newer request has overtaken this preview", "seq": seq, "stale": True}, 409)
        except Refused as refused:
            raise Refused(refused.status, refused.sentence, seq=seq, **refused.extra) from refused
        if LINES in request.headers.get("accept", ""):
            return StreamingResponse(_in_lines(service, decoded, {"seq": seq, "model": model}), media_type=LINES)
        wanted = [decoded.best] if preview else range(len(decoded.scores))
        candidates = [(await service.mask(decoded, index)).to_plain() for index in wanted]
        return as_json({"seq": seq, "candidates": candidates, "model": model})

    # ---- drafts

    @router.get("/images/{image_id}/draft")
    def draft(image_id: Id, annotator: Annotator) -> Response:
        store.image(image_id)
        found = store.draft(image_id, annotator)
        return as_json({"content": None, "seq": 0} if found is None else {"content": found.content, "seq": found.seq})

    @router.put("/images/{image_id}/draft")
    def save_draft(image_id: Id, annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("content", "seq"))
        found = store.save_draft(image_id, annotator, body.get("content"), whole(body, "seq", 0))
        return as_json({"seq": found.seq})

    @router.delete("/images/{image_id}/draft")
    def drop_draft(image_id: Id, annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("seq",))
        store.drop_draft(image_id, annotator, None if body.get("seq") is None else whole(body, "seq"))
        return as_json({"content": None, "seq": 0})

    return router


def as_plain(image: ImageRow, *, encoded: bool) -> dict[str, Any]:
    """Returns what a client may know of an image; where its file lies is not part of it."""
    return {
        "id": image.id, "name": image.name or image.key, "width": image.width, "height": image.height, "state": image.state,
        "split": image.split, "round": image.round, "masks": image.masks, "leased_by": image.leased_by,
        "done_by": image.done_by, "encoded": encoded,
    }  # fmt: skip


def _whole(service: Service, image: ImageRow) -> dict[str, Any]:
    content = as_plain(image, encoded=image.id in service.encoder.encoded())
    return content | {"levels": levels(image.size), "tile_size": TILE, "encoding": service.encoder.state_of(image.id)}


async def _in_lines(service: Service, decoded: Decoded, about: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yields the candidates as lines of JSON, the best one first, so that a page can show it while the others are made."""
    others = [index for index in range(len(decoded.scores)) if index != decoded.best]
    for index in (decoded.best, *others):
        candidate = (await service.mask(decoded, index)).to_plain()
        yield to_json({**about, "scores": decoded.scores, "index": index, "candidate": candidate}) + b"\n"


def _lease(lease: Lease) -> dict[str, Any]:
    return {"token": lease.token, "expires_in": lease.expires_in, "opinion": lease.opinion}


def _why_none(service: Service) -> dict[str, str]:
    """Returns why no image is handed out: all are done, others work on the rest, or the engine is busy."""
    work = service.store.work()
    if work is not None and work.kind == "training":
        return {"reason": "waiting", "message": work.message or "The model is being trained. The next images come soon."}
    if service.store.count_images(state="open"):
        return {"reason": "leased", "message": "Others work on the images that are left. Try again in a minute."}
    thanks = "Thank you. To change one of them, click it in the list of images."
    return {"reason": "finished", "message": (work.message if work else "") or thanks}
