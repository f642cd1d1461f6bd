"""The loop of training, validation, annotation and evaluation: encode once, prompt, decode, prompt again."""

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
    """What answers prompts: the model on a batch in the input frame, or a predictor on one image in its own pixels."""

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput: ...

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        """(N, 1, H, W) logits in the frame of the masks."""
        ...


class BatchDecoder:
    """Answers for the objects of a batch, in the input frame."""

    def __init__(self, sam: Sam, image_embeddings_BCgg: Tensor, batch: Batch) -> None:
        self.sam, self.embeddings, self.batch = sam, image_embeddings_BCgg, batch

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        return self.sam.decode(self.embeddings, self.batch.image_index, prompts, multimask_output)

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        side = self.batch.masks.shape[-1]
        return F.interpolate(low_res_logits_N1hw.float(), (side, side), mode="bilinear", align_corners=False)


@dataclass
class Interaction:
    """One turn: what was asked, what came, and which mask is fed back (`chosen`, the highest predicted IoU)."""

    index: int
    kind: str
    prompts: Prompts
    output: SamOutput
    chosen: Tensor  # (N,)
    low_res_logits: Tensor  # (N, 1, h, w), detached
    _decoder: Decoder

    def logits(self) -> Tensor:
        """(N, H, W) logits of the chosen mask in the frame of the masks, without gradient."""
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
    """Yields one interaction after the other; whoever iterates may stop, or take a gradient, at each.

    A lone click or box is one prompt and is answered by three masks; from the second interaction on a mask is fed back,
    which makes more than one prompt: the single mask (paper, section 3). What is fed back carries no gradient.
    """
    previous: Interaction | None = None
    prompts: Prompts | None = None
    for index, kind in enumerate(schedule):
        # ask
        with torch.no_grad():
            if previous is None or prompts is None:
                assert kind == FIRST, f"a schedule begins with {FIRST!r}"
                prompts = sampler.first(masks_NHW, valid_NHW, generator)
            else:
                if kind == POINT:
                    prompts = sampler.next(prompts, masks_NHW, previous.logits(), valid_NHW, generator)
                prompts = prompts.with_mask(previous.low_res_logits)

        # answer
        output = decoder.decode(prompts, multimask_output=prompts.mask_logits is None)

        # choose what is fed back
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
    """The kind and the loss of each interaction of a training step, weighted so that their sum is the step's loss."""
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
    """The sum of the interactions' losses, each gradient taken as its interaction happens, and the terms for the log.

    Memory does not grow with the number of interactions, and the encoder is gone through backwards once. `losses` turns an
    embedding into the interactions. Exact, because what is fed back from one interaction to the next is detached.
    """
    modules = (sam.prompt_encoder, sam.mask_decoder)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    log: list[tuple[str, LossTerms]] = []
    total = _GradientsAsTheyCome.apply(losses, log, image_embeddings_BCgg, *parameters)
    return total, log


class _GradientsAsTheyCome(torch.autograd.Function):
    """Takes the gradients in its forward and hands them out in its backward, so that any trainer may call backward()."""

    @staticmethod
    def forward(ctx: Any, losses: Any, log: list, embeddings: Tensor, *parameters: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
            wanted = [t for t in (leaf, *parameters) if t.requires_grad]
            sums: list[Tensor | None] = [None] * len(wanted)
            total = embeddings.new_zeros((), dtype=torch.float32)
            for kind, terms in losses(leaf):
                gradients = torch.autograd.grad(terms.total, wanted, allow_unused=True)
                sums = [_add(a, b) for a, b in zip(sums, gradients, strict=True)]
                terms.total = terms.total.detach()
                total = total + terms.total
                log.append((kind, terms))
        if not leaf.requires_grad:
            sums.insert(0, None)
        ctx.gradients = sums
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if g is None else g * outer[0].to(g.dtype) for g in ctx.gradients))


def _add(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    if total is None or new is None:
        return new if total is None else total
    return total.add_(new)
