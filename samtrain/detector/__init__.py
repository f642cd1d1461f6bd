"""The object detector of the semi-automatic stage: one class, trained on the boxes of all masks (section 4)."""

from samtrain.detector.checkpoints import load_detector, save_detector
from samtrain.detector.lit import LitDetector
from samtrain.detector.model import DETECTORS, MAX_DETECTIONS, Detector, DetectorConfig, build_detector
from samtrain.detector.recipe import DetectorRecipe, RuntimeOptions
from samtrain.detector.training import train_detector

__all__ = [
    "DETECTORS", "MAX_DETECTIONS", "Detector", "DetectorConfig", "DetectorRecipe", "LitDetector", "RuntimeOptions",
    "build_detector", "load_detector", "save_detector", "train_detector",
]  # fmt: skip
