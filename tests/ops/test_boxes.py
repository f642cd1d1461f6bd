"""Tests that boxes round trip and fit their masks to the pixel."""

from __future__ import annotations

import torch

from samtrain.ops.boxes import clip_boxes_xyxy, masks_to_boxes_xyxy, xywh_to_xyxy, xyxy_to_xywh


def test_formats_round_trip():
    boxes = torch.rand(20, 4) * 100
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)
    assert xyxy_to_xywh(torch.tensor([[2.0, 3, 10, 7]])).tolist() == [[2, 3, 8, 4]]
    assert xyxy_to_xywh(torch.zeros(0, 4)).shape == (0, 4)


def test_a_box_encloses_its_mask():
    masks = torch.rand(30, 17, 23, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[0] = False
    masks[1] = True
    masks[2] = False
    masks[2, 5, 7] = True
    for mask, box in zip(masks, masks_to_boxes_xyxy(masks).long().tolist(), strict=True):
        ys, xs = mask.nonzero().unbind(dim=1)
        expected = [xs.min(), ys.min(), xs.max(), ys.max()] if len(ys) else [0, 0, 0, 0]
        assert box == [int(value) for value in expected]
    assert masks_to_boxes_xyxy(masks[:0]).shape == (0, 4)


def test_boxes_are_clipped_to_their_own_image():
    boxes = torch.tensor([[-5.0, -6, 50, 60], [1, 2, 3, 4], [90, 90, 99, 99]])
    sizes = torch.tensor([[20, 30], [20, 30], [50, 40]])
    assert clip_boxes_xyxy(boxes, sizes).tolist() == [[0, 0, 29, 19], [1, 2, 3, 4], [39, 49, 39, 49]]
