"""Times the image encoder of ViT-B at 1024 px against segment_anything's and timm's, forward, and forward with backward."""

from __future__ import annotations

from copy import deepcopy

import torch
from models import official_sam, our_sam, timm_encoder
from paired import Row, apart, arguments, begin, compare, finish
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--only", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    options = parser.parse_args()
    begin(options)
    official = official_sam()
    ours = our_sam(official)
    theirs, timms, own = official.image_encoder, timm_encoder(ours), ours.image_encoder
    image = torch.randn(1, 3, 1024, 1024)
    rows: list[Row] = []
    for name in options.precision:
        dtype = DTYPES[name]
        models = [deepcopy(module).to(dtype) for module in (theirs, timms, own)]
        rows += measure(name, *models, image.to(dtype), options)
    finish(options, "encoder", rows)


def measure(name: str, theirs: nn.Module, timms: nn.Module, own: nn.Module, image: Tensor, options) -> list[Row]:
    rows = []
    peers = (("segment_anything", theirs), ("timm", _features(timms)))
    if "forward" in options.only:
        with torch.no_grad():
            for peer, function in peers:
                rows.append(
                    compare(
                        f"encoder, ViT-B, 1024 px, forward, {name}",
                        peer,
                        lambda function=function: function(image),
                        lambda: own(image),
                        pairs=options.pairs,
                        memory=True,
                        difference=apart(own(image), function(image)),
                    )
                )
    if "backward" in options.only:
        for peer, function in peers:
            rows.append(
                compare(
                    f"encoder, ViT-B, 1024 px, forward and backward, {name}",
                    peer,
                    lambda function=function: step(function, image),
                    lambda: step(own, image),
                    pairs=options.pairs,
                    memory=True,
                )
            )
    return rows


def _features(encoder: nn.Module):
    return encoder.forward_features


def step(encoder, image: Tensor) -> None:
    """Computes the gradients of all weights for a loss of the embedding, and drops them."""
    module = getattr(encoder, "__self__", encoder)
    parameters = list(module.parameters())
    torch.autograd.grad(encoder(image).float().square().mean(), parameters)


if __name__ == "__main__":
    main()
