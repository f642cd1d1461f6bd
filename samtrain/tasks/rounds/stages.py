"""Builds the stages of the data engine from the config, and checks their pools."""

from __future__ import annotations

from dataclasses import replace

from samtrain.data.datasets import Source
from samtrain.data.image_set import ImageSet
from samtrain.data_engine.interface import Annotator, RoundAnnotator, annotates_rounds
from samtrain.data_engine.pool import Pool, divide_pool
from samtrain.data_engine.prefill import PrefillConfig
from samtrain.data_engine.stages import ASSISTED_MANUAL, SEMI_AUTOMATIC, EngineConfig, Probe, RoundConfig, Stage
from samtrain.detector import MAX_DETECTIONS
from samtrain.run.build import sam_config_of
from samtrain.run.image_sets import data_config, pool_of_stage_2
from samtrain.run.preflight import check_images
from samtrain.run.settings import Config, read
from samtrain.run.targets import build
from samtrain.tasks.rounds.schedule import rounds_of


def make_stages(config: Config, images: ImageSet, people: RoundAnnotator | None = None) -> list[Stage]:
    """Returns the stages that the rounds of the config belong to, in their order.

    `people` annotate instead of the annotator of the config; they are not asked to repeat the images of a probe.
    """
    engine = read(EngineConfig, config, "engine")
    probe_images = {ASSISTED_MANUAL: engine.probe_images, SEMI_AUTOMATIC: engine.probe_images_stage_2}
    rounds: dict[str, list[RoundConfig]] = {}
    for each in rounds_of(config):
        rounds.setdefault(each.stage, []).append(each)
    return [
        Stage(
            name=name,
            rounds=own,
            pool=_pool_of(config, name, images),
            annotator=people or _make_annotator(config, leaves_image=True),
            probe=None if people else Probe(annotator=_make_annotator(config, leaves_image=False), images=probe_images[name]),
            prefill=_prefill_of(config) if name == SEMI_AUTOMATIC else None,
        )
        for name, own in rounds.items()
    ]


def check_pools(config: Config, stages: list[Stage], images: ImageSet, *, native: bool) -> None:
    """Raises ValueError for unusable or too few images, before time is spent on a first model."""
    for stage in stages:
        if not stage.pool:
            continue
        if not annotates_rounds(stage.annotator):  # people draw the masks that a preflight check would look at
            own = replace(images, public=[], pool=[Source(stage.pool)])
            check_images(config, own, image_size=sam_config_of(config).image_size, native=native)
        pool = Pool(stage.pool, data_config(config["data"]).on_error)
        divide_pool(len(pool), [each.images for each in stage.rounds], stage.probe.images if stage.probe else 0)


def _make_annotator(config: Config, *, leaves_image: bool) -> Annotator:
    """Returns the annotator of the config, which may be the user's own class (annotator._target_)."""
    return build(
        config["annotator"], "annotator", methods=["annotate"], seed=config["seed"], leaves_image=leaves_image
    )


def _prefill_of(config: Config) -> PrefillConfig:
    prefill = read(PrefillConfig, config, "prefill")
    if prefill.max_detections > MAX_DETECTIONS:
        raise ValueError(
            f"prefill.max_detections is {prefill.max_detections}, but a detector finds at most {MAX_DETECTIONS}: give fewer"
        )
    return prefill


def _pool_of(config: Config, stage: str, images: ImageSet) -> list[str]:
    """Returns the tars that a stage annotates."""
    if stage == SEMI_AUTOMATIC:
        return pool_of_stage_2(config["data"], config["data_dir"], images)
    return images.pool_tars()
