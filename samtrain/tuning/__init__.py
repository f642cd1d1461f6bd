"""A sweep: Optuna proposes settings, each is a run of `python -m samtrain` of its own."""

from samtrain.tuning.space import Dimension, read_space
from samtrain.tuning.study import Sweep, Taken, TrialView, lock_of, open_study
from samtrain.tuning.trials import Command, TrialFailed

__all__ = ["Command", "Dimension", "Sweep", "Taken", "TrialFailed", "TrialView", "lock_of", "open_study", "read_space"]
