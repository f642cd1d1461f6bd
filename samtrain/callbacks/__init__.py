"""What runs beside the training loop: checkpoints, the display, panels."""

from samtrain.callbacks.checkpointing import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, batches_seen
from samtrain.callbacks.display import ProgressDisplay, Throughput
from samtrain.callbacks.mask_panels import MaskPanels
from samtrain.callbacks.norms import ParameterNorms

__all__ = [
    "AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint", "MaskPanels", "ParameterNorms", "ProgressDisplay",
    "Throughput", "batches_seen",
]  # fmt: skip
