"""A sweep: Optuna proposes settings, each is a run of `python -m samtrain` of its own."""

from samtrain.tuning.space import Dimension, read_space
from samtrain.tuning.study import Sweep, TrialView, open_study
from samtrain.tuning.trials import Command, TrialFailed

__all__ = ["Command", "Dimension", "Sweep", "TrialFailed", "TrialView", "open_study", "read_space"]
