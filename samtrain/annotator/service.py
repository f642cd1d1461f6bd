"""What all routes share: the store, the images, the encoder, the events, and the threads that answer clicks."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from samtrain.annotator.config import ServeConfig
from samtrain.annotator.encoding import AHEAD, CLICKED, OPENED, Encoder, Prepared
from samtrain.annotator.errors import Refused, Stale
from samtrain.annotator.events import Events
from samtrain.annotator.prompting import Decoded, MaskAnswer, Question, tile_of
from samtrain.annotator.store import ImageRow, Model, Store, Work
from samtrain.annotator.tiles import Images
from samtrain.files import digest
from samtrain.inference.embeddings import EmbeddingStore

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks at the store: what another process changes shows after this time
REMEMBERED = 4096  # images with their sizes in memory
IN_SIGHT = 50  # open images that prefetching looks at


class Service:
    """Holds the parts of one server process and answers what the routes ask."""

    def __init__(self, config: ServeConfig, store: Store) -> None:
        self.config, self.settings, self.store = config, config.annotate, store
        self.images = Images(int(self.settings.image_cache_mb * 1e6))
        self.events = Events()
        embeddings = EmbeddingStore(config.embeddings, round_to_half=False)
        self.encoder = Encoder(self.images, embeddings, torch.device(config.device), self._report)
        # one click at a time: a decoding uses all threads of torch, and two at once take longer than one after the other
        self.decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._rows: OrderedDict[int, ImageRow] = OrderedDict()
        self._newest: dict[tuple[str, int], int] = {}
        self._status: tuple[float, dict[str, Any]] | None = None
        self._status_lock = threading.Lock()
        self._ended = threading.Event()
        self._model: Model | None = None
        self._stamp: tuple[int, int] | None = None
        self._watcher = threading.Thread(target=self._watch, name="watch the store", daemon=True)
        self.saved = 0  # masks since the start

    def start(self) -> None:
        """Begins to watch the store for models and work."""
        self._watcher.start()

    def stop(self) -> None:
        """Ends all threads."""
        self._ended.set()
        self._watcher.join(timeout=10)
        self.decoding.shutdown(wait=False, cancel_futures=True)
        self.encoder.stop()

    # ---- images

    def image(self, image_id: int) -> ImageRow:
        """Returns what never changes of an image (file, name, size), from memory if it was asked for before."""
        found = self._rows.get(image_id)
        if found is None:
            found = self._rows[image_id] = self.store.image(image_id)
            if len(self._rows) > REMEMBERED:
                self._rows.popitem(last=False)
        return found

    def open_image(self, image: ImageRow) -> None:
        """Encodes an image that an annotator has opened, and then the ones that come next."""
        if self.encoder.model is None and self._model is None:
            return
        self.encoder.note_opened(image.id)
        self.encoder.request(image, OPENED)
        for each in self._next_images(image):
            self.encoder.request(each, AHEAD)

    def _next_images(self, image: ImageRow) -> list[ImageRow]:
        """Returns the images that will probably be opened next."""
        if not self.settings.prefetch:
            return []
        rows = self.store.images(state="open", limit=IN_SIGHT)
        free = [each for each in rows if each.leased_by is None and each.id != image.id]
        behind = [each for each in free if (each.rank, each.id) > (image.rank, image.id)]
        return (behind or free)[: self.settings.prefetch]

    # ---- clicks

    async def prompt(
        self, annotator: str, image: ImageRow, question: Question, *, seq: int, preview: bool
    ) -> tuple[Decoded, str]:
        """Returns what the decoder says and the digest of the model; waits for the image's embedding.

        The best mask is made already, and `mask` makes the others.

        Raises Stale for a preview that a newer request of the same annotator has overtaken.
        """
        key = (annotator, image.id)
        self._newest[key] = max(self._newest.get(key, 0), seq)
        loop, tile = asyncio.get_running_loop(), None
        while True:
            prepared = self.encoder.prepared(image.id)
            if prepared is None or prepared.misses(tile):
                self._check_model()
                waiting = asyncio.wrap_future(self.encoder.request(image, CLICKED, tile).future)
                prepared = await asyncio.shield(waiting)  # others wait for the same job, so nobody may cancel it
            tile, found = await loop.run_in_executor(self.decoding, self._answer, prepared, question, key, seq, preview)
            if found is not None:
                return found, prepared.model.about.digest

    def _answer(
        self, prepared: Prepared, question: Question, key: tuple[str, int], seq: int, preview: bool
    ) -> tuple[int | None, Decoded | None]:
        """Returns what the decoder says, or None and the tile that must be encoded first."""
        if preview and self._newest[key] > seq:
            raise Stale
        with prepared.lock:
            tile = tile_of(prepared.predictor, question)
            if prepared.misses(tile):
                return tile, None
            found = prepared.decode(question)
        if not all(map(math.isfinite, found.scores)):
            raise Refused(503, "the model answers with NaN, so its weights are broken: give another checkpoint")
        if preview and self._newest[key] > seq:  # a click came meanwhile; where it asks the same, the decoder has answered it
            raise Stale
        found.mask(found.best)
        return tile, found

    async def mask(self, decoded: Decoded, index: int) -> MaskAnswer:
        """Returns one of the masks at full resolution."""
        if index in decoded.made:
            return decoded.made[index]
        return await asyncio.get_running_loop().run_in_executor(self.decoding, decoded.mask, index)

    def _check_model(self) -> None:
        if self.encoder.problem is not None:
            raise Refused(503, self.encoder.problem)
        if self.encoder.model is None and self._model is None and self.store.model() is None:
            raise Refused(503, "there is no model yet: paint with the brush, or wait until one is trained")

    # ---- what the page shows

    def status(self) -> dict[str, Any]:
        """Returns what the status bar shows; counted at most about once a second."""
        with self._status_lock:
            if self._status is None or time.monotonic() - self._status[0] > POLL:
                self._status = time.monotonic(), self._count()
            return self._status[1]

    def _count(self) -> dict[str, Any]:
        found, work, model = self.store.statistics(), self.store.work(), self.store.model()
        return {
            **found,
            "model": self.model_in_use(),
            "work": None if work is None else asdict(work),
            "metrics": {} if model is None else model.metrics,
            "encoder": {"queue": len(self.encoder), **self.encoder.counts, "hit_rate": self.encoder.hit_rate},
        }

    def forget_status(self) -> None:
        """Lets the next status count again, because something was written."""
        self._status = None

    def model_in_use(self) -> dict[str, Any] | None:
        """Returns the name and digest of the model that answers clicks now."""
        model = self.encoder.model
        return None if model is None else {"name": model.about.name, "digest": model.about.digest}

    def is_swapping(self) -> bool:
        """Returns whether a newer model takes over soon: no image is handed out for the old one meanwhile."""
        newest, used = self.store.model(), self.encoder.model
        return newest is not None and used is not None and newest.digest not in (used.about.digest, self.encoder.refused)

    def model_digest(self) -> str | None:
        """Returns the digest of the model that answers clicks now."""
        return None if self.encoder.model is None else self.encoder.model.about.digest

    def _report(self, kind: str, content: dict[str, Any]) -> None:
        self.events.send(kind, content)
        if kind == "model":
            self.forget_status()

    # ---- the store, watched

    def _watch(self) -> None:
        """Looks at the store about once a second: a new model is loaded, and open pages are told what has changed."""
        work: Work | None = None
        last: dict[str, Any] = {}
        troubled = False
        while not self._ended.is_set():
            try:
                self._look_for_model()
                if (found := self.store.work()) != work:
                    work = found
                    self.forget_status()
                    self.events.send("work", {} if work is None else asdict(work))
                if len(self.events) and (status := self.status()) != last:
                    last = status
                    self.events.send("status", status)
                troubled = False
            except Exception as error:  # a database that is away for a moment must not end the watch
                if not troubled:
                    log.warning("The store cannot be read now, and is asked again: %s", error)
                troubled = True
            self._ended.wait(POLL)

    def _look_for_model(self) -> None:
        model = self.store.model()
        if model is None:
            return
        stamp = _stamp(Path(model.path))
        if model == self._model and stamp == self._stamp:
            return
        if model == self._model and stamp is not None:  # the file itself was replaced
            model = Model(model.path, digest(model.path), model.name, model.metrics)
            self.store.set_model(model)
        is_same = self._model is not None and self._model.digest == model.digest
        self._model, self._stamp = model, stamp
        if not is_same:
            self.encoder.use(model, self.config.frame)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
