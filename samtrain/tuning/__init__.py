"""Sweeps: Optuna proposes settings, and each trial is a run of `python -m samtrain` in a process of its own."""

from samtrain.tuning.config import TuneConfig
from samtrain.tuning.space import Dimension, read_space
from samtrain.tuning.storage import lock_of, open_study
from samtrain.tuning.study import Sweep, TrialTaken, TrialView
from samtrain.tuning.trials import Command, TrialFailed

__all__ = [
    "Command", "Dimension", "Sweep", "TrialFailed", "TrialTaken", "TrialView", "TuneConfig", "lock_of", "open_study",
    "read_space",
]  # fmt: skip
