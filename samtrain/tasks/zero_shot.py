"""`task=zero_shot` runs one of the paper's zero-shot experiments on any number of data sets, and resumes after a kill."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from samtrain.evaluators import EVALUATORS, Evaluator, LearningCurve, Part, Row
from samtrain.evaluators.config import KnownSet, ZeroShotConfig
from samtrain.evaluators.rows import ImageId, check_inputs, finished_images, measure_images, rows_by_part
from samtrain.evaluators.sets import find_sets
from samtrain.files import atomic_path, write_text
from samtrain.metrics.summaries import mean_over_sets
from samtrain.report.page import write_report
from samtrain.run.build import device_of, loggers_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, num_ranks, write_metrics
from samtrain.run.image_sets import data_config, open_set
from samtrain.run.measured_data import log_measured, with_measured_data
from samtrain.run.processes import CONTEXT, as_worker, run_together
from samtrain.run.seen_images import check_unseen
from samtrain.run.settings import Config, read
from samtrain.run.targets import build
from samtrain.run.text import text_settings
from samtrain.training.loggers import finish

log = logging.getLogger(__name__)

LOGGED = (
    "miou_1", "oracle_miou_1", "miou_3", "box_miou", "noc_90", "mask_ar_1000", "mask_ap", "mask_ap50", "ods", "ois",
    "ar_100", "precision_50", "nuclei_ap", "pq", "gap_1", "gap_3",
)  # fmt: skip


def run(config: Config, run_dir: Path) -> Metrics:
    """Writes `rows*.jsonl`, `objects.parquet` (one row per object), `zero_shot.json`, `metrics.json` and `report.html`."""
    begin = time.perf_counter()
    if num_ranks() > 1:
        raise ValueError(
            f"{num_ranks()} ranks were launched, and task=zero_shot is one process: launch one and set zero_shot.num_workers"
        )
    evaluator = make_evaluator(config)
    loggers = loggers_of(config, run_dir)[1:]
    # what is measured
    sets, missing = _find_sets(config, run_dir, evaluator)
    parts = evaluator.parts(sets, config["checkpoint"])
    for part in parts:
        evaluator.check(part)
        tars = [source for source in part.sources if source.endswith(".tar")]
        check_unseen(config, tars, f"the set {part.name}", part.checkpoint)
    check_inputs(run_dir, evaluator.inputs(parts))
    # rows, and metrics of the rows
    _measure(config, run_dir, evaluator, parts)
    rows = rows_by_part(run_dir)
    metrics = _summarise(evaluator, parts, rows)
    # files
    objects = _object_rows(evaluator, rows)
    _write_parquet(run_dir / "objects.parquet", objects)
    _write_sets(run_dir, evaluator, sets, missing)
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("The report is %s", write_report(run_dir))
    finish(loggers, metrics, objects=objects)
    return metrics


def make_evaluator(config: Config) -> Evaluator:
    """Returns the experiment that `zero_shot` describes."""
    settings = read(ZeroShotConfig, config, "zero_shot")
    small, large = config["size_limits"]
    return EVALUATORS[settings.protocol](
        settings,
        seed=config["seed"],
        size_limits=(small, large),
        on_error=data_config(config["data"]).on_error,
        make_generator=build(config["generator"], "generator"),
        **(text_settings(config) if settings.protocol == "text" else {}),
    )


def _find_sets(config: Config, run_dir: Path, evaluator: Evaluator) -> tuple[dict[str, list[str]], dict[str, KnownSet]]:
    """Returns the files of the sets by name, and the known sets that are missing; without any, the test split of `data`."""
    if evaluator.config.sets or not evaluator.has_default_set:
        return find_sets(evaluator.config.sets, evaluator.locate)
    config = with_measured_data(config, run_dir)
    images = open_set(config["data"], config["data_dir"])
    log_measured(config, images)
    if not images.test:
        raise ValueError("data.test holds no images: name the sets to measure, +zero_shot.sets.NAME=SHARDS")
    return {"test": images.test}, {}


# ---- rows


def _measure(config: Config, run_dir: Path, evaluator: Evaluator, parts: Sequence[Part]) -> None:
    """Measures every image that has no rows yet, in `zero_shot.num_workers` processes, one per GPU if there are any."""
    count, finished = evaluator.config.num_workers, finished_images(run_dir)
    if count == 1:
        measure_images(evaluator, parts, run_dir / "rows.jsonl", finished=finished, device=device_of(config, 0))
        return
    workers = [
        CONTEXT.Process(target=_worker, args=(config, run_dir, parts, finished, i, count), name=f"process {i}")
        for i in range(count)
    ]
    run_together(workers, f"with run_dir={run_dir}")


def _worker(
    config: Config, run_dir: Path, parts: Sequence[Part], finished: Collection[ImageId], index: int, count: int
) -> None:
    """Measures the share of one of several processes."""
    with as_worker(count):
        measure_images(
            make_evaluator(config),
            parts,
            run_dir / f"rows_{index}.jsonl",
            finished=finished,
            device=device_of(config, index),
            index=index,
            count=count,
        )


def _summarise(evaluator: Evaluator, parts: Sequence[Part], rows: Mapping[str, list[Row]]) -> Metrics:
    """Returns the metrics of every part, and their means over several sets."""
    metrics: Metrics = {}
    summaries: list[dict[str, float]] = []
    for part in parts:
        if not rows.get(part.name):
            raise ValueError(f"no image of the set {part.name} holds an object: give other shards (zero_shot.sets)")
        summary = evaluator.summary(rows[part.name])
        summaries.append(summary)
        metrics.update({f"{part.name}/{name}": value for name, value in summary.items()})
        log.info("%s: %s", part.name, ", ".join(f"{name} {summary[name]:.3f}" for name in LOGGED if name in summary))
    if len(parts) > 1 and not isinstance(evaluator, LearningCurve):  # there the parts are checkpoints of a run
        metrics.update({f"mean/{name}": value for name, value in mean_over_sets(summaries).items()})
    return metrics


# ---- files


def _object_rows(evaluator: Evaluator, rows: Mapping[str, list[Row]]) -> list[Row]:
    """Returns one row per object, with the name of its set; ids become text, because some sets have numbers, others names."""
    found = [{"set": name, **each} for name, of_set in rows.items() for row in of_set for each in evaluator.objects(row)]
    return [row if row.get("id") is None else {**row, "id": str(row["id"])} for row in found]


def _write_parquet(path: Path, objects: list[Row]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        log.warning("%s was not written, but rows.jsonl has the same rows: pip install 'samtrain[parquet]'", path.name)
        return
    if objects:
        with atomic_path(path, sole_writer=True) as temporary:
            pq.write_table(pa.Table.from_pylist(objects), temporary)


def _write_sets(run_dir: Path, evaluator: Evaluator, sets: Mapping[str, list[str]], missing: Mapping[str, KnownSet]) -> None:
    """Writes `zero_shot.json` for the report: what was measured, and which known sets are missing."""
    milestones = evaluator.milestones if isinstance(evaluator, LearningCurve) else []
    content = {
        "missing": {name: asdict(known) for name, known in missing.items()},
        "sets": list(sets),
        "milestones": [asdict(each) for each in milestones],
    }
    write_text(run_dir / "zero_shot.json", json.dumps(content, indent=1) + "\n")
