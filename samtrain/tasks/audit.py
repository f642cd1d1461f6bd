"""`task=audit`: the quality of automatic masks, by what a correction changes of them (paper, section 5)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from hydra.utils import instantiate

from samtrain.data.image_set import records
from samtrain.data.shards import expand_urls, index_tar, read_record
from samtrain.data_engine.automatic.audit import pairs_with_corrections, pairs_with_truth, rows, sample, summary
from samtrain.files import write_text
from samtrain.ops.rle import RLE, to_compressed
from samtrain.report.page import write_report
from samtrain.run.build import Config
from samtrain.run.directory import Metrics, write_metrics

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Write `audit.jsonl`, a line a pair, `audit.json` and `report.html`."""
    settings, seed = config["audit"], config["seed"]
    _check(config)
    places = [(index, i) for index in map(index_tar, expand_urls(settings["dataset"])) for i in range(len(index))]
    chosen = [read_record(*place) for place in sample(places, settings["images"], seed)]
    if settings["corrected"] is not None:
        pairs, missing = pairs_with_corrections(chosen, Path(settings["corrected"]))
    else:
        pairs, missing = pairs_with_truth(
            chosen,
            _truth(settings["truth"]),
            target_iou=settings["target_iou"],
            min_iou=settings["min_iou"],
            brush=instantiate(config["annotator"]["brush"]),
            seed=seed,
        )
    if not pairs:
        raise ValueError(f"audit: no mask of {settings['dataset']} has a corrected version ({missing})")
    found = summary(pairs, seed)
    write_text(run_dir / "audit.jsonl", "".join(json.dumps(row) + "\n" for row in rows(pairs)))
    content = {**found, "left_out": missing, "simulated": settings["corrected"] is None}
    write_text(run_dir / "audit.json", json.dumps(content, indent=1) + "\n")
    metrics: Metrics = {f"audit/{key}": value for key, value in found.items() if not isinstance(value, list)}
    write_metrics(run_dir, metrics)
    log.info(
        "%d masks in %d images: %.1f %% above 90 %% IoU, %.1f %% above 75 %% (paper: 94, 97); left out: %s",
        found["pairs"], found["images"], 100 * found["share_above_90"], 100 * found["share_above_75"], missing,
    )  # fmt: skip
    log.info("report: %s", write_report(run_dir))
    return metrics


def _check(config: Config) -> None:
    settings = config["audit"]
    if settings["dataset"] is None:
        raise ValueError("audit.dataset is null: name the shards of automatic masks")
    if (settings["corrected"] is None) == (settings["truth"] is None):
        raise ValueError("give audit.corrected, a folder of corrected JSONs, or audit.truth, shards with ground truth")
    if settings["corrected"] is not None and not Path(settings["corrected"]).is_dir():
        raise ValueError(f"audit.corrected is {settings['corrected']!r}, which is no folder")
    if settings["images"] < 1:
        raise ValueError(f"audit.images is {settings['images']}: take 1 and more")


def _truth(urls: str) -> dict[str, list[RLE]]:
    """Objects of each image by its name."""
    found = {}
    for record in records(expand_urls(urls)):
        size = record.annotation["image"]["height"], record.annotation["image"]["width"]
        objects = [to_compressed(each["segmentation"], size) for each in record.annotation["annotations"]]
        if (name := Path(record.key).name) in found:
            raise ValueError(f"audit.truth has two images {name!r}: {record.name} is the second")
        found[name] = objects
    return found
