"""A data engine with pretended trainings: a model is a number, and a detector knows the scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretend_predictor import PretendPredictor, eroded

from samtrain.data_engine.annotators import ImageAnnotation, ImageToAnnotate, SimulatedAnnotator
from samtrain.data_engine.ledger import read_ledger
from samtrain.data_engine.ledger_line import LedgerLine, from_flat
from samtrain.data_engine.stages import DetectorRequest, FitRequest, FitResult, RoundConfig
from samtrain.files import write_text

FIRST_LINE = {
    "round": 0,
    "stage": "assisted_manual",
    "model": "vit_tiny",
    "encoder": "vit_tiny",
    "parent": None,
    "checkpoint": "first.ckpt",
    "digest": "ab",
    "images": 0,
    "masks": 0,
    "masks_automatic": 0,
    "masks_total": 0,
    "images_total": 0,
    "discarded": 0,
    "images_skipped": 0,
    "images_left": 0,
    "masks_per_image": None,
    "assisted_per_image": None,
    "seconds_per_mask": None,
    "clicks_per_mask": None,
    "strokes_per_mask": None,
    "mask_iou": None,
    "automatic_precision": None,
    "coverage": {},
    "probe_masks": 3,
    "probe_seconds_per_mask": 20.5,
    "probe_clicks_per_mask": 4.0,
    "probe_mask_iou": 0.8,
    "probe_good": 0.5,
    "probe_coverage_alone": {"all": 0.5},
    "probe_coverage": {"all": 0.5},
    "images_seen": 0,
    "promote_metric": "val/miou_1",
    "metrics_before": {},
    "metrics_after": {"val/miou_1": 0.4},
    "promoted": True,
    "wall": {"measure": 1.5},
    "detector": None,
    "detector_digest": None,
    "probe_before": {},
    "shards": [],
}


def ledger_line(**changes: Any) -> LedgerLine:
    """Returns the line of a first model with some keys of the file changed."""
    return from_flat({**FIRST_LINE, **changes}, "pretended line")


def round_config(**settings: Any) -> RoundConfig:
    """Returns a round of two images and five steps, with some settings changed."""
    known = {"number": "1", "stage": "assisted_manual", "model": "vit_tiny", "images": 2, "steps": 5}
    return RoundConfig(**{**known, **settings})


class PretendDetector:
    """Finds the discs of a scene by their colours: "all" of them, "some" (all but the last), "nothing", or, as
    "everything", a hundred boxes all over the image.
    """

    def __init__(self, finds: str) -> None:
        self.finds = finds

    def detect(self, image: np.ndarray, *, score_thresh: float, max_detections: int) -> tuple[np.ndarray, np.ndarray]:
        H, W = image.shape[:2]
        if self.finds == "everything":
            x, y = (each.ravel() for each in np.meshgrid(np.linspace(0, W - 9, 10), np.linspace(0, H - 9, 10)))
            boxes = np.stack([x, y, x + 8, y + 8], axis=1)
        else:
            colours = np.unique(image.reshape(-1, 3), axis=0)
            discs = [(image == colour).all(axis=2) for colour in colours if not (colour == 90).all()]
            found = {"all": discs, "some": discs[:-1], "nothing": []}[self.finds]
            boxes = np.array([box_of(disc) for disc in found], dtype=np.float32).reshape(-1, 4)
        scores = np.linspace(1.0, 0.6, len(boxes), dtype=np.float32)
        return boxes.astype(np.float32)[:max_detections], scores[:max_detections]


def box_of(mask: np.ndarray) -> list[float]:
    """Returns xyxy with the right and lower edges one past the last pixel, as detectors give them."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


class Killed(Exception):
    """Stands for kill -9."""


class World:
    """Pretends to train: a model is a number, its quality. Calls are counted, and call `die_at` is killed."""

    def __init__(self, qualities: list[float], die_at: int | None = None, finds: str = "some") -> None:
        self.qualities, self.die_at, self.calls, self.finds = qualities, die_at, [], finds
        self.requests: list[FitRequest] = []
        self.detector_requests: list[DetectorRequest] = []

    def called(self, name: str) -> None:
        self.calls.append(name)
        if self.die_at is not None and len(self.calls) == self.die_at:
            raise Killed(name)

    def save(self, path: Path, quality: float) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {"sam.quality": torch.tensor([quality])}, "clock": str(path)}, path)
        return path

    def quality(self, path: Path) -> float:
        return float(torch.load(path, weights_only=True)["state_dict"]["sam.quality"])

    def load_predictor(self, path: Path) -> PretendPredictor:
        quality = self.quality(path)
        return PretendPredictor(eroded(round(6 - quality)))

    def fit(self, request: FitRequest) -> FitResult:
        self.requests.append(request)
        number = int(request.directory.parent.name)  # rounds/<number>/fit
        best = request.directory / "best.ckpt"
        if not best.is_file():  # otherwise this process resumes where another was killed
            self.called(f"fit {number} begins")
            self.save(best, self.qualities[number - 1])
        self.called(f"fit {number} ends")
        return FitResult(checkpoint=best, last=best, metrics={}, images_seen=request.images_seen + 10, seconds=1.0)

    def fit_detector(self, request: DetectorRequest) -> Path:
        self.detector_requests.append(request)
        self.called("detector")
        request.directory.mkdir(parents=True, exist_ok=True)
        write_text(request.directory / "detector.pth", f"{request.steps} steps on {len(request.shards)} shards")
        return request.directory / "detector.pth"

    def load_detector(self, path: Path) -> PretendDetector:
        return PretendDetector(self.finds)

    def measure(self, path: Path) -> dict[str, float]:
        self.called("measure")
        return {"val/miou_1": self.quality(path) / 6, "val/miou_3": 0.5}


class CountedAnnotator:
    """A simulated annotator; `world` counts its images as calls."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.annotator, self.world = SimulatedAnnotator(**settings), world

    def annotate(self, image: ImageToAnnotate, predictor: Any) -> ImageAnnotation:
        self.world.called(f"annotate {image.key}")
        return self.annotator.annotate(image, predictor)


def reproducible(run_dir: Path) -> list[dict]:
    return [line.reproducible() for line in read_ledger(run_dir)]
