"""Times a whole training step of ViT-B on one image of 1024 px, ours against the usual loop over segment_anything.

The loop runs the encoder, then one interaction after the other on `mask_decoder`, and keeps every graph. It upscales logits to
1024 px for focal and dice loss, draws the next click from each object's error in turn, and runs one backward pass at the end.
Its memory grows with objects times interactions, so `--peer-masks` limits its objects.
"""

from __future__ import annotations

import gc
import statistics

import torch
import torch.nn.functional as F
from models import official_sam, our_sam
from paired import Row, arguments, begin, compare, finish, peak_gb, timed
from torch import Tensor

from samtrain.interact import interaction_losses, loss_with_flat_memory
from samtrain.losses import SamLoss
from samtrain.prompts import PromptSampler, seeded_generator
from samtrain.types import Batch


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--masks", type=int, nargs="+", default=[4, 16], help="numbers of objects in the image")
    parser.add_argument("--peer-masks", type=int, default=4, help="leave the peer out for more objects than this")
    parser.add_argument("--interactions", type=int, default=11)
    parser.add_argument("--growth", action="store_true", help="also measure our step with 1, 4 and 11 interactions")
    options = parser.parse_args()
    begin(options)
    official = official_sam()
    ours = our_sam(official).train()
    rows: list[Row] = []
    notes: dict[str, str] = {}
    for masks in options.masks:
        what = f"a step, ViT-B, 1024 px, {masks} masks, {options.interactions} interactions, float32"
        batch = image(masks)

        def own(batch: Batch = batch, interactions: int = options.interactions) -> None:
            our_step(ours, batch, interactions)

        if masks <= options.peer_masks:
            rows.append(
                compare(
                    what,
                    "the loop on segment_anything",
                    lambda batch=batch: their_step(official, batch, options.interactions),
                    own,
                    pairs=options.pairs,
                    memory=True,
                )
            )
        else:
            own()
            seconds = statistics.median(timed(own) for _ in range(options.pairs))
            notes[f"{what}, ours alone"] = f"{seconds:.1f} s, peak {peak_gb(own):.2f} GB"
        if options.growth:
            peaks = {n: peak_gb(lambda n=n, own=own: own(interactions=n)) for n in (2, 4, 11)}
            notes[f"{masks} masks, peak GB by interactions"] = ", ".join(f"{n}: {gb:.2f}" for n, gb in peaks.items())
        gc.collect()
    finish(options, "step", rows, notes)


def image(num_masks: int, side: int = 1024) -> Batch:
    """Returns a batch of noise with discs of random places and sizes as objects."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(num_masks, 2, generator=generator) * side
    radii = side / 1024 * (20 + 180 * torch.rand(num_masks, generator=generator))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = (x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2
    return Batch(
        images=torch.randint(0, 256, (1, 3, side, side), generator=generator, dtype=torch.uint8),
        masks=distance < radii[:, None, None] ** 2,
        image_index=torch.zeros(num_masks, dtype=torch.int64),
        weights=torch.ones(num_masks),
        input_sizes=torch.tensor([[side, side]]),
        original_sizes=torch.tensor([[side, side]]),
        keys=["noise"],
    )


def our_step(sam, batch: Batch, interactions: int) -> None:
    """Does what `LitSam.training_step` does, and the backward pass."""
    sampler = PromptSampler(num_points=max(interactions - 3, 0), num_mask_only=2 if interactions > 2 else interactions - 1)
    schedule = sampler.schedule(seeded_generator("cpu", 0))
    assert len(schedule) == interactions

    def losses(embeddings: Tensor):
        return interaction_losses(
            sam,
            embeddings,
            batch,
            sampler,
            SamLoss(),
            schedule=schedule,
            generator=seeded_generator(batch.images.device, 0),
            num_objects=len(batch.masks),
        )

    sam.zero_grad(set_to_none=True)
    embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
    loss_with_flat_memory(sam, embeddings, losses)[0].backward()


# ---- the usual loop


def their_step(sam, batch: Batch, interactions: int) -> None:
    masks = batch.masks
    generator = torch.Generator(masks.device).manual_seed(0)
    sam.zero_grad(set_to_none=True)
    image = (batch.images.float() - sam.pixel_mean) / sam.pixel_std
    embedding = sam.image_encoder(image)
    points, labels = first_clicks(masks, generator)
    low, total = None, 0.0
    for turn in range(interactions):
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=low)
        logits, ious = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=turn == 0,
        )
        full = F.interpolate(logits, (1024, 1024), mode="bilinear", align_corners=False)
        total = total + their_loss(full, ious, masks)
        best = ious.argmax(dim=1)
        rows = torch.arange(len(masks), device=masks.device)
        low = logits[rows, best][:, None].detach()
        if turn < interactions - 2:  # the last interaction has no new click
            new, kinds = next_clicks(full[rows, best].detach(), masks, generator)
            points, labels = torch.cat([points, new[:, None]], dim=1), torch.cat([labels, kinds[:, None]], dim=1)
    (total / interactions).backward()


def their_loss(full: Tensor, ious: Tensor, masks: Tensor) -> Tensor:
    """Returns 20 focal + dice + IoU error of the best mask."""
    target = masks[:, None].float().expand_as(full)
    probability = full.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(full, target, reduction="none")
    p_t = probability * target + (1 - probability) * (1 - target)
    alpha_t = 0.25 * target + 0.75 * (1 - target)
    focal = (alpha_t * (1 - p_t) ** 2 * entropy).mean(dim=(2, 3))
    overlap = (probability * target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + 1)
    with torch.no_grad():
        hard = full > 0
        union = (hard | masks[:, None]).sum(dim=(2, 3)).clamp(min=1)
        truth = (hard & masks[:, None]).sum(dim=(2, 3)) / union
    per_mask = 20 * focal + dice
    best = per_mask.argmin(dim=1)
    rows = torch.arange(len(masks), device=masks.device)
    return (per_mask[rows, best] + (ious[rows, best] - truth[rows, best]) ** 2).mean()


def first_clicks(masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.stack([draw(mask, generator) for mask in masks])[:, None], torch.ones(len(masks), 1, device=masks.device)


def next_clicks(logits: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    points, labels = [], []
    for logit, mask in zip(logits, masks, strict=True):
        error = (logit > 0) != mask
        point = draw(error if error.any() else ~mask, generator)
        points.append(point)
        labels.append(mask[int(point[1]), int(point[0])].float())
    return torch.stack(points), torch.stack(labels)


def draw(region: Tensor, generator: torch.Generator) -> Tensor:
    places = region.nonzero()
    return places[torch.randint(len(places), (), generator=generator, device=places.device)].flip(0).float()


if __name__ == "__main__":
    main()
