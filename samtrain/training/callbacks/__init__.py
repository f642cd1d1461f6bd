"""Lightning callbacks: checkpoints, throughput, the progress display, panels of masks, norms."""

from samtrain.training.callbacks.checkpointing import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, batches_seen
from samtrain.training.callbacks.display import ProgressDisplay, Throughput
from samtrain.training.callbacks.mask_panels import MaskPanels
from samtrain.training.callbacks.norms import ParameterNorms

__all__ = [
    "AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint", "MaskPanels", "ParameterNorms", "ProgressDisplay",
    "Throughput", "batches_seen",
]  # fmt: skip
