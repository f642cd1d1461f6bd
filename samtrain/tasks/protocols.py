"""The zero-shot experiments as the task sees them: what is done with a picture, and what is made of all its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samtrain.data.shards import Record
from samtrain.evaluators.automatic import PictureMasks, evaluate_automatic
from samtrain.evaluators.clicks import image_of
from samtrain.evaluators.edge_matching import EdgeCounts, edge_metrics
from samtrain.evaluators.fairness import fairness_rows, read_groups, summarise_groups
from samtrain.evaluators.full_truth import full_truth_metrics
from samtrain.evaluators.masks import mask_metrics
from samtrain.evaluators.objects import object_rows, picture_row, recall_by_frequency, scored
from samtrain.evaluators.zero_shot_edges import edge_row
from samtrain.evaluators.zero_shot_instances import instance_row, read_detections
from samtrain.evaluators.zero_shot_points import point_rows, summarise
from samtrain.evaluators.zero_shot_proposals import MAX_PROPOSALS, proposal_row
from samtrain.generator import SamAutomaticMaskGenerator
from samtrain.modeling.build import load_sam
from samtrain.tasks.build import Config, make_predictor
from samtrain.tasks.generate import make_generator

Row = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """look: rows of a picture; summary: numbers of all rows of a set; objects: a row an object for Parquet, of a row."""

    look: Callable[[Any], list[Row]]
    summary: Callable[[list[Row]], dict[str, float]]
    objects: Callable[[Row], list[Row]]


def _points(config: Config, checkpoint: Any, device: torch.device) -> Protocol:
    settings, seed = config["zero_shot"], config["seed"]
    predictor = make_predictor(load_sam(checkpoint).to(device), native=settings["native"])
    return Protocol(
        lambda record: point_rows(predictor, record, max_masks=settings["max_masks"], seed=seed),
        lambda rows: summarise(rows, seed),
        lambda row: [row],
    )


def _fairness(config: Config, checkpoint: Any, device: torch.device) -> Protocol:
    settings, seed = config["zero_shot"], config["seed"]
    predictor = make_predictor(load_sam(checkpoint).to(device), native=settings["native"])
    group_of = read_groups(settings["group_by"], settings["groups"])
    return Protocol(
        lambda record: fairness_rows(predictor, record, group_of, max_masks=settings["max_masks"], seed=seed),
        lambda rows: summarise_groups(rows, seed),
        lambda row: [row],
    )


def _proposals(config: Config, checkpoint: Any, device: torch.device) -> Protocol:
    generator = _generator(config, checkpoint, device)
    return Protocol(
        lambda record: [proposal_row(generator, record)],
        lambda rows: {
            **mask_metrics(scored(rows)), **recall_by_frequency(rows, MAX_PROPOSALS), "masks_per_image": _mean_masks(rows),
        },
        object_rows,
    )  # fmt: skip


def _instances(config: Config, checkpoint: Any, device: torch.device) -> Protocol:
    predictor, boxes = make_predictor(load_sam(checkpoint).to(device), native=False), config["zero_shot"]["boxes"]
    detections = None if boxes is None else read_detections(json.loads(Path(boxes).read_text()), str(boxes))
    return Protocol(
        lambda record: [instance_row(predictor, record, detections)],
        lambda rows: mask_metrics(scored(rows), max_masks=[1, 10, 100]),
        object_rows,
    )


def _automatic(config: Config, checkpoint: Any, device: torch.device) -> Protocol:
    generator = _generator(config, checkpoint, device)

    def look(record: Record) -> list[Row]:
        made = generator.generate(image_of(record))
        row = picture_row(record, [each["segmentation"] for each in made], [each["predicted_iou"] for each in made])
        return [{**row, "stability": [float(each["stability_score"]) for each in made]}]

    return Protocol(look, lambda rows: _automatic_summary(rows, config["size_limits"]), object_rows)


def _automatic_summary(rows: list[Row], size_limits: Sequence[float]) -> dict[str, float]:
    """AR and precision of the generator's masks, and what challenges with full ground truth ask for."""
    names = ("segmentation", "predicted_iou", "stability_score")
    pictures = [
        PictureMasks(
            row["objects"],
            [dict(zip(names, each, strict=True)) for each in zip(row["found"], row["scores"], row["stability"], strict=True)],
        )
        for row in rows
    ]
    found = {name: value for name, value in evaluate_automatic(pictures).items() if isinstance(value, float)}
    return found | full_truth_metrics(pictures, size_limits=(size_limits[0], size_limits[1]))


def _edges(config: Config, checkpoint: Any, device: torch.device) -> Protocol:
    generator = _generator(config, checkpoint, device)
    return Protocol(
        lambda picture: [edge_row(generator, picture)],
        lambda rows: edge_metrics([EdgeCounts(**row) for row in rows]),
        lambda row: [],
    )


PROTOCOLS: dict[str, Callable[[Config, Any, torch.device], Protocol]] = {
    "points": _points,
    "proposals": _proposals,
    "instances": _instances,
    "edges": _edges,
    "automatic": _automatic,
    "fairness": _fairness,
    "learning_curve": _points,  # of each checkpoint of a run
}


def _generator(config: Config, checkpoint: Any, device: torch.device) -> SamAutomaticMaskGenerator:
    return make_generator({**config, "checkpoint": checkpoint}, device)


def _mean_masks(rows: list[Row]) -> float:
    return sum(len(row["found"]) for row in rows) / len(rows)
