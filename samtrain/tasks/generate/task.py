"""`task=generate`: makes masks of everything in a folder of images and writes them as SA-1B's tars (paper, stage 3)."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from samtrain.data_engine.automatic.config import GenerateConfig
from samtrain.data_engine.automatic.fragments import Fragments
from samtrain.data_engine.automatic.inputs import InputImage, digest_of, list_images
from samtrain.data_engine.automatic.produce import Pace, Part, Report, produce
from samtrain.data_engine.automatic.release import ReleaseForm
from samtrain.files import digest
from samtrain.report import write_report
from samtrain.run.build import device_of, make_generator
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.image_sets import asked_frame
from samtrain.run.processes import CONTEXT, as_worker, run_together
from samtrain.run.settings import Config, read
from samtrain.run.targets import build
from samtrain.tasks.generate.display import PaceDisplay
from samtrain.tasks.generate.no_masks import log_why_no_masks
from samtrain.tasks.generate.results import compare_with_truth, draw_panels, generated_metrics, write_generated
from samtrain.terminal import counted

log = logging.getLogger(__name__)

MAX_REFUSALS = 20  # refused images that are logged at the end; the report lists all


def run(config: Config, run_dir: Path) -> Metrics:
    """Makes the masks of this part of the images; the process that finishes the last image writes the manifest.

    After a kill the same command resumes: finished images are kept.
    """
    begin = time.perf_counter()
    settings = read(GenerateConfig, config, "generate")
    images = list_images(_check(config, settings))
    settings = replace(settings, output=str(settings.output or run_dir / "shards"))
    facts = _facts(config, settings, images)
    fragments = _fragments(settings, len(images))
    fragments.begin(facts)

    # make the masks, then close the shards that are complete
    pace = _work(config, settings, images, fragments)
    total = fragments.close_all(facts)
    if total is None:
        total = {**facts, **fragments.so_far()}
        log.info("This part is finished, others are at work: %d of %d images have masks.", total["images"], len(images))

    # write numbers, panels and the report
    metrics = _results(settings, run_dir, images, total, pace)
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    for name, reason in total["refused"][:MAX_REFUSALS]:
        log.warning("%s was left out: %s", name, reason)
    if not total["masks"] and total["images"]:
        log_why_no_masks(config, images, device_of(config))
    refused = len(total["refused"])
    images_made, masks_made = counted(total["images"], "image"), counted(total["masks"], "mask")
    log.info("%s has %s with %s; number of images left out: %d.", settings.output, images_made, masks_made, refused)
    log.info("The report is %s.", write_report(run_dir))
    return metrics


def _results(
    settings: GenerateConfig, run_dir: Path, images: list[InputImage], total: dict[str, Any], pace: Pace
) -> Metrics:
    """Writes panels and `generated.json`; returns the metrics, with those against ground truth if `generate.truth` is set."""
    metrics = generated_metrics(total, seconds=pace.seconds, new=pace.done)
    tars = sorted(Path(str(settings.output)).glob("*.tar"))
    truth = compare_with_truth(tars, images, settings.first_image_id) if settings.truth and tars else None
    if truth is not None:
        metrics.update({f"generated/{key}": value for key, value in truth.items() if not isinstance(value, list)})
    draw_panels(run_dir, tars, settings.panels)
    write_generated(run_dir, total, truth)
    return metrics


# ---- sharing the work among processes


def _work(config: Config, settings: GenerateConfig, images: list[InputImage], fragments: Fragments) -> Pace:
    """Runs the workers of this part to their end; raises ValueError if one of them fails."""
    count = settings.num_workers
    parts = [Part(settings.part * count + i, settings.num_parts * count) for i in range(count)]
    todo = sum(not fragments.is_finished(n) for part in parts for n in part.numbers(len(images)))
    pace = Pace(todo)
    if not todo:
        return pace
    log.info("Making masks of %d of %d images in %s; number of processes: %d.", todo, len(images), fragments.output, count)
    with PaceDisplay(pace) as display:
        if count == 1:
            _run_worker(config, settings, images, parts[0], lambda *counts: display.add(1, *counts))
        else:
            _start_workers(config, settings, images, parts, display)
    return pace


def _start_workers(
    config: Config, settings: GenerateConfig, images: list[InputImage], parts: list[Part], display: PaceDisplay
) -> None:
    """Runs one process per part; they add up what they have done in shared counters."""
    counters = [CONTEXT.Value("q", 0) for _ in range(3)]  # images, masks, refused images
    workers = [
        CONTEXT.Process(target=_worker, args=(config, settings, images, part, counters), name=f"part {part.index}")
        for part in parts
    ]
    run_together(
        workers,
        "with the same generate.output",
        meanwhile=lambda: display.set(*(counter.value for counter in counters)),
    )


def _worker(config: Config, settings: GenerateConfig, images: list[InputImage], part: Part, counters: Any) -> None:
    """Does one part in a process of its own."""

    def report(masks: int, refused: bool) -> None:
        for counter, value in zip(counters, (1, masks, int(refused)), strict=True):
            with counter.get_lock():
                counter.value += value

    with as_worker(settings.num_workers):
        _run_worker(config, settings, images, part, report)


def _run_worker(config: Config, settings: GenerateConfig, images: list[InputImage], part: Part, report: Report) -> None:
    """Makes the masks of one part in this process."""
    produce(
        images,
        make_generator(config, device_of(config, part.index)),
        _fragments(settings, len(images)),
        part,
        first_image_id=settings.first_image_id,
        release=build(settings.release, "generate.release", of=ReleaseForm) if settings.release else None,
        on_error=settings.on_error,
        report=report,
    )


def _fragments(settings: GenerateConfig, num_images: int) -> Fragments:
    return Fragments(Path(str(settings.output)), num_images, settings.images_per_shard)


# ---- checking the settings


def _check(config: Config, settings: GenerateConfig) -> str | list[str]:
    """Returns `generate.input`; raises ValueError for settings that are missing or do not fit those of other nodes."""
    if config["checkpoint"] is None or settings.input is None:
        key = "checkpoint" if config["checkpoint"] is None else "generate.input"
        raise ValueError(f"{key} is null: set checkpoint=FILE generate.input=IMAGES generate.output=FOLDER")
    if asked_frame(config["data"]) is not None:
        raise ValueError(
            "data.frame is native, but the generator shows images as in the training of the checkpoint: set generator.frame "
            "if it should not"
        )
    if (mode := config["generator"].get("output_mode")) != "coco_rle":
        raise ValueError(f"generator.output_mode is {mode!r}, but shards store coco_rle: set generator.output_mode=coco_rle")
    return settings.input


def _facts(config: Config, settings: GenerateConfig, images: list[InputImage]) -> dict[str, Any]:
    """Returns everything that decides the bytes of the shards."""
    return {
        "checkpoint": digest(config["checkpoint"]),
        "generator": config["generator"],
        "generate": settings.of_shards(),
        "input_images": len(images),
        "input": digest_of(images),
    }
