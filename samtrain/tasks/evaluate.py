"""`task=evaluate`: measures a checkpoint on images that it was neither trained nor chosen on."""

from __future__ import annotations

from pathlib import Path

from samtrain.modeling.build import load_sam
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.evaluation import difficulty_metrics, test_metrics, text_metrics
from samtrain.run.image_sets import asked_frame, open_set
from samtrain.run.measured_data import log_measured, with_measured_data
from samtrain.run.seen_images import check_unseen
from samtrain.run.settings import Config


def run(config: Config, run_dir: Path) -> Metrics:
    """Writes and returns the metrics of `checkpoint` on the test images of `data`, or of the run that made the checkpoint."""
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=evaluate needs one, set checkpoint=FILE")
    config = with_measured_data(config, run_dir)
    images = open_set(config["data"], config["data_dir"])
    log_measured(config, images)
    check_unseen(config, images.test, "data.test", config["checkpoint"])
    sam = load_sam(config["checkpoint"])
    metrics: Metrics = {**test_metrics(config, sam, images, frame=asked_frame(config["data"]))}
    metrics.update(text_metrics(config, sam, images, run_dir))
    metrics.update(difficulty_metrics(config, images))
    write_metrics(run_dir, metrics)
    return metrics
