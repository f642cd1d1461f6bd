"""Compares IoU, stability and sizes with their definitions."""

from __future__ import annotations

import pytest
import torch

from samtrain.ops.masks import longest_side_size, mask_iou, pairwise_mask_iou, stability_score


@pytest.fixture
def masks() -> torch.Tensor:
    return torch.rand(6, 11, 13, generator=torch.Generator().manual_seed(0)) > 0.5


def test_iou_of_a_mask_with_itself_its_complement_and_nothing(masks):
    empty = torch.zeros_like(masks)
    assert mask_iou(masks, masks).tolist() == [1.0] * 6
    assert mask_iou(masks, ~masks).tolist() == [0.0] * 6
    assert mask_iou(masks, empty).tolist() == [0.0] * 6
    assert mask_iou(empty, empty).tolist() == [1.0] * 6


def test_iou_counts_only_valid_pixels(masks):
    other, valid = masks.roll(1, 0), torch.zeros_like(masks)
    valid[:, :5, :7] = True
    torch.testing.assert_close(mask_iou(masks, other, valid), mask_iou(masks[:, :5, :7], other[:, :5, :7]))


def test_pairwise_iou_equals_iou_of_each_pair(masks):
    others = masks.flip(1)[:4]
    pairs = pairwise_mask_iou(masks, others)
    assert pairs.shape == (6, 4)
    for i, mask in enumerate(masks):
        torch.testing.assert_close(pairs[i], mask_iou(mask.expand(4, -1, -1), others))
    empty = torch.zeros(1, 11, 13, dtype=torch.bool)
    assert pairwise_mask_iou(empty, empty).item() == 0


def test_stability_is_the_iou_of_two_thresholds():
    logits = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 3
    found = stability_score(logits, offset=0.7)
    assert found.shape == (2, 3)
    expected = mask_iou((logits > 0.7).flatten(0, 1), (logits > -0.7).flatten(0, 1)).view(2, 3)
    torch.testing.assert_close(found, expected)
    assert stability_score(torch.full((1, 4, 4), 9.0)).item() == 1


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (1024, 1024), (1, 5000), (767, 1023)])
def test_the_longest_side_is_exact_and_the_other_is_rounded(size):
    height, width = longest_side_size(size, 1024)
    assert max(height, width) == 1024
    assert height == max(1, round(size[0] * 1024 / max(size)))  # a thin image keeps a pixel
    assert abs(width - size[1] * 1024 / max(size)) <= 0.5


def test_a_thin_image_keeps_a_pixel() -> None:
    for size in ((3, 700), (1, 5000), (700, 3)):
        height, width = longest_side_size(size, 96)
        assert max(height, width) == 96 and min(height, width) == 1
