"""A small model for the evaluators' tests."""

from __future__ import annotations

import pytest
import torch

from samtrain.modeling import build_sam


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(3)
    sam = build_sam("vit_tiny")
    for parameter in sam.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    return sam
