"""Defines the model, one file per box of the paper's figure 4, and builds, loads, saves and grows it."""

from samtrain.modeling.build import build_sam, load_sam, sam_config
from samtrain.modeling.checkpoints import save_official, save_safetensors
from samtrain.modeling.growth import carry_over, grow, next_model
from samtrain.modeling.mae import load_mae
from samtrain.modeling.sam import SAM_CONFIGS, Sam, SamConfig

__all__ = [
    "SAM_CONFIGS",
    "Sam",
    "SamConfig",
    "build_sam",
    "carry_over",
    "grow",
    "load_mae",
    "load_sam",
    "next_model",
    "sam_config",
    "save_official",
    "save_safetensors",
]
