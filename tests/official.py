"""segment_anything's model at any size, for tests that compare with it."""

from __future__ import annotations

import pytest
from torch import Tensor

from samtrain.export.official import segment_anything_model
from samtrain.modeling import Sam, SamConfig
from samtrain.modeling.weights import official_state_dict

parts = pytest.importorskip("segment_anything.modeling", reason="needs the reference: pip install segment-anything")


def official_like(sam: Sam) -> parts.Sam:
    """The same sizes and weights as ours."""
    return official_sam(sam.config, official_state_dict(sam))


def official_sam(config: SamConfig, state: dict[str, Tensor]) -> parts.Sam:
    """Of a state dict in Meta's layout, whose memory it shares."""
    return segment_anything_model(config, state)
