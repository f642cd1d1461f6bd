"""Lightning callbacks: checkpoints, throughput, the progress display, panels of masks, norms, the images trained on."""

from samtrain.training.callbacks.checkpointing import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, batches_seen
from samtrain.training.callbacks.display import ProgressDisplay, Throughput
from samtrain.training.callbacks.mask_panels import MaskPanels
from samtrain.training.callbacks.norms import ParameterNorms
from samtrain.training.callbacks.trained_on import TrainedOn

__all__ = [
    "AtomicCheckpointIO", "BestCheckpoint", "LastCheckpoint", "MaskPanels", "ParameterNorms", "ProgressDisplay",
    "Throughput", "TrainedOn", "batches_seen",
]  # fmt: skip
