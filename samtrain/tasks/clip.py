"""`task=clip`: trains a small CLIP on the captions of the synthetic scenes, and measures how well it tells objects apart."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from samtrain.data.caption_samples import CaptionSample, CaptionTransform
from samtrain.data.datasets import SamDataset
from samtrain.data.image_set import ImageSet
from samtrain.run.build import loggers_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.inputs import check_inputs
from samtrain.run.settings import Config
from samtrain.run.text import clip_images, train_clip_of
from samtrain.text import load_clip
from samtrain.training.clip_training import choices_of_images

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Writes the folder `clip` in the run directory, which clip=FOLDER takes; resumes what `run_dir` holds."""
    begin = time.perf_counter()
    images = clip_images(config)
    check_inputs(config, run_dir, images)
    folder = train_clip_of(config, run_dir, images, loggers_of(config, run_dir))
    metrics: Metrics = {**_test_metrics(folder, images), **costs(run_dir, begin)}
    write_metrics(run_dir, metrics)
    log.info("The CLIP is %s: give clip=%s to the experiments that need one.", folder, folder)
    return metrics


def _test_metrics(folder: Path, images: ImageSet) -> dict[str, float]:
    """Returns how often a caption finds its object among all objects of its image; nothing without test images."""
    if not images.test:
        return {}
    clip = load_clip(folder)
    transform = CaptionTransform(side=clip.image_size, scale=(1.0, 2.0), zero_background=0.0, varied=False)
    dataset: Any = SamDataset(images.test, transform)  # type: ignore[arg-type]  # it passes on what the transform makes
    samples: list[CaptionSample] = [dataset[i] for i in range(len(dataset))]
    right = choices_of_images(clip, [each for each in samples if each.captions])
    log.info("The caption of a test object finds it among the objects of its image in %.1f %% of all cases.", 100 * right)
    return {"test/right_object": right}
