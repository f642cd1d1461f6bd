"""Times prompt encoder and mask decoder of ViT-B, for prompts on one image, against segment_anything's.

The setting is that of training: the embedding needs a gradient, and each prompt has a click and the logits of an earlier mask
(without them for `--mask none`).
"""

from __future__ import annotations

import torch
from models import official_sam, our_sam
from paired import Row, apart, arguments, begin, compare, finish
from torch import Tensor

from samtrain.modeling import Sam
from samtrain.types import Prompts


def main() -> None:
    parser = arguments(__doc__, pairs=9)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--masks", nargs="+", choices=("none", "given"), default=["none", "given"])
    options = parser.parse_args()
    begin(options)
    official = official_sam()
    ours = our_sam(official)
    embedding = torch.randn(1, 256, 64, 64)
    rows = [row for masks in options.masks for row in measure(official, ours, embedding, masks == "given", options)]
    finish(options, "decoder", rows)


def measure(official, ours: Sam, embedding: Tensor, with_mask: bool, options) -> list[Row]:
    asked = prompts(options.prompts, with_mask)

    def theirs(embedding: Tensor = embedding) -> tuple[Tensor, Tensor]:
        return ask_official(official, embedding, *asked)

    def own(embedding: Tensor = embedding) -> tuple[Tensor, Tensor]:
        return ask_ours(ours, embedding, *asked)

    what = f"decoder, {options.prompts} prompts, {'with' if with_mask else 'no'} mask prompt"
    peer = "segment_anything"
    with torch.no_grad():
        difference = apart(own()[0], theirs()[0])
        forward = compare(
            f"{what}, forward", peer, theirs, own, pairs=options.pairs, memory=True, difference=difference
        )
    backward = compare(
        f"{what}, forward and backward",
        peer,
        lambda: step(official, theirs, embedding),
        lambda: step(ours, own, embedding),
        pairs=options.pairs,
        memory=True,
    )
    return [forward, backward]


def prompts(count: int, with_mask: bool) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Returns clicks in the input frame, their labels, low-resolution logits, and whether the answer is three masks."""
    coords = torch.rand(count, 1, 2) * 1024
    labels = torch.ones(count, 1, dtype=torch.int64)
    return coords, labels, torch.randn(count, 1, 256, 256) * 4 if with_mask else None, not with_mask


def ask_official(sam, embedding: Tensor, coords: Tensor, labels: Tensor, logits: Tensor | None, multimask: bool):
    sparse, dense = sam.prompt_encoder(points=(coords, labels), boxes=None, masks=logits)
    return sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


def ask_ours(sam: Sam, embedding: Tensor, coords: Tensor, labels: Tensor, logits: Tensor | None, multimask: bool):
    N = len(coords)
    padded = torch.cat([coords, torch.zeros(N, 1, 2)], dim=1)
    kinds = torch.cat([labels, torch.full((N, 1), -1)], dim=1)
    output = sam.decode(embedding, torch.zeros(N, dtype=torch.int64), Prompts(padded, kinds, logits), multimask)
    return output.low_res_logits, output.iou_predictions


def step(sam, ask, embedding: Tensor) -> None:
    """Computes the gradients of the decoder's weights and of the embedding, and drops them."""
    leaf = embedding.detach().requires_grad_()
    masks, ious = ask(leaf)
    wanted = [leaf, *sam.mask_decoder.parameters(), *sam.prompt_encoder.parameters()]
    torch.autograd.grad(masks.square().mean() + ious.square().mean(), wanted, allow_unused=True)


if __name__ == "__main__":
    main()
