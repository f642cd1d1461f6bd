"""Rounds of the data engine: which there were, and closing the one that is open before it has reached its goals."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from samtrain.annotator.errors import Refused
from samtrain.annotator.open_round import close_now
from samtrain.annotator.routes import Annotator, Body, as_json
from samtrain.annotator.service import Service


def routes(service: Service) -> APIRouter:
    """Returns the routes of rounds."""
    router = APIRouter(prefix="/api")
    store = service.store

    @router.get("/rounds")
    def rounds(annotator: Annotator) -> Response:
        return as_json([{key: value for key, value in asdict(each).items() if key != "model"} for each in store.rounds()])

    @router.post("/rounds/close")
    def close(annotator: Annotator, body: Body) -> Response:
        if body:
            raise Refused(400, "closing a round takes no fields: send {}")
        if store.annotators():
            words = "annotators do not close rounds: its owner gives task=annotate annotate.close_round=true annotate.store=..."
            raise Refused(403, words)
        number = close_now(store)
        service.forget_status()
        return as_json({"round": number, "state": "closed"})

    return router
