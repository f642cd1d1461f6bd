"""Export: the accepted masks as one file to download."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from samtrain.annotator.routes import Annotator
from samtrain.annotator.service import Service
from samtrain.annotator.store.rows import one_of
from samtrain.annotator.transfer import FORMATS, export_store


def routes(service: Service) -> APIRouter:
    """Returns the route of exports."""
    router = APIRouter(prefix="/api")

    @router.get("/export")
    def export(annotator: Annotator, format: str = "coco") -> Response:
        one_of(format, tuple(FORMATS), "format")
        folder = tempfile.TemporaryDirectory(prefix="samtrain_export_")
        (found,) = export_store(service.store, Path(folder.name), [format])
        path = found.path
        if path.is_dir():
            path = Path(folder.name) / f"{format}.tar"
            with tarfile.open(path, "w") as tar:
                tar.add(found.path, arcname=format)
        return FileResponse(path, filename=path.name, background=BackgroundTask(folder.cleanup))

    return router
