"""Runs the one loop of training, validation, annotation and evaluation: encode once, prompt, decode, prompt again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.losses import LossTerms, SamLoss
from samtrain.modeling.sam import Sam
from samtrain.prompts import FIRST, POINT, Sampler
from samtrain.types import Batch, Prompts, SamOutput


class Decoder(Protocol):
    """Defines what `interact` needs from an object that answers prompts.

    `BatchDecoder` answers for a batch in the input frame, `ImageDecoder` for a predictor's image in its own pixels.
    """

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        """Returns three masks per object with `multimask_output`, else one."""
        ...

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        """Returns (N, 1, H, W) logits in the frame of the true masks."""
        ...


class BatchDecoder:
    """Answers prompts for the N objects of a batch, in the input frame."""

    def __init__(self, sam: Sam, image_embeddings_BCgg: Tensor, batch: Batch) -> None:
        self.sam, self.embeddings, self.batch = sam, image_embeddings_BCgg, batch

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        """Returns three masks per object with `multimask_output`, else one."""
        return self.sam.decode(self.embeddings, self.batch.image_index, prompts, multimask_output)

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        """Returns (N, 1, S, S) float32 logits, upscaled bilinearly to the network input."""
        side = self.batch.masks.shape[-1]
        return F.interpolate(low_res_logits_N1hw.float(), (side, side), mode="bilinear", align_corners=False)


@dataclass
class Interaction:
    """Holds one turn of the loop: the prompts, the answer, and the mask that is fed back to the next turn.

    index:           0 for the first turn
    kind:            "first", "point" or "mask", from the schedule
    prompts:         all prompts so far, with the previous turn's mask from the second turn on
    output:          the decoder's masks and predicted IoUs, with gradients if the decoder has them
    chosen:          (N,) int64, the mask with the highest predicted IoU
    low_res_logits:  (N, 1, h, w), the logits of the chosen mask, without gradient
    """

    index: int
    kind: str
    prompts: Prompts
    output: SamOutput
    chosen: Tensor
    low_res_logits: Tensor
    _decoder: Decoder

    def logits(self) -> Tensor:
        """Returns (N, H, W), the chosen mask's logits in the frame of the true masks, without gradient."""
        with torch.no_grad():
            return self._decoder.to_frame(self.low_res_logits)[:, 0]


def interact(
    decoder: Decoder,
    masks_NHW: Tensor,
    sampler: Sampler,
    *,
    schedule: list[str],
    valid_NHW: Tensor,
    generator: torch.Generator,
) -> Iterator[Interaction]:
    """Yields the interactions one by one; the caller may stop, or compute a gradient, after each.

    The first interaction has one prompt, a click or a box, which may be ambiguous: the decoder answers with three masks. From
    the second on the previous mask is a prompt as well, and the decoder answers with a single mask (paper, section 3). The
    mask that is fed back carries no gradient.

    Args:
        decoder: answers the prompts.
        masks_NHW: bool, the true objects.
        sampler: draws the prompts from the true objects and the error so far.
        schedule: the kind of each interaction, as `sampler.schedule` returns it; it begins with "first".
        valid_NHW: bool, False in the padding.
        generator: the sampler's random numbers, on the device of the masks.
    """
    previous: Interaction | None = None
    prompts: Prompts | None = None
    for index, kind in enumerate(schedule):
        # Prompt: the first prompt, then a click in the error or no new click, always with the previous mask
        with torch.no_grad():
            if previous is None or prompts is None:
                assert kind == FIRST, f"a schedule must begin with {FIRST!r}"
                prompts = sampler.first(masks_NHW, valid_NHW, generator)
            else:
                if kind == POINT:
                    prompts = sampler.next(prompts, masks_NHW, previous.logits(), valid_NHW, generator)
                prompts = prompts.with_mask(previous.low_res_logits)

        # Decode: three masks for the first prompt, one from then on
        output = decoder.decode(prompts, multimask_output=prompts.mask_logits is None)

        # Choose the mask of highest predicted IoU, which is fed back
        chosen = output.best()
        h, w = output.low_res_logits.shape[-2:]
        index_N1hw = chosen[:, None, None, None].expand(-1, 1, h, w)
        fed_back = output.low_res_logits.detach().gather(1, index_N1hw)
        previous = Interaction(index, kind, prompts, output, chosen, fed_back, decoder)
        yield previous


def interaction_losses(
    sam: Sam,
    image_embeddings_BCgg: Tensor,
    batch: Batch,
    sampler: Sampler,
    loss: SamLoss,
    *,
    schedule: list[str],
    generator: torch.Generator,
    num_objects: Tensor | float,
) -> Iterator[tuple[str, LossTerms]]:
    """Yields the kind and the loss of each interaction of a training step; the losses add up to the loss of the step.

    `num_objects` divides the sums over the objects; see `SamLoss`.
    """
    valid = batch.valid().index_select(0, batch.image_index)
    targets = loss.targets(batch.masks, valid, batch.weights, sam.config.mask_size)
    decoder = BatchDecoder(sam, image_embeddings_BCgg, batch)
    weight = loss.interaction_weight(len(schedule))
    for turn in interact(decoder, batch.masks, sampler, schedule=schedule, valid_NHW=valid, generator=generator):
        terms = loss(turn.output, targets, num_objects)
        terms.total = terms.total * weight
        yield turn.kind, terms


def loss_with_flat_memory(
    sam: Sam, image_embeddings_BCgg: Tensor, losses: Callable[[Tensor], Iterator[tuple[str, LossTerms]]]
) -> tuple[Tensor, list[tuple[str, LossTerms]]]:
    """Returns the sum of the interactions' losses, and each interaction's kind and loss for the log.

    `losses` yields the interactions for an image embedding. The gradient of each interaction is computed as soon as it is
    yielded and its graph is freed, so memory does not grow with the number of interactions, and the encoder's backward pass
    runs once. This is exact, because the mask fed back from one interaction to the next carries no gradient.
    """
    modules = (sam.prompt_encoder, sam.mask_decoder)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    log: list[tuple[str, LossTerms]] = []
    total = _GradientsInForward.apply(losses, log, image_embeddings_BCgg, *parameters)
    return total, log


class _GradientsInForward(torch.autograd.Function):
    """Computes gradients in its forward pass and returns them in its backward pass, so that any trainer can call backward()."""

    @staticmethod
    def forward(ctx: Any, losses: Any, log: list, embeddings: Tensor, *parameters: Tensor) -> Tensor:
        with torch.enable_grad():
            # The embedding becomes a leaf: each interaction's graph ends there
            leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
            wanted = [t for t in (leaf, *parameters) if t.requires_grad]
            sums: list[Tensor | None] = [None] * len(wanted)
            total = embeddings.new_zeros((), dtype=torch.float32)

            # Each interaction's gradients are added up, then its graph is freed
            for kind, terms in losses(leaf):
                gradients = torch.autograd.grad(terms.total, wanted, allow_unused=True)
                sums = [_add(a, b) for a, b in zip(sums, gradients, strict=True)]
                terms.total = terms.total.detach()
                total = total + terms.total
                log.append((kind, terms))
        if not leaf.requires_grad:
            sums.insert(0, None)  # a frozen encoder: no gradient in the embedding's place
        ctx.gradients = sums
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if g is None else g * outer[0].to(g.dtype) for g in ctx.gradients))


def _add(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Adds gradients in place; None is the gradient of a tensor that was not used."""
    if total is None or new is None:
        return new if total is None else total
    return total.add_(new)
