"""`annotator=web`: a round of the data engine waits for people, and continues when they have done what it was told.

The engine and the server that people's pages talk to share nothing but the store. The engine adds images with the masks that
they have already, opens and closes rounds, and says which model helps and what there is to do. Everything that people accept
is in the store before their page says so: a killed run asks the store what there is, and does nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtrain.annotator.config import AnnotateConfig, ServeConfig
from samtrain.annotator.goals import Goals
from samtrain.data.opening import MAX_PIXELS
from samtrain.data_engine.interface import ImageAnnotation, RoundToAnnotate
from samtrain.files import write_text
from samtrain.plain import from_plain

if TYPE_CHECKING:
    from samtrain.annotator.store import Store

POLL = 1.0  # seconds between two looks at the store


class WebAnnotator:
    """Lets people annotate the images of a round in their browsers (`samtrain.data_engine.interface.RoundAnnotator`).

    images, masks, hours: what closes a round, whichever comes first; see `Goals`
    run_dir:    the store, the embeddings and the settings of the server are in it, unless `annotate` says otherwise
    annotate:   the config node `annotate`
    device, frame, max_image_pixels:  how the server shows images to the model
    poll:       seconds between two looks at the store
    """

    def __init__(
        self,
        *,
        images: int | None = None,
        masks: int | None = None,
        hours: float | None = None,
        run_dir: str = "",
        annotate: Mapping[str, Any] | None = None,
        device: str = "cpu",
        frame: str | None = None,
        max_image_pixels: int = MAX_PIXELS,
        poll: float = POLL,
    ) -> None:
        self.goals = Goals(images=images, masks=masks, hours=hours)
        self.run_dir, self.annotate = Path(run_dir), dict(annotate or {})
        self.server: dict[str, Any] = {"device": device, "frame": frame, "max_image_pixels": max_image_pixels}
        self.poll = poll

    @cached_property
    def store(self) -> Store:
        """The store, which is made when it is first asked for."""
        from samtrain.annotator.store import open_store

        return open_store(self.config.store)

    @cached_property
    def config(self) -> ServeConfig:
        """The settings of the server."""
        return ServeConfig.of_run(self.run_dir, from_plain(AnnotateConfig, self.annotate, "annotate"), **self.server)

    # ---- the page, which stays open

    @contextmanager
    def open_page(self) -> Iterator[None]:
        """Runs the server as long as the block lasts; `show_model` comes first."""
        from samtrain.annotator.server_process import ServerProcess
        from samtrain.annotator.store import Work

        with ServerProcess(self._server_config()):
            yield
            self.store.set_work(Work(kind="finished", message="All rounds have ended. Thank you!"))
            time.sleep(2 * self.poll)  # the server looks at the store about once a second, and then tells the pages

    def show_model(self, checkpoint: Path, digest: str, name: str, metrics: Mapping[str, float | None]) -> None:
        """Lets this model help from now on; the server swaps it under the open pages."""
        from samtrain.annotator.store import Model

        known = {key: value for key, value in metrics.items() if value is not None}
        model = Model(path=str(checkpoint.resolve()), digest=digest, name=name, metrics=known)
        if self.store.model() != model:
            self.store.set_model(model)

    def show_training(self, number: int, message: str) -> None:
        """Says what the engine does in round `number` while it does not need people."""
        from samtrain.annotator.store import Work

        self.store.set_work(Work(kind="training", round=number, message=message))

    # ---- one round

    def annotate_round(self, work: RoundToAnnotate) -> Iterator[tuple[int, ImageAnnotation | None]]:
        """Opens the round, waits until it is over, and yields what people have made of each image."""
        from samtrain.annotator.open_round import OpenRound

        opinions = self.config.annotate.opinions
        yield from OpenRound(self.store, work, self.goals, opinions=opinions, poll=self.poll).annotations()

    def _server_config(self) -> Path:
        """Writes the settings of the server process; returns their file."""
        path = self.run_dir / "annotate.json"
        write_text(path, self.config.to_json())
        return path
