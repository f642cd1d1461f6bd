"""`task=generate`: fully automatic masks of a folder of images, written as SA-1B's tars (paper, stage 3)."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress, TextColumn

from samtrain.data_engine.automatic.config import GenerateConfig
from samtrain.data_engine.automatic.fragments import Fragments
from samtrain.data_engine.automatic.inputs import InputImage, digest_of, list_images
from samtrain.data_engine.automatic.produce import Pace, Part, produce
from samtrain.data_engine.automatic.release import ReleaseForm
from samtrain.files import digest
from samtrain.report.page import write_report
from samtrain.run.build import device_of, make_generator
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.image_sets import data_config
from samtrain.run.processes import CONTEXT, as_worker, run_together
from samtrain.run.settings import Config, read
from samtrain.run.targets import build
from samtrain.tasks.generate.results import compare_with_truth, draw_panels, generated_metrics, write_generated
from samtrain.terminal import console

log = logging.getLogger(__name__)

LINE_EVERY = 30  # seconds, where the output is no terminal


def run(config: Config, run_dir: Path) -> Metrics:
    """Finish this part of the images; whoever finishes the last one writes the manifest. Killed, it goes on."""
    begin = time.perf_counter()
    settings = read(GenerateConfig, config, "generate")
    _check(config, settings)
    assert settings.input is not None
    images = list_images(settings.input)
    output = Path(settings.output or run_dir / "shards")
    settings = replace(settings, output=str(output))
    facts = _facts(config, settings, images)
    fragments = Fragments(output, len(images), settings.images_per_shard)
    fragments.begin(facts)

    counts = _work(config, settings, images, fragments)
    total = fragments.close_all(facts)
    if total is None:
        total = {**facts, **fragments.so_far()}
        log.info("this part is finished, others are at work: %d of %d images", total["images"], len(images))
    for name, reason in total["refused"][:20]:
        log.warning("left out: %s (%s)", name, reason)

    metrics = generated_metrics(total, seconds=counts.seconds, new=counts.done)
    tars = sorted(output.glob("*.tar"))
    truth = compare_with_truth(tars, images, settings.first_image_id) if settings.truth and tars else None
    if truth is not None:
        metrics.update({f"generated/{key}": value for key, value in truth.items() if not isinstance(value, list)})
    draw_panels(run_dir, tars, settings.panels)
    write_generated(run_dir, total, truth)
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info(
        "%s: %d images, %d masks, %d left out", output, total["images"], total["masks"], len(total["refused"])
    )
    log.info("report: %s", write_report(run_dir))
    return metrics


# ---- who does what


def _work(config: Config, settings: GenerateConfig, images: list[InputImage], fragments: Fragments) -> Pace:
    """This part's workers, to their end; ValueError where one of them failed."""
    count = settings.num_workers
    parts = [Part(settings.part * count + i, settings.num_parts * count) for i in range(count)]
    todo = sum(not fragments.is_finished(n) for part in parts for n in part.numbers(len(images)))
    pace = Pace(todo)
    if not todo:
        return pace
    log.info("%d of %d images to do, %d processes, into %s", todo, len(images), count, fragments.output)
    if count == 1:
        with _Display(pace) as display:
            _run_worker(config, settings, images, parts[0], lambda *counts: display.add(1, *counts))
        return pace
    counters = [CONTEXT.Value("q", 0) for _ in range(3)]
    workers = [
        CONTEXT.Process(target=_worker, args=(config, settings, images, part, counters), name=f"part {part.index}")
        for part in parts
    ]
    with _Display(pace) as display:
        run_together(
            workers,
            "with the same generate.output",
            meanwhile=lambda: display.set(*(counter.value for counter in counters)),
        )
    return pace


def _worker(config: Config, settings: GenerateConfig, images: list[InputImage], part: Part, counters: Any) -> None:
    """What a process of several does."""

    def report(masks: int, refused: bool) -> None:
        for counter, value in zip(counters, (1, masks, int(refused)), strict=True):
            with counter.get_lock():
                counter.value += value

    with as_worker(settings.num_workers):
        _run_worker(config, settings, images, part, report)


def _run_worker(config: Config, settings: GenerateConfig, images: list[InputImage], part: Part, report: Any) -> None:
    assert settings.output is not None
    produce(
        images,
        make_generator(config, device_of(config, part.index)),
        Fragments(Path(settings.output), len(images), settings.images_per_shard),
        part,
        first_image_id=settings.first_image_id,
        release=build(settings.release, "generate.release", of=ReleaseForm) if settings.release else None,
        on_error=settings.on_error,
        report=report,
    )


class _Display:
    """A live line on a terminal, a line of the log now and then elsewhere."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._said = time.monotonic()
        no_terminal = not console().is_terminal
        self._live = Progress(TextColumn("{task.description}"), console=console(), transient=True, disable=no_terminal)

    def __enter__(self) -> _Display:
        self._live.start()
        self._task = self._live.add_task(self.pace.line())
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        log.info(self.pace.line())

    def set(self, done: int, masks: int, refused: int) -> None:
        """The counts as they are now."""
        pace = self.pace
        self.add(done - pace.done, masks - pace.masks, refused - pace.refused)

    def add(self, done: int, masks: int, refused: int) -> None:
        self.pace.add(done, masks, refused)
        self._live.update(self._task, description=self.pace.line())
        if self._live.disable and time.monotonic() - self._said > LINE_EVERY:
            self._said = time.monotonic()
            log.info(self.pace.line())


# ---- what must be so


def _check(config: Config, settings: GenerateConfig) -> None:
    """Raises ValueError for settings that are missing, or do not fit those of other nodes."""
    for key, value in (("checkpoint", config["checkpoint"]), ("generate.input", settings.input)):
        if value is None:
            raise ValueError(f"{key} is null: set checkpoint=FILE generate.input=IMAGES generate.output=FOLDER")
    if data_config(config["data"]).frame == "native":
        raise ValueError("data.frame is native, but the generator cuts its own crops: set generator.crop_n_layers instead")
    if config["generator"]["output_mode"] != "coco_rle":
        mode = config["generator"]["output_mode"]
        raise ValueError(f"generator.output_mode is {mode!r}, but shards store coco_rle: set generator.output_mode=coco_rle")


def _facts(config: Config, settings: GenerateConfig, images: list[InputImage]) -> dict[str, Any]:
    """Returns everything that decides the bytes of the shards."""
    return {
        "checkpoint": digest(config["checkpoint"]),
        "generator": config["generator"],
        "generate": settings.of_shards(),
        "input_images": len(images),
        "input": digest_of(images),
    }
