"""`task=rounds`: the data engine with Lightning inside: a first model if there is none, then round after round."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from samtrain.data_engine.ledger import promoted, read_ledger
from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.modeling.build import load_sam
from samtrain.report import write_report
from samtrain.run.build import Config
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.evaluation import difficulty_metrics, test_metrics
from samtrain.run.image_sets import open_set
from samtrain.tasks.rounds.schedule import check_growth_of_rounds, check_processes, with_stage_1
from samtrain.tasks.rounds.tools import EngineTools

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """All rounds of `config.rounds`; the promoted model becomes `checkpoints/best.ckpt`, and `test/*` is its."""
    begin = time.perf_counter()
    if "rounds" not in config:
        raise ValueError("task=rounds has no rounds: take an experiment that has, +experiment=stage1")
    check_processes(config)
    config = with_stage_1(config, run_dir)
    check_growth_of_rounds(config)
    images = open_set(config["data"], config["data_dir"])
    if not images.val:
        raise ValueError("the rounds choose models by validation and no image is held back for it: set data.val")
    tools = EngineTools(config, run_dir, images)
    tools.look_at_pools()
    initial = tools.first_model()
    best = tools.engine(initial).run()

    # what the rounds were worth, on images that nothing was chosen by
    ledger = read_ledger(run_dir)
    metrics: Metrics = {**promoted(ledger).promotion.after, **coverage_metrics(ledger)}
    metrics.update(test_metrics(config, load_sam(best), images, native=tools.native))
    start = test_metrics(config, load_sam(initial), images, native=tools.native)
    metrics.update({name.replace("test/", "test/start_"): value for name, value in start.items()})
    metrics.update(tools.test_detector(ledger))
    metrics.update(difficulty_metrics(config, images))
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("report: %s", write_report(run_dir))
    tools.finish_loggers(metrics)
    return metrics


def coverage_metrics(ledger: list[LedgerLine]) -> Metrics:
    """What the probe's images were covered with before the last stage, and are now; how precise its automatic masks are."""
    opening = next((line for line in reversed(ledger) if line.probe_before), None)
    if opening is None or opening.probe_before is None:
        return {}
    stage = [line for line in ledger if line.stage == opening.stage]
    start, end = opening.probe_before.coverage, stage[-1].probe.coverage
    metrics: Metrics = {f"coverage/start_{name}": value for name, value in start.items()}
    metrics |= {f"coverage/{name}": value for name, value in end.items()}
    metrics["coverage/without_filling_in"] = stage[-1].probe.coverage_alone["all"]
    rounds = [line.annotated for line in stage]
    known = [(each.masks_automatic, each.automatic_precision) for each in rounds if each.automatic_precision is not None]
    count = sum(masks for masks, _ in known)
    metrics["automatic/masks"] = float(count)
    metrics["automatic/precision"] = sum(masks * precision for masks, precision in known) / count if count else None
    return metrics
