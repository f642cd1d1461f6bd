"""`task=audit`: measures automatic masks by how much a correction changes them (paper, section 5, "Mask quality")."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from samtrain.data.shards import Record, expand_urls, index_tar, read_record
from samtrain.data_engine.automatic.audit import Pair, pairs_with_corrections, pairs_with_truth, rows, sample, summary
from samtrain.data_engine.automatic.config import AuditConfig
from samtrain.data_engine.automatic.truth import objects_by_name
from samtrain.data_engine.brush import Brush
from samtrain.files import write_text
from samtrain.report import write_report
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.settings import Config, read
from samtrain.run.targets import build

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Writes `audit.jsonl` with one line per mask, `audit.json` and `report.html`; returns the metrics."""
    settings, seed = read(AuditConfig, config, "audit"), config["seed"]
    dataset = _check(settings)

    # sample images, and pair each of their masks with a corrected version
    places = [(index, i) for index in map(index_tar, expand_urls(dataset, "audit.dataset")) for i in range(len(index))]
    records = [read_record(*place) for place in sample(places, settings.images, seed)]
    pairs, missing = _pairs(config, settings, records)
    if not pairs:
        raise ValueError(
            f"No mask of {dataset} could be paired with a corrected version ({missing}): check that audit.corrected or "
            "audit.truth describes the same images"
        )

    # write the numbers
    found = summary(pairs, seed)
    write_text(run_dir / "audit.jsonl", "".join(json.dumps(row) + "\n" for row in rows(pairs)))
    content = {**found, "left_out": missing, "simulated": settings.corrected is None}
    write_text(run_dir / "audit.json", json.dumps(content, indent=1) + "\n")
    metrics: Metrics = {f"audit/{key}": value for key, value in found.items() if not isinstance(value, list)}
    write_metrics(run_dir, metrics)
    _log(found, missing)
    log.info("The report is %s.", write_report(run_dir))
    return metrics


def _check(settings: AuditConfig) -> str | list[str]:
    """Returns `audit.dataset`; raises ValueError if the settings do not say what to compare with what."""
    if settings.dataset is None:
        raise ValueError("audit.dataset is null: set it to the shards of automatic masks")
    if settings.corrected is None and settings.truth is None:
        raise ValueError("Set audit.corrected, a folder of corrected JSONs, or audit.truth, shards with ground truth")
    if settings.corrected is not None and not Path(settings.corrected).is_dir():
        raise ValueError(f"audit.corrected is {settings.corrected!r}, which is not a folder: set it to one of corrected JSONs")
    return settings.dataset


def _pairs(config: Config, settings: AuditConfig, records: list[Record]) -> tuple[list[Pair], dict[str, int]]:
    """Returns the masks paired with corrections by people, or with those of the simulated annotator."""
    if settings.corrected is not None:
        return pairs_with_corrections(records, Path(settings.corrected))
    assert settings.truth is not None
    return pairs_with_truth(
        records,
        objects_by_name(expand_urls(settings.truth, "audit.truth")),
        target_iou=settings.target_iou,
        min_iou=settings.min_iou,
        brush=build(config["annotator"].get("brush"), "annotator.brush", of=Brush),
        seed=config["seed"],
    )


def _log(found: dict[str, Any], missing: dict[str, int]) -> None:
    log.info(
        "Of %d masks in %d images, %.1f %% are above 90 %% IoU and %.1f %% above 75 %% (paper: 94 and 97). Left out: %s.",
        found["pairs"], found["images"], 100 * found["share_above_90"], 100 * found["share_above_75"], missing,
    )  # fmt: skip
