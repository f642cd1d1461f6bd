"""Masks: accepted when they are on disk, changed with the lease of their image."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from samtrain.annotator.errors import Refused
from samtrain.annotator.requests import changes_of, check_fields, flag, new_mask, text_or_none, whole
from samtrain.annotator.routes import Annotator, Body, Id, as_json
from samtrain.annotator.service import Service
from samtrain.annotator.store import MaskRow, NotFound
from samtrain.annotator.store.rows import MASK_STATES, one_of
from samtrain.ops.rle import rle_area, rle_difference, to_compressed

NAMES = {"image_id": "image", "predicted_iou": "score", "point_coords": "points", "point_labels": "labels"}  # ours: in JSON


def routes(service: Service) -> APIRouter:
    """Returns the routes of masks."""
    router = APIRouter(prefix="/api")
    store = service.store

    @router.get("/images/{image_id}/masks")
    def masks(image_id: Id, annotator: Annotator, state: str = "accepted") -> Response:
        states = state.split(",")[:8]
        for each in states:
            one_of(each, MASK_STATES, "state")
        return as_json([as_plain(mask) for mask in store.masks(image_id, states, annotator=annotator)])

    @router.post("/images/{image_id}/masks")
    def accept(image_id: Id, annotator: Annotator, body: Body) -> Response:
        mask = new_mask(body, service.model_digest())
        saved = None if mask.request is None else store.saved(image_id, annotator, mask.request)
        if saved is not None:  # said again, because the first answer was lost on its way
            return as_json(as_plain(saved), 201)
        if flag(body, "disjoint"):
            mask = replace(mask, segmentation=_disjoint(service, image_id, annotator, mask.segmentation, mask.parent))
        found = store.accept(image_id, annotator, mask, text_or_none(body, "lease"))
        service.saved += 1
        service.forget_status()
        return as_json(as_plain(found), 201)

    @router.get("/masks/{mask_id}")
    def mask(mask_id: Id, annotator: Annotator) -> Response:
        return as_json(as_plain(store.mask(mask_id, annotator=annotator)))

    @router.put("/masks/{mask_id}")
    def change(mask_id: Id, annotator: Annotator, body: Body) -> Response:
        revision = None if body.get("revision") is None else whole(body, "revision")
        found = store.change(mask_id, annotator, changes_of(body), text_or_none(body, "lease"), revision)
        service.forget_status()
        return as_json(as_plain(found))

    @router.delete("/masks/{mask_id}")
    def delete(mask_id: Id, annotator: Annotator, body: Body) -> Response:
        check_fields(body, ("lease", "revision"))
        revision = None if body.get("revision") is None else whole(body, "revision")
        found = store.delete(mask_id, annotator, text_or_none(body, "lease"), revision)
        service.forget_status()
        return as_json(as_plain(found))

    # the same masks by the path of their image

    @router.get("/images/{image_id}/masks/{mask_id}")
    def mask_of(image_id: Id, mask_id: Id, annotator: Annotator) -> Response:
        _check_place(service, image_id, mask_id, annotator)
        return mask(mask_id, annotator)

    @router.put("/images/{image_id}/masks/{mask_id}")
    def change_of(image_id: Id, mask_id: Id, annotator: Annotator, body: Body) -> Response:
        _check_place(service, image_id, mask_id, annotator)
        return change(mask_id, annotator, body)

    @router.delete("/images/{image_id}/masks/{mask_id}")
    def delete_of(image_id: Id, mask_id: Id, annotator: Annotator, body: Body) -> Response:
        _check_place(service, image_id, mask_id, annotator)
        return delete(mask_id, annotator, body)

    return router


def as_plain(mask: MaskRow) -> dict[str, Any]:
    """Returns a mask as JSON has it."""
    content = asdict(mask)
    return {NAMES.get(name, name): value for name, value in content.items()}


def _check_place(service: Service, image_id: int, mask_id: int, annotator: str) -> None:
    if service.store.mask(mask_id, annotator=annotator).image_id != image_id:
        raise NotFound(f"there is no mask {mask_id} of image {image_id}")


def _disjoint(service: Service, image_id: int, annotator: str, segmentation: Any, parent: int | None) -> Any:
    """Returns a mask without the pixels of the masks that are there."""
    rle = to_compressed(segmentation, service.image(image_id).size)
    others = [mask.segmentation for mask in service.store.masks(image_id, annotator=annotator) if mask.id != parent]
    found = rle_difference(rle, others)
    if rle_area(found) == 0:
        raise Refused(400, "other masks cover this one, and nothing is left of it: set disjoint to false, or draw it larger")
    return found
