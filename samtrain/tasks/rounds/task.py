"""`task=rounds`: a first model if there is none, then one round of the data engine after the other."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from samtrain.data.image_set import ImageSet
from samtrain.data_engine.ledger import promoted, read_ledger
from samtrain.data_engine.ledger_line import LedgerLine
from samtrain.detector import load_detector
from samtrain.modeling.build import load_sam
from samtrain.report import write_report
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.evaluation import difficulty_metrics, test_metrics
from samtrain.run.image_sets import open_set
from samtrain.run.inputs import check_inputs
from samtrain.run.seen_images import check_splits
from samtrain.run.settings import Config
from samtrain.tasks.detector import test_metrics as box_test_metrics
from samtrain.tasks.rounds.held_back import with_held_back
from samtrain.tasks.rounds.people import at_work, make_people
from samtrain.tasks.rounds.results import coverage_metrics
from samtrain.tasks.rounds.schedule import check_growth_of_rounds, check_processes, with_stage_1
from samtrain.tasks.rounds.stages import check_pools, make_stages
from samtrain.tasks.rounds.tools import EngineTools
from samtrain.tasks.rounds.unlabelled import check_validation, with_own_sets, with_unlabelled

log = logging.getLogger(__name__)


def run(config: Config, run_dir: Path) -> Metrics:
    """Runs all rounds; the promoted model becomes `checkpoints/best.ckpt`, and `test/*` measures it."""
    begin = time.perf_counter()

    # refuse what cannot work before any time is spent
    if "rounds" not in config:
        raise ValueError("task=rounds needs rounds: choose an experiment that has some, such as +experiment=stage1")
    check_processes(config)
    config = with_stage_1(config, run_dir)
    check_growth_of_rounds(config)
    config = with_unlabelled(config)
    images = with_own_sets(config, open_set(config["data"], config["data_dir"]))
    check_validation(config, images)
    check_splits(config, images, [*images.public, *images.pool])
    check_inputs(config, run_dir, images)
    tools = EngineTools(config, run_dir, images)
    people = make_people(config, run_dir, tools)
    stages = make_stages(config, images, people)
    check_pools(config, stages, images, native=tools.native)

    # people begin with what measures the models; then run the rounds
    initial = tools.first_model()
    with at_work(people, run_dir, initial, tools):
        if people is not None:
            tools.images = images = with_held_back(config, run_dir, tools, people, initial)
        best = tools.engine(initial, stages).run()

    # measure the gain of the rounds, and report it
    ledger = read_ledger(run_dir)
    metrics: Metrics = {**promoted(ledger).promotion.after, **coverage_metrics(ledger)}
    metrics.update(_gain(config, initial, best, images, frame=tools.frame))
    metrics.update(_test_detector(config, run_dir, ledger, images))
    metrics.update(difficulty_metrics(config, images))
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("The report is %s.", write_report(run_dir))
    tools.finish_loggers(metrics)
    return metrics


def _gain(config: Config, initial: Path, best: Path, images: ImageSet, *, frame: str) -> Metrics:
    """Returns `test/*` of the promoted model and `test/start_*` of the first, on images that chose nothing.

    The promoted model sees images as its checkpoint says, and the first one as in the rounds.
    """
    after = test_metrics(config, load_sam(best), images)
    before = test_metrics(config, load_sam(initial), images, frame=frame) if best != initial else after
    return {**after, **{name.replace("test/", "test/start_"): value for name, value in before.items()}}


def _test_detector(config: Config, run_dir: Path, ledger: list[LedgerLine], images: ImageSet) -> dict[str, float]:
    """Returns `test/box_ap` and its like of the last detector; empty without a semi-automatic round."""
    detector = ledger[-1].detector
    return box_test_metrics(config, load_detector(run_dir / detector.checkpoint), images) if detector else {}
