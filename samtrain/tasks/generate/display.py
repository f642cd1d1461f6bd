"""Shows the progress of task=generate: a live line on a terminal, and a line in the log from time to time elsewhere."""

from __future__ import annotations

import logging
import time

from rich.progress import Progress, TextColumn

from samtrain.data_engine.automatic.produce import Pace
from samtrain.terminal import console

log = logging.getLogger(__name__)

LINE_EVERY = 30  # seconds between lines in the log, if the output is not a terminal


class PaceDisplay:
    """Shows a `Pace` while the block runs, and logs it once more at the end."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._logged_at = time.monotonic()
        no_terminal = not console().is_terminal
        self._live = Progress(TextColumn("{task.description}"), console=console(), transient=True, disable=no_terminal)

    def __enter__(self) -> PaceDisplay:
        self._live.start()
        self._task = self._live.add_task(self.pace.line())
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        log.info(self.pace.line())

    def set(self, done: int, masks: int, refused: int) -> None:
        """Shows new totals."""
        pace = self.pace
        self.add(done - pace.done, masks - pace.masks, refused - pace.refused)

    def add(self, done: int, masks: int, refused: int) -> None:
        """Adds to the totals and shows them."""
        self.pace.add(done, masks, refused)
        self._live.update(self._task, description=self.pace.line())
        if self._live.disable and time.monotonic() - self._logged_at > LINE_EVERY:
            self._logged_at = time.monotonic()
            log.info(self.pace.line())
