"""Encodes images in the background: one worker, a queue by priority, embeddings on disk, and the model that is in use.

What is looked at now comes before what is opened next. There is no time-out: an image is encoded, or the answer says why not.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from samtrain.annotator.errors import Refused
from samtrain.annotator.prompting import Decoded, Question, decode
from samtrain.annotator.store import ImageRow, Model
from samtrain.annotator.tiles import Images
from samtrain.inference.embeddings import EmbeddingStore
from samtrain.inference.frames import make_predictor, resizing_predictor
from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.modeling.build import load_sam
from samtrain.modeling.sam import Sam

log = logging.getLogger(__name__)

# what comes first: a click that waits, the image that was opened, a new model, and images that will be opened
CLICKED, OPENED, SWAP, AHEAD = range(4)
KEPT = 8  # images whose embeddings and projections stay in memory: 35 MB each for a ViT-B
RECENT = 300.0  # seconds: images used since then get their embedding of a new model before it takes over
TILES_AHEAD = 64  # an image of more tiles has each encoded when a click needs it


@dataclass(frozen=True)
class LoadedModel:
    """The model that answers clicks, with what the status bar says about it, and a predictor without an image."""

    about: Model
    sam: Sam
    blank: SamPredictor

    def predictor(self) -> SamPredictor:
        """Returns a predictor for one image."""
        predictor = copy.copy(self.blank)
        predictor.reset_image()
        return predictor


@dataclass
class Prepared:
    """An image with its embedding: what clicks are answered on. Threads take its lock while they use the predictor."""

    image: ImageRow
    model: LoadedModel
    predictor: SamPredictor
    lock: threading.Lock = field(default_factory=threading.Lock)
    answered: tuple[Question, Decoded] | None = None  # the last question: a click often repeats the preview before it
    used: float = field(default_factory=time.monotonic)

    def misses(self, tile: int | None) -> bool:
        """Returns whether the embedding of a tile is still to be made."""
        return tile is not None and isinstance(self.predictor, TiledPredictor) and tile not in self.predictor.features

    def decode(self, question: Question) -> Decoded:
        """Asks the decoder, unless the same was asked just before; the caller holds the lock."""
        if self.answered is None or self.answered[0] != question:
            self.answered = question, decode(self.predictor, question)
        return self.answered[1]


@dataclass
class Job:
    """An image, or a tile of it, that waits to be encoded; `error` says why it could not be."""

    image: ImageRow
    tile: int | None
    priority: int
    future: Future[Prepared] = field(default_factory=Future)
    state: str = "queued"
    error: str | None = None


class Encoder:
    """Encodes images one after another, in a thread of its own.

    images:   decodes them
    store:    keeps embeddings on disk
    device:   of the model
    report:   takes an event about an image or the model as plain JSON, from any thread
    """

    def __init__(
        self, images: Images, store: EmbeddingStore, device: torch.device, report: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.images, self.store, self.device, self.report = images, store, device, report
        self.model: LoadedModel | None = None
        self.problem: str | None = None  # why there is no model
        self.refused: str | None = None  # the digest of the last model that could not be loaded
        self.counts: Counter[str] = Counter()  # encoded, found, ahead (opened when it was ready), late (when it was not)
        self._prepared: OrderedDict[int, Prepared] = OrderedDict()
        self._encoded: set[int] = set()  # images that have an embedding of the current model, in memory or on disk
        self._jobs: dict[tuple[int, int | None], Job] = {}
        self._heap: list[tuple[int, int, Any]] = []
        self._number = itertools.count()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the worker after what it does now; whoever still waits gets an error."""
        with self._wake:
            self._stopped = True
            waiting = list(self._jobs.values())
            self._wake.notify_all()
        for job in waiting:
            _fail(job.future, Refused(503, "the server is stopping"))
        self._thread.join(timeout=10)

    # ---- asking

    def prepared(self, image_id: int) -> Prepared | None:
        """Returns the image if its embedding of the current model is in memory."""
        with self._wake:
            found = self._prepared.get(image_id)
            if found is None or found.model is not self.model:
                return None
            self._prepared.move_to_end(image_id)
            found.used = time.monotonic()
            return found

    def request(self, image: ImageRow, priority: int, tile: int | None = None) -> Job:
        """Puts an image, or one of its tiles, into the queue; a job that is there already moves up if this is more urgent."""
        with self._wake:
            ready = self._prepared.get(image.id)
            if ready is not None and ready.model is self.model and not ready.misses(tile):
                job = Job(image, tile, priority, state="done")
                job.future.set_result(ready)
                return job
            known = self._jobs.get((image.id, tile))
            job = known or Job(image, tile, priority)
            if known is None:
                self._jobs[image.id, tile] = job
                self._push(job)
            elif priority < job.priority and job.state == "queued":
                job.priority = priority
                self._push(job)
            self._wake.notify_all()
        if job.state == "queued":
            self._tell(job, position=self.position(job))
        return job

    def note_opened(self, image_id: int) -> None:
        """Counts whether an image that is opened now has been encoded ahead."""
        self.counts["ahead" if self.prepared(image_id) else "late"] += 1

    def position(self, job: Job) -> int:
        """Returns how many jobs come before this one."""
        with self._wake:
            return sum(other.priority <= job.priority and other is not job for other in self._jobs.values())

    def state_of(self, image_id: int) -> str:
        """Returns "done", "running", "queued" or "none"."""
        if self.prepared(image_id) is not None:
            return "done"
        with self._wake:
            states = {job.state for (number, _), job in self._jobs.items() if number == image_id}
        return next((state for state in ("running", "queued") if state in states), "none")

    def encoded(self) -> set[int]:
        """Returns the images that need no wait: this process knows an embedding of the current model for them."""
        with self._wake:
            return set(self._encoded)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def hit_rate(self) -> float | None:
        """The share of opened images that had been encoded ahead; None before the first."""
        opened = self.counts["ahead"] + self.counts["late"]
        return self.counts["ahead"] / opened if opened else None

    # ---- the model

    def use(self, about: Model, frame: str | None) -> None:
        """Loads a model in the background; it takes over when it is ready and the images in use are encoded for it."""

        def load() -> None:
            try:
                sam = load_sam(about.path).to(self.device).eval()
                model = LoadedModel(about, sam, make_predictor(sam, frame=frame))
            except Exception as error:  # a file that is cut short, of another program, or gone
                self._cannot_load(about, error)
                return
            with self._wake:
                priority = SWAP if self.model else CLICKED  # without a model, nothing else can be done
                heapq.heappush(self._heap, (priority, -next(self._number), model))
                self._wake.notify_all()

        threading.Thread(target=load, name="load model", daemon=True).start()

    def _cannot_load(self, about: Model, error: Exception) -> None:
        sentence = f"the model {about.name or about.path} cannot be loaded ({error})"
        log.error("%s", sentence)
        self.report("model", {"name": about.name, "digest": about.digest, "error": sentence})
        with self._wake:
            self.refused = about.digest
            if self.model is None:
                self.problem = sentence
                failed = [job for job in self._jobs.values() if job.state == "queued"]
                for job in failed:
                    del self._jobs[job.image.id, job.tile]
        if self.model is None:
            for job in failed:
                self._fail_job(job, Refused(503, sentence))

    def _swap(self, model: LoadedModel) -> None:
        """Encodes the images in use for a new model, then lets it take over; no click is answered by half of each."""
        recent = [each.image for each in self._prepared.values() if time.monotonic() - each.used < RECENT]
        ready: OrderedDict[int, Prepared] = OrderedDict()
        for image in recent:
            try:
                ready[image.id] = self._encode(Job(image, None, SWAP), model, None)
            except Exception as error:
                log.warning("%s could not be encoded for the new model: %s", image.name, error)
        with self._wake:
            self.model, self.problem, self._prepared, self._encoded = model, None, ready, set(ready)
            self._wake.notify_all()
        log.info("The model is now %s (%s).", model.about.name or model.about.path, model.about.digest[:12])
        self.report("model", {"name": model.about.name, "digest": model.about.digest, "metrics": model.about.metrics})

    # ---- the worker

    def _push(self, job: Job) -> None:
        heapq.heappush(self._heap, (job.priority, next(self._number), job))

    def _next(self) -> Job | LoadedModel | None:
        """Waits for the most urgent job that can be done now; None when the worker shall end."""
        with self._wake:
            while not self._stopped:
                if self._heap and (self.model is not None or isinstance(self._heap[0][2], LoadedModel)):
                    priority, _, item = heapq.heappop(self._heap)
                    if isinstance(item, LoadedModel):
                        return item
                    if item.state == "queued" and item.priority == priority:  # it may have moved up since
                        item.state = "running"
                        return item
                    continue
                if self._heap and self.problem is not None:  # without a model nothing can be encoded
                    job = heapq.heappop(self._heap)[2]
                    self._jobs.pop((job.image.id, job.tile), None)
                    self._fail_job(job, Refused(503, self.problem))
                    continue
                self._wake.wait()
        return None

    def _work(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, LoadedModel):
                self._swap(item)
            else:
                self._run(item)

    def _run(self, job: Job) -> None:
        begin = time.monotonic()
        self._tell(job)
        model = self.model
        assert model is not None
        try:
            found = self._encode(job, model, self._prepared.get(job.image.id))
        except Exception as error:
            with self._wake:
                self._jobs.pop((job.image.id, job.tile), None)
            self._fail_job(job, error if isinstance(error, Refused) else _explained(job.image, error))
            return
        with self._wake:
            self._jobs.pop((job.image.id, job.tile), None)
            self._prepared[job.image.id] = found
            self._encoded.add(job.image.id)
            self._prepared.move_to_end(job.image.id)
            while len(self._prepared) > KEPT:
                self._prepared.popitem(last=False)
        job.state = "done"
        self._tell(job, seconds=round(time.monotonic() - begin, 3))
        if not job.future.done():
            job.future.set_result(found)

    def _encode(self, job: Job, model: LoadedModel, known: Prepared | None) -> Prepared:
        """Returns an image with its embedding, from the disk or else by the model."""
        image, tile = job.image, job.tile
        if known is None or known.model is not model:
            predictor = model.predictor()
            if isinstance(predictor, TiledPredictor) and predictor.embedding_shape(image.size)[0] > TILES_AHEAD:
                predictor.set_image(self.images.pixels(image))
                predictor.image = torch.empty(3, 0, 0, dtype=torch.uint8)  # tiles are read from the bounded cache of images
            else:
                found = self.store.set_image(predictor, self.images.pixels(image))
                self.counts["found" if found else "encoded"] += 1
            known = Prepared(image, model, predictor)
        if tile is not None and known.misses(tile):
            assert isinstance(known.predictor, TiledPredictor)
            self._encode_tile(known, known.predictor, tile)
        return known

    def _encode_tile(self, prepared: Prepared, predictor: TiledPredictor, tile: int) -> None:
        """Sets the embedding of one tile of a large image; on disk a tile is kept like an image of its own."""
        x, y = predictor.tiles[tile].tolist()
        height, width = predictor.input_size
        alone = resizing_predictor(prepared.model.sam)
        pixels = self.images.pixels(prepared.image)[y : y + height, x : x + width]
        found = self.store.set_image(alone, pixels)
        self.counts["found" if found else "encoded"] += 1
        with prepared.lock:
            predictor.features[tile] = alone.get_image_embedding()[0]

    def _fail_job(self, job: Job, error: Refused) -> None:
        job.error, job.state = error.sentence, "failed"  # in this order, because a request may read both at any moment
        log.warning("%s was not encoded: %s", job.image.name, error.sentence)
        self._tell(job, error=error.sentence)
        _fail(job.future, error)

    def _tell(self, job: Job, **more: Any) -> None:
        self.report("encoding", {"image": job.image.id, "state": job.state, **more})


def _explained(image: ImageRow, error: Exception) -> Refused:
    """Returns what a client is told about an error while an image was encoded."""
    if isinstance(error, ValueError):
        return Refused(503, f"{image.name} could not be encoded: {error}")
    log.error("Encoding %s failed.", image.name, exc_info=error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Refused(503, f"the memory is too small to encode {image.name} with this model")
    return Refused(503, f"{image.name} could not be encoded ({type(error).__name__}); the server's log says more")


def _fail(future: Future[Prepared], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
