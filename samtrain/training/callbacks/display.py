"""Shows the speed and the progress of a training: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table

from samtrain import terminal
from samtrain.types import Batch

FIRST = ("step", "left", "loss", "images/s")  # what a narrow terminal shows first
WINDOW = 50  # number of batches that speeds are averaged over


class Throughput(pl.Callback):
    """Measures images and masks per second, and the share of time in which the loop waits for data.

    It averages over the last batches of this rank and multiplies by the number of ranks; validation and checkpoints do not
    count. It logs `speed/*`, which `metrics.csv` leaves out. The module must be a `LitSam`, which notes `waiting_since`.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float, int, int]] = deque(maxlen=WINDOW)  # wait, work, images, objects
        self._began = 0.0
        self._wait = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._began = time.perf_counter()
        self._wait = self._began - pl_module.waiting_since

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        ranks = trainer.world_size
        work = time.perf_counter() - self._began
        self._batches.append((self._wait, work, len(batch.images) * ranks, len(batch.masks) * ranks))
        if trainer.global_step % trainer.log_every_n_steps == 0 and not trainer.fit_loop._should_accumulate():
            pl_module.log_row({f"speed/{name}": value for name, value in self.speeds().items()}, trainer.global_step)

    def speeds(self) -> dict[str, float]:
        """Returns `images_per_s`, `masks_per_s` and `data_wait` from 0 to 1; an empty dict before the first batch."""
        if not self._batches:
            return {}
        wait, work, images, masks = (sum(column) for column in zip(*self._batches, strict=True))
        seconds = max(wait + work, 1e-9)
        return {"images_per_s": images / seconds, "masks_per_s": masks / seconds, "data_wait": wait / seconds}


class ProgressDisplay(ProgressBar):
    """Shows step, loss, time left and speed; results of validations stay on the screen. Must come after `Throughput`."""

    def __init__(self, *, every_seconds: float = 30.0, console: Console | None = None) -> None:
        """`every_seconds` is the time between two lines where there is no terminal."""
        super().__init__()
        self.console = console or terminal.console()
        self.every_seconds = every_seconds if not self.console.is_terminal else 0.25
        self._enabled = True
        self._live: Any = None
        self._shown_at = 0.0
        self._first: tuple[float, int] | None = None  # time and number of this process's first step

    def disable(self) -> None:
        """Turns the display off; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first, self._shown_at = None, time.perf_counter()
        if self._enabled and self.console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now, step = time.perf_counter(), trainer.global_step
        if self._first is None and step > 0:
            self._first = (now, step)
        last = step == trainer.max_steps
        if self._enabled and (now - self._shown_at >= self.every_seconds or last):
            self._shown_at = now
            self._show(trainer, self.status(trainer, now))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        now = time.perf_counter()
        if not self._enabled or trainer.sanity_checking or (self._live is None and now - self._shown_at < self.every_seconds):
            return
        self._shown_at = now
        batches = sum(trainer.num_val_batches)
        of_all = f" of {batches}" if batches != float("inf") else ""
        self._show(trainer, {"step": _step(trainer), "": f"validation, batch {batch_idx + 1}{of_all}"})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled and not trainer.sanity_checking:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            scores = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
            wraps = not self.console.is_terminal  # in a file one line must not wrap
            self.console.print(f"step {_step(trainer)}  {scores}", highlight=False, soft_wrap=wraps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.console.print(*args, **kwargs)

    def status(self, trainer: pl.Trainer, now: float) -> dict[str, str]:
        """Returns what is shown: {name: text}."""
        status = {"step": _step(trainer), "loss": f"{float(trainer.callback_metrics.get('train/loss', 0)):.4f}"}
        speeds = next((c.speeds() for c in trainer.callbacks if isinstance(c, Throughput)), {})
        if speeds:
            status["images/s"] = f"{speeds['images_per_s']:.1f}"
            status["masks/s"] = f"{speeds['masks_per_s']:.0f}"
            status["data wait"] = f"{100 * speeds['data_wait']:.0f} %"
        if self._first is not None and trainer.global_step > self._first[1] and trainer.max_steps > 0:
            seconds = (now - self._first[0]) / (trainer.global_step - self._first[1])
            status["left"] = _clock(seconds * (trainer.max_steps - trainer.global_step))
        return status

    def _show(self, trainer: pl.Trainer, status: dict[str, str]) -> None:
        texts = [f"{name} {text}".strip() for name, text in status.items()]
        if self._live is None:
            self.console.print("  ".join(texts), highlight=False, soft_wrap=True)
            return
        width = 24 if self.console.width >= 90 else 8
        fitting = _fitting(status, self.console.width - width - 2)
        table = Table.grid(padding=(0, 2))
        table.add_row(Bar(total=max(trainer.max_steps, 1), completed=trainer.global_step, width=width), *fitting)
        self._live.update(table, refresh=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _fitting(status: dict[str, str], width: int) -> list[str]:
    """Returns as many texts as fit, chosen by importance, in their original order."""
    by_rank = sorted(status, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    chosen: set[str] = set()
    for name in by_rank:
        needed = len(f"{name} {status[name]}".strip()) + 2
        if needed > width:
            break
        chosen.add(name)
        width -= needed
    return [f"{name} {text}".strip() for name, text in status.items() if name in chosen]


def _step(trainer: pl.Trainer) -> str:
    return f"{trainer.global_step}/{trainer.max_steps}" if trainer.max_steps > 0 else str(trainer.global_step)


def _clock(seconds: float) -> str:
    """Returns 1:02:03 or 2:03."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
