"""The zero-shot experiments as the task sees them: what is done with an image, and what is made of all its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_of
from samtrain.evaluators.fairness import GroupOf, fairness_rows, read_groups, summarise_groups
from samtrain.evaluators.objects import image_row, object_rows, recall_by_frequency, scored
from samtrain.evaluators.zero_shot_edges import edge_row
from samtrain.evaluators.zero_shot_instances import instance_row, read_detections
from samtrain.evaluators.zero_shot_points import point_rows, summarise
from samtrain.evaluators.zero_shot_proposals import MAX_PROPOSALS, proposal_row
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.inference.predictor import SamPredictor
from samtrain.metrics.automatic import automatic_metrics
from samtrain.metrics.edge_matching import EdgeCounts, edge_metrics
from samtrain.metrics.full_truth import ImageMasks, full_truth_metrics
from samtrain.metrics.masks import mask_metrics
from samtrain.modeling.build import load_sam
from samtrain.run.build import Config, make_generator, make_predictor

Row = dict[str, Any]
Look = Callable[[Any], list[Row]]  # rows of an image


@dataclass(frozen=True)
class Protocol:
    """open: loads a checkpoint and returns what looks at an image; summary: numbers of all rows of a set; objects: of a
    row those of its objects, for Parquet."""

    open: Callable[[Config, Any, torch.device], Look]
    summary: Callable[[list[Row], Config], dict[str, float]]
    objects: Callable[[Row], list[Row]]


def _points(config: Config, checkpoint: Any, device: torch.device) -> Look:
    predictor, settings = _clicked(config, checkpoint, device), config["zero_shot"]
    return lambda record: point_rows(predictor, record, max_masks=settings["max_masks"], seed=config["seed"])


def _fairness(config: Config, checkpoint: Any, device: torch.device) -> Look:
    predictor, settings, group_of = _clicked(config, checkpoint, device), config["zero_shot"], groups_of(config)
    return lambda record: fairness_rows(
        predictor, record, group_of, max_masks=settings["max_masks"], seed=config["seed"]
    )


def groups_of(config: Config) -> GroupOf:
    """What says the group of an object."""
    return read_groups(config["zero_shot"]["group_by"], config["zero_shot"]["groups"])


def _proposals(config: Config, checkpoint: Any, device: torch.device) -> Look:
    generator = _generator(config, checkpoint, device)
    return lambda record: [proposal_row(generator, record)]


def _proposals_summary(rows: list[Row], config: Config) -> dict[str, float]:
    masks = sum(len(row["found"]) for row in rows) / len(rows)
    return {**mask_metrics(scored(rows)), **recall_by_frequency(rows, MAX_PROPOSALS), "masks_per_image": masks}


def _instances(config: Config, checkpoint: Any, device: torch.device) -> Look:
    predictor, boxes = make_predictor(load_sam(checkpoint).to(device), native=False), config["zero_shot"]["boxes"]
    detections = None if boxes is None else read_detections(json.loads(Path(boxes).read_text()), str(boxes))
    return lambda record: [instance_row(predictor, record, detections)]


def _automatic(config: Config, checkpoint: Any, device: torch.device) -> Look:
    generator = _generator(config, checkpoint, device)

    def look(record: Record) -> list[Row]:
        if any(each.get("iscrowd") for each in record.annotation["annotations"]):
            raise ValueError(
                f"{record.name} has crowd regions, but zero_shot.protocol=automatic needs every object by itself: "
                "leave this image out"
            )
        made = generator.generate(image_of(record))
        row = image_row(record, [each["segmentation"] for each in made], [each["predicted_iou"] for each in made])
        return [{**row, "stability": [float(each["stability_score"]) for each in made]}]

    return look


def _automatic_summary(rows: list[Row], config: Config) -> dict[str, float]:
    """AR and precision of the generator's masks, and what challenges with full ground truth ask for."""
    names = ("segmentation", "predicted_iou", "stability_score")
    images = [
        ImageMasks(
            row["objects"],
            [dict(zip(names, each, strict=True)) for each in zip(row["found"], row["scores"], row["stability"], strict=True)],
        )
        for row in rows
    ]
    found = {name: value for name, value in automatic_metrics(images).items() if value is not None}
    small, large = config["size_limits"]
    return found | full_truth_metrics(images, size_limits=(small, large))


def _edges(config: Config, checkpoint: Any, device: torch.device) -> Look:
    generator = _generator(config, checkpoint, device)
    return lambda image: [edge_row(generator, image)]


POINTS = Protocol(_points, lambda rows, config: summarise(rows, config["seed"]), lambda row: [row])
PROTOCOLS = {
    "points": POINTS,
    "proposals": Protocol(_proposals, _proposals_summary, object_rows),
    "instances": Protocol(_instances, lambda rows, config: mask_metrics(scored(rows), max_masks=[1, 10, 100]), object_rows),
    "edges": Protocol(_edges, lambda rows, config: edge_metrics([EdgeCounts(**row) for row in rows]), lambda row: []),
    "automatic": Protocol(_automatic, _automatic_summary, object_rows),
    "fairness": Protocol(_fairness, lambda rows, config: summarise_groups(rows, config["seed"]), lambda row: [row]),
    "learning_curve": POINTS,  # of each checkpoint of a run
}


def _clicked(config: Config, checkpoint: Any, device: torch.device) -> SamPredictor:
    return make_predictor(load_sam(checkpoint).to(device), native=config["zero_shot"]["native"])


def _generator(config: Config, checkpoint: Any, device: torch.device) -> SamAutomaticMaskGenerator:
    return make_generator({**config, "checkpoint": checkpoint}, device)
