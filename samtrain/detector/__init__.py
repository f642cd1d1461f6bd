"""The object detector of the semi-automatic stage: one class, trained on the boxes of all masks (section 4)."""

from samtrain.detector.checkpoints import load_detector, save_detector
from samtrain.detector.lit import DetectorRecipe, LitDetector
from samtrain.detector.model import DETECTORS, MAX_DETECTIONS, Detector, DetectorConfig, build_detector
from samtrain.detector.training import Running, train_detector

__all__ = [
    "DETECTORS", "MAX_DETECTIONS", "Detector", "DetectorConfig", "DetectorRecipe", "LitDetector", "Running", "build_detector",
    "load_detector", "save_detector", "train_detector",
]  # fmt: skip
