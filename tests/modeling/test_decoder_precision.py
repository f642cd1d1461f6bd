"""The IoU head ends in float32, because rounded to bfloat16 its predictions tie, and ties choose the first mask."""

from __future__ import annotations

import torch
from tiny_training import tiny_sam

from samtrain.types import Prompts


def predicted_ious(dtype: torch.dtype, autocast: bool) -> torch.Tensor:
    """Returns the IoUs of a model whose last layer says 0.8 to all masks but for a thousandth."""
    sam = tiny_sam().eval()
    last = sam.mask_decoder.iou_prediction_head.layers[-1]
    torch.nn.init.constant_(last.weight, 0.0)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.8, 0.8, 0.801, 0.802]))
        last.weight[2, 0] = last.weight[3, 1] = 1e-3
    sam = sam.to(dtype)
    embedding = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    prompts = Prompts(torch.tensor([[[8.0, 8.0], [0.0, 0.0]]]), torch.tensor([[1, -1]]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return sam.decode(embedding, torch.zeros(1, dtype=torch.int64), prompts, True).iou_predictions


def test_close_predictions_do_not_tie_under_autocast() -> None:
    ious = predicted_ious(torch.float32, autocast=True)
    assert ious.dtype == torch.float32 and len(set(ious[0].tolist())) == 3
    assert int(ious.argmax()) == int(predicted_ious(torch.float32, autocast=False).argmax())


def test_a_bfloat16_model_predicts_in_float32_and_a_float64_model_in_float64() -> None:
    assert predicted_ious(torch.bfloat16, autocast=False).dtype == torch.float32
    assert predicted_ious(torch.float64, autocast=False).dtype == torch.float64
