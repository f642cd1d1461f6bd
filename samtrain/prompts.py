"""Simulates a person who prompts: the sampler of training and the protocol of evaluation (paper, appendices A and D)."""

from __future__ import annotations

from copy import copy
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from samtrain.ops.boxes import clip_boxes_xyxy, masks_to_boxes_xyxy
from samtrain.ops.points import centre_points, uniform_points
from samtrain.types import PointLabel, Prompts

# kinds of interaction: the first prompt, one more click, the previous mask alone
FIRST, POINT, MASK = "first", "point", "mask"


class Sampler(Protocol):
    """Defines what `interact` needs from an object that prompts.

    `masks` (N, H, W) bool are the true objects, `valid` (N, H, W) bool is False in the padding. Any class with these three
    methods will do; it need not inherit from this one.
    """

    def schedule(self, generator: torch.Generator) -> list[str]:
        """Returns the kind of each interaction, "first", "point" or "mask"; with equal generators the same on all ranks."""
        ...

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        """Returns the first prompt of each object."""
        ...

    def next(self, prompts: Prompts, masks: Tensor, logits: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        """Returns the prompts with one more click where the mask of the (N, H, W) `logits` is wrong."""
        ...


def seeded_generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """Returns a generator that depends only on the numbers (seed, step, rank), so a checkpoint need not store its state."""
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(state)


class PromptSampler:
    """Draws the paper's training prompts: a click or a noisy box, then clicks in the error, then the mask alone (appendix A).

    The defaults make 11 interactions: the first prompt, 8 clicks, and 2 interactions without a new click, one at a random place
    and one at the end. The schedule always has the same length and its random place is drawn once per step with the same
    generator on all ranks, so ranks stay in step.

    Raises ValueError for numbers out of range, naming the config keys.
    """

    def __init__(
        self,
        *,
        num_points: int = 8,  # clicks after the first prompt (appendix A: no gain beyond 8)
        box_probability: float = 0.5,  # appendix A: point or box with equal probability, drawn per object
        num_mask_only: int = 2,  # interactions without a new click; appendix A: one at a random place, one at the end
        box_noise: float = 0.1,  # standard deviation of each coordinate, as a share of the box's side (appendix A)
        box_noise_max: float = 20 / 1024,  # share of the input's side: 20 pixels of 1024 (appendix A; the frame is our reading)
    ) -> None:
        if num_points < 0 or num_mask_only not in (0, 1, 2):
            raise ValueError(
                f"prompts.num_points is {num_points} and prompts.num_mask_only is {num_mask_only}: "
                "set 0 or more points, and 0, 1 (at the end) or 2 (at a random place and at the end) for the mask alone"
            )
        if not 0 <= box_probability <= 1:
            raise ValueError(f"prompts.box_probability is {box_probability}: set a probability from 0 to 1")
        self.num_points = num_points
        self.box_probability = box_probability
        self.num_mask_only = num_mask_only
        self.box_noise = box_noise
        self.box_noise_max = box_noise_max

    def schedule(self, generator: torch.Generator) -> list[str]:
        """Returns the kinds of all interactions; only the place of the first interaction without a click is random."""
        steps = [FIRST] + [POINT] * self.num_points
        if self.num_mask_only == 2:
            # it may follow the first prompt or any click
            gap = int(torch.randint(1, self.num_points + 2, (), generator=generator))
            steps.insert(gap, MASK)
        return steps + [MASK] * (self.num_mask_only > 0)

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        """Returns a click drawn uniformly from each object, or its noisy box with `box_probability`."""
        points, found = uniform_points(masks & valid, generator)
        boxes = self._noisy_boxes(masks & valid, valid, generator)
        draw = torch.rand(len(masks), generator=generator, device=masks.device)
        return first_prompts(points, boxes, draw < self.box_probability, found)

    def next(self, prompts: Prompts, masks: Tensor, logits: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        """Returns the prompts with one more click, drawn uniformly from the pixels where the prediction is wrong."""
        predicted = logits > 0
        region = _where_to_click(masks & valid, (predicted != masks) & valid, valid)
        coords, _ = uniform_points(region, generator)
        return prompts.with_point(coords, _labels_at(coords, masks, valid))

    def _noisy_boxes(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        """Returns (N, 4) boxes with Gaussian noise on each coordinate, clipped to the image."""
        clean = masks_to_boxes_xyxy(masks)
        sides = (clean[:, 2:] - clean[:, :2]).repeat(1, 2)

        # noise in proportion to the box's side, at most `box_noise_max` of the input's side
        noise = torch.randn(clean.shape, generator=generator, device=clean.device) * sides * self.box_noise
        limit = self.box_noise_max * masks.shape[-1]
        noisy = clip_boxes_xyxy(clean + noise.clamp(-limit, limit), _sizes(valid))

        # thin objects keep their true box where the noise would leave no area
        vanished = (noisy[:, 2:] <= noisy[:, :2]).any(dim=1)
        return torch.where(vanished[:, None], clean, noisy)


class TextSampler(PromptSampler):
    """Begins with a text, with a text beside a click, or as `PromptSampler` does (paper, section 7.5 and appendix D.5).

    What stands for the text in training is CLIP's embedding of the object's crop. `with_text` gives the embeddings of a batch.
    """

    def __init__(
        self,
        *,
        text_probability: float = 1.0,  # of a text as the first prompt, for each object (appendix D.5: always)
        click_and_text_probability: float = 0.0,  # of a text beside the first click; the paper has none
        num_points: int = 8,
        box_probability: float = 0.5,
        num_mask_only: int = 2,
        box_noise: float = 0.1,
        box_noise_max: float = 20 / 1024,
    ) -> None:
        super().__init__(
            num_points=num_points,
            box_probability=box_probability,
            num_mask_only=num_mask_only,
            box_noise=box_noise,
            box_noise_max=box_noise_max,
        )
        if not (0 <= text_probability <= 1 and 0 <= click_and_text_probability <= 1 - text_probability):
            raise ValueError(
                f"prompts.text_probability is {text_probability} and prompts.click_and_text_probability is "
                f"{click_and_text_probability}: set probabilities from 0 to 1, together at most 1"
            )
        self.text_probability, self.click_and_text_probability = text_probability, click_and_text_probability
        self.text_NE: Tensor | None = None

    def with_text(self, text_NE: Tensor) -> TextSampler:
        """Returns a sampler that prompts the N objects of a batch with these embeddings."""
        sampler = copy(self)
        sampler.text_NE = text_NE
        return sampler

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator) -> Prompts:
        """Returns a text, a click with a text, a click or a noisy box for each object."""
        prompts = super().first(masks, valid, generator)
        assert self.text_NE is not None, "the embeddings of the batch are missing: call with_text first"
        draw = torch.rand(len(masks), generator=generator, device=masks.device)
        alone = draw < self.text_probability
        # a box has two tokens already, so a text goes with clicks only
        has_room = (prompts.labels == PointLabel.PADDING).any(dim=1)
        beside = ~alone & (draw < self.text_probability + self.click_and_text_probability) & has_room
        labels = prompts.labels.masked_fill(alone[:, None], int(PointLabel.PADDING))
        return Prompts(prompts.coords, labels).with_text(self.text_NE, alone | beside)


def text_prompts(text_NE: Tensor) -> Prompts:
    """Returns a text as the only prompt of each object: the tokens are the text and a padding token."""
    labels = torch.tensor([PointLabel.TEXT, PointLabel.PADDING], device=text_NE.device).repeat(len(text_NE), 1)
    return Prompts(torch.zeros(len(text_NE), 2, 2, device=text_NE.device), labels, None, text_NE)


class CentreSampler:
    """Clicks as the paper's evaluation does: at the centre of the object, then at the centre of the error (appendix D).

    The centre is the pixel farthest from the region's border. Of the missing and the surplus regions the one with the largest
    such distance is clicked (RITM's rule). Nothing is random, except the first click with `first="random"` (the paper's second
    protocol). With `repeat=False` no pixel is clicked twice, as RITM counts the clicks that a good mask needs.

    moved_at: the first click, counted from 1, that went elsewhere because its pixel had been clicked; None if there was none
    """

    def __init__(self, *, num_points: int = 5, first: str = "point", repeat: bool = True) -> None:
        """`num_points` includes the first click; `first` is "point", "box", or "random" for a click anywhere on the object."""
        if first not in ("point", "box", "random"):
            raise ValueError(f"first is {first!r}: set 'point', 'box' or 'random'")
        self.num_points = num_points
        self.kind, self.repeat = first, repeat
        self.moved_at: int | None = None

    def schedule(self, generator: torch.Generator | None = None) -> list[str]:
        """Returns the kinds of all interactions; `generator` is not used."""
        return [FIRST] + [POINT] * (self.num_points - 1)

    def first(self, masks: Tensor, valid: Tensor, generator: torch.Generator | None = None) -> Prompts:
        """Returns each object's box, its centre, or a random click; only the random click needs the generator."""
        objects = masks & valid
        boxes = masks_to_boxes_xyxy(objects)
        found = objects.flatten(1).any(dim=1)
        if self.kind == "box":
            return first_prompts(boxes[:, :2], boxes, found, found)
        if self.kind == "random":
            assert generator is not None, "a random first click needs a generator"
            points, _ = uniform_points(objects, generator)
        else:
            points, _ = centre_points(objects)
        return first_prompts(points, boxes, torch.zeros_like(found), found)

    def next(
        self, prompts: Prompts, masks: Tensor, logits: Tensor, valid: Tensor, generator: torch.Generator | None = None
    ) -> Prompts:
        """Returns the prompts with one more click at the centre of the largest error."""
        coords = _centre_of_error(masks, logits > 0, valid, None)
        if not self.repeat:
            clicked = _clicked(prompts, masks)
            x, y = coords.long().unbind(dim=1)
            if clicked[torch.arange(len(masks), device=masks.device), y, x].any():
                coords = _centre_of_error(masks, logits > 0, valid, clicked)
                self.moved_at = self.moved_at or prompts.coords.shape[1]  # the first click has two tokens
        return prompts.with_point(coords, _labels_at(coords, masks, valid))


def _centre_of_error(masks: Tensor, predicted: Tensor, valid: Tensor, clicked: Tensor | None) -> Tensor:
    """Returns (N, 2) the centre of each object's largest error; no pixel of `clicked` (N, H, W) is taken."""
    # the larger region, by its inner radius
    missing, missing_radius = centre_points(masks & ~predicted & valid, clicked)
    surplus, surplus_radius = centre_points(predicted & ~masks & valid, clicked)
    coords = torch.where((missing_radius > surplus_radius)[:, None], missing, surplus)

    # where no error is left: the centre of the background, or of the object if it covers the whole image
    perfect = (missing_radius == 0) & (surplus_radius == 0)
    if perfect.any():
        region = _where_to_click(masks[perfect] & valid[perfect], torch.zeros_like(masks[perfect]), valid[perfect])
        coords[perfect] = centre_points(region, None if clicked is None else clicked[perfect])[0]
    return coords


def _clicked(prompts: Prompts, masks: Tensor) -> Tensor:
    """Returns (N, H, W) bool, the pixels at which the prompts have clicks."""
    is_click = (prompts.labels == PointLabel.FOREGROUND) | (prompts.labels == PointLabel.BACKGROUND)
    rows, tokens = is_click.nonzero(as_tuple=True)
    x, y = prompts.coords[rows, tokens].long().unbind(dim=1)
    clicked = torch.zeros_like(masks)
    clicked[rows, y, x] = True
    return clicked


def first_prompts(points_N2: Tensor, boxes_N4: Tensor, use_box_N: Tensor, found_N: Tensor) -> Prompts:
    """Returns prompts of two tokens per object: a click and a padding token, or the two corners of a box.

    points_N2 are clicks (x, y), boxes_N4 xyxy; `use_box_N` (bool) chooses between them. Objects with `found_N` False, which
    have no pixel, get two padding tokens.
    """
    box = boxes_N4.view(-1, 2, 2)
    click = torch.stack([points_N2, torch.zeros_like(points_N2)], dim=1)
    # made on the device: a tensor made of numbers on the host would wait for the GPU
    first = torch.where(use_box_N, PointLabel.BOX_TOP_LEFT, PointLabel.FOREGROUND)
    second = torch.where(use_box_N, PointLabel.BOX_BOTTOM_RIGHT, PointLabel.PADDING)
    labels = torch.stack([first, second], dim=1).masked_fill(~found_N[:, None], PointLabel.PADDING)
    return Prompts(torch.where(use_box_N[:, None, None], box, click), labels)


def _where_to_click(objects: Tensor, error: Tensor, valid: Tensor) -> Tensor:
    """Returns (N, H, W) bool: the error, else the background, else (it covers the image) the object; the paper is silent."""
    has_error = error.flatten(1).any(dim=1)[:, None, None]
    background = valid & ~objects
    has_background = background.flatten(1).any(dim=1)[:, None, None]
    return torch.where(has_error, error, torch.where(has_background, background, objects))


def _labels_at(coords_N2: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Returns (N,) int64: foreground for a click on the object, background for one beside it, padding for an empty object."""
    x, y = coords_N2.long().unbind(dim=1)
    rows = torch.arange(len(masks), device=masks.device)
    labels = masks[rows, y, x].long()  # True becomes 1, PointLabel.FOREGROUND; False becomes 0, BACKGROUND
    empty = ~(masks & valid).flatten(1).any(dim=1)
    return torch.where(empty, torch.full_like(labels, PointLabel.PADDING), labels)


def _sizes(valid_NHW: Tensor) -> Tensor:
    """Returns (N, 2), the height and width of the valid rectangle of each object's image."""
    return torch.stack([valid_NHW[:, :, 0].sum(dim=1), valid_NHW[:, 0, :].sum(dim=1)], dim=1)
