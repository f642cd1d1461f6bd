"""Tests that points are inside their masks, uniformly distributed or at the centre."""

from __future__ import annotations

import torch

from samtrain.ops.points import centre_points, uniform_points
from samtrain.prompts import seeded_generator


def _disc(size: int, centre: tuple[int, int], radius: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def test_uniform_points_are_inside_their_masks():
    masks = torch.rand(40, 19, 31, generator=torch.Generator().manual_seed(0)) > 0.9
    masks[3] = False
    masks[4] = True
    masks[5] = False
    masks[5, 18, 30] = True
    for seed in range(20):
        points, found = uniform_points(masks, seeded_generator("cpu", seed))
        assert points.dtype == torch.float32 and found.tolist() == masks.flatten(1).any(dim=1).tolist()
        x, y = points.long().unbind(dim=1)
        assert masks[torch.arange(40), y, x][found].all()
    assert points[5].tolist() == [30, 18]


def test_uniform_points_are_uniform():
    """All pixels of a mask are equally frequent, although its rows have very different lengths."""
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[0, 3] = mask[5, 7] = True
    mask[2] = True
    draws = 20_000
    points, _ = uniform_points(mask.expand(draws, -1, -1), seeded_generator("cpu", 1))
    counts = torch.zeros(6, 8)
    x, y = points.long().unbind(dim=1)
    counts.index_put_((y, x), torch.ones(draws), accumulate=True)
    expected = draws / mask.sum()
    assert (counts[~mask] == 0).all()
    assert ((counts[mask] - expected).abs() < 5 * expected.sqrt()).all()


def test_uniform_points_depend_only_on_the_generator():
    masks = torch.ones(5, 9, 9, dtype=torch.bool)
    first, _ = uniform_points(masks, seeded_generator("cpu", 7, 3, 0))
    again, _ = uniform_points(masks, seeded_generator("cpu", 7, 3, 0))
    other, _ = uniform_points(masks, seeded_generator("cpu", 7, 3, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert uniform_points(masks[:0], seeded_generator("cpu", 0))[0].shape == (0, 2)


def test_the_centre_is_farthest_from_the_border():
    masks = torch.stack([_disc(41, (20, 13), 9), _disc(41, (0, 0), 20), torch.zeros(41, 41, dtype=torch.bool)])
    points, distances = centre_points(masks)
    assert points[0].tolist() == [20, 13] and 9 < distances[0] < 11
    # the image's edge is a border too: the middle of a quarter disc lies inside it
    assert 4 < points[1, 0] < 16 and 4 < points[1, 1] < 16
    assert points[2].tolist() == [0, 0] and distances[2] == 0


def test_the_centre_equals_brute_force():
    mask = torch.rand(12, 14, generator=torch.Generator().manual_seed(3)) > 0.25
    padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    border = (~padded).nonzero().float() - 1
    inside = mask.nonzero().float()
    nearest = torch.cdist(inside, border).amin(dim=1)
    points, distances = centre_points(mask[None])
    torch.testing.assert_close(distances[0], nearest.max())
    assert points[0].flip(0).tolist() == inside[nearest.argmax()].tolist()
    assert centre_points(mask[None][:0])[0].shape == (0, 2)
