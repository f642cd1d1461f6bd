"""Compares logits in the frame of an image with segment_anything's interpolation, and tests their bounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.ops.logit_frame import LogitFrame, axis_of
from samtrain.ops.masks import longest_side_size

CPU = torch.device("cpu")
SIZES = [(100, 150), (33, 50), (7, 170), (300, 201), (64, 64)]
IMAGE, MASK = 128, 32


def interpolated(logits_hw: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns what segment_anything does: up to the input, the padding cut off, up or down to the image."""
    h, w = longest_side_size(size, IMAGE)
    masks = F.interpolate(logits_hw[None, None].double(), (IMAGE, IMAGE), mode="bilinear", align_corners=False)
    return F.interpolate(masks[..., :h, :w], size, mode="bilinear", align_corners=False)[0, 0]


def frame_of(size: tuple[int, int]) -> LogitFrame:
    lengths = longest_side_size(size, IMAGE)
    rows, columns = (axis_of((0, s), (s, s), n, IMAGE, MASK, CPU) for s, n in zip(size, lengths, strict=True))
    return LogitFrame(rows, columns)


@pytest.mark.parametrize("size", SIZES)
def test_rendering_equals_interpolation(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(MASK, MASK)
    rendered = frame_of(size).render(logits, (slice(0, size[0]), slice(0, size[1]))).T
    torch.testing.assert_close(rendered.double(), interpolated(logits, size), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(8))
def test_reach_and_bounds_hold(size: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    frame = frame_of(size)
    # a blob somewhere, of sharp or soft edges
    y, x = torch.meshgrid(torch.arange(MASK), torch.arange(MASK), indexing="ij")
    centre = torch.rand(2) * MASK
    radius = 1 + 10 * torch.rand(())
    logits = (radius - torch.hypot(y - centre[0], x - centre[1])) * (0.3 + 5 * torch.rand(())) + 0.2 * torch.randn(MASK, MASK)
    full = interpolated(logits, size)
    hot = logits > -1
    rows, columns = (hot.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return
    reach = frame.reach((int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))
    outside = torch.ones(size, dtype=torch.bool)
    outside[reach] = False
    assert not (full > -1)[outside].any()
    if not all(part.start < part.stop for part in reach):
        return  # all of it lies in the padding
    most, fewest = frame.bounds(logits, reach, 0.0, 1.0).tolist()
    assert most >= (full > 1).sum() and fewest <= (full > -1).sum()


def test_bounds_are_exact_far_from_edges_of_shapes() -> None:
    """With constant logits and steep edges only pixels between two logits are in doubt."""
    logits = torch.full((MASK, MASK), -20.0)
    logits[8:16, 8:24] = 20
    most, fewest = frame_of((IMAGE, IMAGE)).bounds(logits, (slice(0, IMAGE), slice(0, IMAGE)), 0.0, 1.0).tolist()
    scale = IMAGE // MASK
    assert fewest >= (8 - 1) * (16 - 1) * scale**2 and most <= (8 + 2) * (16 + 2) * scale**2


def test_a_smaller_frame_contains_the_pixels_with_centres_in_the_crop() -> None:
    begin, axis = axis_of((30, 70), (100, 50), IMAGE, IMAGE, MASK, CPU)
    assert begin == 15 and len(axis.first) == 20
    begin, axis = axis_of((31, 70), (100, 50), IMAGE, IMAGE, MASK, CPU)
    assert begin == 15 and len(axis.first) == 20  # pixel 15 has its centre at 31
    begin, axis = axis_of((32, 70), (100, 50), IMAGE, IMAGE, MASK, CPU)
    assert begin == 16 and len(axis.first) == 19


def test_a_smaller_frame_samples_the_same_places() -> None:
    """On a ramp along a row the value of a pixel shows its place."""
    _, axis = axis_of((0, 100), (100, 50), IMAGE, IMAGE, MASK, CPU)
    ramp = (torch.arange(MASK) + 0.5) / MASK * 100  # the place in the image of each logit's centre
    places = axis.matrix_Ph @ ramp
    expected = (torch.arange(50) + 0.5) * 2
    inside = (expected > ramp[0]) & (expected < ramp[-1])
    torch.testing.assert_close(places[inside], expected[inside], atol=1e-3, rtol=0)
