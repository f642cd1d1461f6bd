"""Who clicks: the paper's simulated prompts for training, the centre protocol for evaluation (appendices A and D)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from samtrain.ops.boxes import clip_boxes_xyxy, masks_to_boxes_xyxy
from samtrain.ops.points import centre_points, uniform_points
from samtrain.types import PointLabel, Prompts

FIRST, POINT, MASK = "first", "point", "mask"


class Sampler(Protocol):
    """What `interact` asks of whoever prompts. Masks are (N, H, W) bool; so is `valid`, False in the padding."""

    def schedule(self, generator: torch.Generator) -> list[str]:
        """What happens at each interaction: "first", "point" or "mask"; equal on all ranks for equal generators."""
        ...

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        """The first prompt of each object."""
        ...

    def next(
        self, prompts: Prompts, masks: Tensor, logits: Tensor, valid: Tensor, generator: torch.Generator
    ) -> Prompts:
        """The prompts with one more click in the error of (N, H, W) `logits`."""
        ...


def seeded_generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator that is a function of some numbers (seed, step, rank): nothing to save, nothing to restore."""
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(state)


class PromptSampler:
    """The paper's training prompts: a click or a noisy box, clicks in the error, and rounds with the mask alone.

    With the defaults 11 interactions: the first, 8 clicks, 2 without a new click, one of these at a random place, one last.
    The length of the schedule never changes, so ranks agree; its random place is drawn once a step, equally on all ranks.
    """

    def __init__(
        self,
        *,
        num_points: int = 8,  # clicks after the first prompt (appendix A: no gain beyond 8)
        box_probability: float = 0.5,  # appendix A: point or box with equal probability, for each object
        num_mask_only: int = 2,  # appendix A: one at a random place, one last
        box_noise: float = 0.1,  # standard deviation on each coordinate, of the side's length (appendix A)
        box_noise_max: float = 20 / 1024,  # of the input's side: 20 pixels at 1024 (appendix A; frame is our reading)
    ) -> None:
        if num_points < 0 or num_mask_only not in (0, 1, 2):
            raise ValueError(
                f"prompts.num_points is {num_points} and prompts.num_mask_only {num_mask_only}: "
                "take 0 or more points, and 0, 1 (last) or 2 (random place and last) interactions with the mask alone"
            )
        if not 0 <= box_probability <= 1:
            raise ValueError(f"prompts.box_probability is {box_probability}: take a number from 0 to 1")
        self.num_points = num_points
        self.box_probability = box_probability
        self.num_mask_only = num_mask_only
        self.box_noise = box_noise
        self.box_noise_max = box_noise_max

    def schedule(self, generator: torch.Generator) -> list[str]:
        steps = [FIRST] + [POINT] * self.num_points
        if self.num_mask_only == 2:
            # the gaps: after the first prompt, after each click
            gap = int(torch.randint(1, self.num_points + 2, (), generator=generator))
            steps.insert(gap, MASK)
        return steps + [MASK] * (self.num_mask_only > 0)

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        points, found = uniform_points(masks & valid, generator)
        boxes = self._noisy_boxes(masks & valid, valid, generator)
        draw = torch.rand(len(masks), generator=generator, device=masks.device)
        return first_prompts(points, boxes, draw < self.box_probability, found)

    def next(
        self, prompts: Prompts, masks: Tensor, logits: Tensor, valid: Tensor, generator: torch.Generator
    ) -> Prompts:
        predicted = logits > 0
        region = _where_to_click(masks & valid, (predicted != masks) & valid, valid)
        coords, _ = uniform_points(region, generator)
        return prompts.with_point(coords, _labels_at(coords, masks, valid))

    def _noisy_boxes(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Each coordinate moved by a Gaussian; clipped to the image, and the clean box where nothing would be left."""
        clean = masks_to_boxes_xyxy(masks)
        sides = (clean[:, 2:] - clean[:, :2]).repeat(1, 2)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device) * sides * self.box_noise
        limit = self.box_noise_max * masks.shape[-1]
        noisy = clip_boxes_xyxy(clean + noise.clamp(-limit, limit), _sizes(valid))
        vanished = (noisy[:, 2:] <= noisy[:, :2]).any(dim=1)
        return torch.where(vanished[:, None], clean, noisy)


class CentreSampler:
    """The evaluation protocol: the point farthest from the border, of the object first and of its error then (appendix D).

    Deterministic but for a random first click (the paper's second protocol). The larger of missing and surplus region is
    clicked, measured by its inner radius (RITM's rule).
    """

    def __init__(self, *, num_points: int = 5, first: str = "point") -> None:
        """`num_points` counts the first click; `first` is "point", "box", or "random": a click anywhere on the object."""
        if first not in ("point", "box", "random"):
            raise ValueError(f"first is {first!r}: take 'point', 'box' or 'random'")
        self.num_points = num_points
        self.kind = first

    def schedule(self, generator: torch.Generator | None = None) -> list[str]:
        return [FIRST] + [POINT] * (self.num_points - 1)

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator | None = None) -> Prompts:
        objects = masks & valid
        boxes = masks_to_boxes_xyxy(objects)
        found = objects.flatten(1).any(dim=1)
        if self.kind == "box":
            return first_prompts(boxes[:, :2], boxes, found, found)
        if self.kind == "random":
            assert generator is not None, "what is random has a seed"
            points, _ = uniform_points(objects, generator)
        else:
            points, _ = centre_points(objects)
        return first_prompts(points, boxes, torch.zeros_like(found), found)

    def next(
        self, prompts: Prompts, masks: Tensor, logits: Tensor, valid: Tensor, generator: torch.Generator | None = None
    ) -> Prompts:
        predicted = logits > 0
        missing, missing_radius = centre_points(masks & ~predicted & valid)
        surplus, surplus_radius = centre_points(predicted & ~masks & valid)
        coords = torch.where((missing_radius > surplus_radius)[:, None], missing, surplus)
        # no error left: the middle of the background, or of the object where it is all there is
        perfect = (missing_radius == 0) & (surplus_radius == 0)
        if perfect.any():
            region = _where_to_click(masks[perfect] & valid[perfect], torch.zeros_like(masks[perfect]), valid[perfect])
            coords[perfect] = centre_points(region)[0]
        return prompts.with_point(coords, _labels_at(coords, masks, valid))


def first_prompts(points_N2: Tensor, boxes_N4: Tensor, use_box_N: Tensor, found_N: Tensor) -> Prompts:
    """Two tokens an object: a click and the padding token, or a box's corners; two padding tokens where nothing is found."""
    box = boxes_N4.view(-1, 2, 2)
    click = torch.stack([points_N2, torch.zeros_like(points_N2)], dim=1)
    kinds = torch.tensor(
        [
            [PointLabel.FOREGROUND, PointLabel.PADDING],
            [PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT],
            [PointLabel.PADDING, PointLabel.PADDING],
        ],
        device=points_N2.device,
    )
    row = torch.where(found_N, use_box_N.long(), torch.full_like(use_box_N, 2, dtype=torch.long))
    return Prompts(torch.where(use_box_N[:, None, None], box, click), kinds.index_select(0, row))


def _where_to_click(objects: Tensor, error: Tensor, valid: Tensor) -> Tensor:
    """The error; without one the background; without that the object (paper silent, DESIGN.md)."""
    has_error = error.flatten(1).any(dim=1)[:, None, None]
    background = valid & ~objects
    has_background = background.flatten(1).any(dim=1)[:, None, None]
    return torch.where(has_error, error, torch.where(has_background, background, objects))


def _labels_at(coords_N2: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Foreground on the object, background off it; padding for an object that is empty."""
    x, y = coords_N2.long().unbind(dim=1)
    rows = torch.arange(len(masks), device=masks.device)
    labels = masks[rows, y, x].long()  # 1 is PointLabel.FOREGROUND, 0 BACKGROUND
    empty = ~(masks & valid).flatten(1).any(dim=1)
    return torch.where(empty, torch.full_like(labels, PointLabel.PADDING), labels)


def _sizes(valid_NHW: Tensor) -> Tensor:
    """(N, 2) height and width of the valid rectangle."""
    return torch.stack([valid_NHW[:, :, 0].sum(dim=1), valid_NHW[:, 0, :].sum(dim=1)], dim=1)
