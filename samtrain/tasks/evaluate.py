"""`task=evaluate`: measures a checkpoint on images that it was neither trained nor chosen on."""

from __future__ import annotations

from pathlib import Path

from samtrain.modeling.build import load_sam
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.evaluation import difficulty_metrics, test_metrics
from samtrain.run.image_sets import is_native, open_set
from samtrain.run.seen_images import check_unseen
from samtrain.run.settings import Config


def run(config: Config, run_dir: Path) -> Metrics:
    """Writes and returns the metrics of `checkpoint` on the test images of `data`."""
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=evaluate needs one, set checkpoint=FILE")
    images = open_set(config["data"], config["data_dir"])
    check_unseen(config, images.test, "data.test", config["checkpoint"])
    sam = load_sam(config["checkpoint"])
    native = is_native(config["data"], images, sam.config)
    metrics: Metrics = {**test_metrics(config, sam, images, native=native)}
    metrics.update(difficulty_metrics(config, images))
    write_metrics(run_dir, metrics)
    return metrics
