"""Shows images to a model as in its training: resized to its input, or in tiles of their own pixels."""

from __future__ import annotations

import logging

from samtrain.inference.predictor import SamPredictor
from samtrain.inference.tiled import TiledPredictor
from samtrain.modeling.sam import FRAMES, Sam

log = logging.getLogger(__name__)


def make_predictor(sam: Sam, *, frame: str | None = None) -> SamPredictor:
    """Returns the predictor that shows images as in the model's training, or as `frame` says, and logs which way that is.

    Args:
        sam: the model.
        frame: "resize" or "native" (see `SamConfig.frame`); None takes the model's own, as `SamPredictor(sam)` does.

    Returns:
        A `SamPredictor` that resizes, or a `TiledPredictor`.

    Raises:
        ValueError: for another frame.
    """
    used = frame_of(sam, frame)
    log.info(_describe(sam, used))
    if used == "native":
        return TiledPredictor(sam)
    return resizing_predictor(sam)


def resizing_predictor(sam: Sam) -> SamPredictor:
    """Returns the predictor that resizes images, whatever the model's frame is."""
    predictor = object.__new__(SamPredictor)  # calling the class would follow the model's own frame
    SamPredictor.__init__(predictor, sam)
    return predictor


def frame_of(sam: Sam, frame: str | None) -> str:
    """Returns the frame that is asked for, or else the model's own; raises ValueError for an unknown one."""
    if frame not in (None, *FRAMES):
        raise ValueError(f"frame is {frame!r}: use {' or '.join(FRAMES)}, or null for the frame of the model's training")
    return frame or sam.config.frame


def _describe(sam: Sam, frame: str) -> str:
    """Returns a sentence that says how images are shown to a model, and whether its training showed them in this way."""
    side = sam.config.image_size
    how = {
        "resize": f"Images are resized, so that their longest side has {side} pixels",
        "native": f"Images are cut into overlapping tiles of {side} x {side} of their own pixels",
    }[frame]
    if frame == sam.config.frame:
        return f"{how}, as in the training of the model (frame {frame})."
    return f"{how} (frame {frame}), although the model was trained with frame {sam.config.frame}."
