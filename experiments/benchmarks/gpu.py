"""Measures speed, MFU and memory of encoder and training step in bf16 on a GPU, all in one call of under ten minutes.

`python experiments/benchmarks/gpu.py --model vit_h --json h200.json`. The peers are segment_anything's modules and
transformers' encoder under the same autocast. The peer's step keeps every graph, so its number of masks is halved until they
fit. MFU is the number of the model's operations (samtrain/training/plan.py) per second, divided by the GPU's dense bf16 peak,
`--peak-tflops`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from encoder import step as encoder_step
from models import official_sam, our_sam
from paired import Row, arguments, begin, finish, peak_gb, timed
from step import image, our_step, their_step
from torch import nn

from samtrain.losses import SamLoss
from samtrain.prompts import PromptSampler
from samtrain.training.plan import step_cost

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "4090": 165.0}  # dense bf16 TFLOP/s by the vendors' data sheets


@dataclass
class Contender:
    name: str
    job: Callable[[], None]
    tflop: float


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="vit_h", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--masks", type=int, default=64)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4], help="images per micro-batch of our step")
    parser.add_argument("--interactions", type=int, default=11)
    parser.add_argument("--peak-tflops", type=float, default=None)
    parser.add_argument("--compile", action="store_true", help="also with our encoder compiled: a minute or two")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for trying out the script")
    options = parser.parse_args()
    begin(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA device. --device cpu tries out the script, but takes long.")
    official = official_sam(options.model).to(options.device)
    ours = our_sam(official, options.model).to(options.device).train()
    cost = step_cost(
        ours.config,
        device="cuda",
        images=1,
        masks=options.masks,
        sampler=PromptSampler(num_points=options.interactions - 3),
        loss=SamLoss(),
        bf16=True,
        activation_checkpointing=False,
    )
    rows = encoders(official, ours, cost.encoder_tflop, options)
    rows += steps(official, ours, cost.encoder_tflop, cost.decoder_tflop, options)
    finish(options, "gpu", rows, {"planned step of one image, GB": f"{cost.memory_gb:.1f}"})


def encoders(official: nn.Module, ours, tflop: float, options: argparse.Namespace) -> list[Row]:
    image = torch.randn(1, 3, 1024, 1024, device=options.device)
    contenders = [
        Contender("segment_anything", lambda: encoder_step(official.image_encoder, image), tflop),
        Contender("transformers", transformers_job(options, image), tflop),
        Contender("ours", lambda: encoder_step(ours.image_encoder, image), tflop),
    ]
    if options.compile:
        compiled = torch.compile(ours.image_encoder)
        contenders.append(Contender("ours, compiled", lambda: torch.autograd.grad(
            compiled(image).float().square().mean(), list(ours.image_encoder.parameters())), tflop))  # fmt: skip
    return [measure(f"encoder, {options.model}, forward and backward, bf16", each, 1, options) for each in contenders]


def transformers_job(options: argparse.Namespace, image: torch.Tensor) -> Callable[[], None]:
    """Returns transformers' vision encoder with random weights, because only time and memory are compared."""
    from transformers import SamVisionConfig, SamVisionModel

    sizes = {
        "vit_b": (768, 12, 12, [2, 5, 8, 11]),
        "vit_l": (1024, 24, 16, [5, 11, 17, 23]),
        "vit_h": (1280, 32, 16, [7, 15, 23, 31]),
    }
    width, depth, heads, places = sizes[options.model]
    config = SamVisionConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, global_attn_indexes=places, mlp_dim=4 * width
    )
    model = SamVisionModel(config).to(options.device).train()

    def job() -> None:
        embedding = model(image).last_hidden_state
        torch.autograd.grad(embedding.float().square().mean(), list(model.parameters()))

    return job


def steps(official: nn.Module, ours, encoder: float, decoder: float, options: argparse.Namespace) -> list[Row]:
    what = f"step, {options.model}, {options.interactions} interactions, bf16"
    rows = []
    for images in options.images:
        batch = batch_of(images, options)
        job = Contender("ours", lambda batch=batch: our_step(ours, batch, options.interactions), (encoder + decoder) * images)
        rows.append(measure(f"{what}, {images} images with {options.masks} masks", job, images, options))
    masks = options.masks
    while masks:
        batch = image(masks).to(options.device)
        tflop = encoder + decoder * masks / options.masks
        job = Contender(
            "the loop on segment_anything", lambda batch=batch: their_step(official, batch, options.interactions), tflop
        )
        try:
            rows.append(measure(f"{what}, 1 image with {masks} masks", job, 1, options))
            break
        except torch.cuda.OutOfMemoryError:
            print(f"the loop on segment_anything does not fit with {masks} masks", flush=True)
            masks //= 2
            torch.cuda.empty_cache()
    return rows


def batch_of(images: int, options: argparse.Namespace):
    one, batch = image(options.masks), image(options.masks * images)
    batch.images = one.images.repeat(images, 1, 1, 1)
    batch.image_index = torch.arange(images).repeat_interleave(options.masks)
    batch.input_sizes, batch.original_sizes = (torch.full((images, 2), 1024) for _ in range(2))
    batch.keys = one.keys * images
    return batch.to(options.device)


def measure(what: str, contender: Contender, images: int, options: argparse.Namespace) -> Row:
    def job() -> None:
        with torch.autocast(options.device, torch.bfloat16):
            contender.job()

    job()
    seconds = statistics.median(timed(job) for _ in range(options.pairs))
    peak = options.peak_tflops
    if peak is None and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        peak = next((tflops for key, tflops in PEAKS.items() if key in name), None)
    speed = f"{images / seconds:.2f} images/s"
    mfu = f", MFU {contender.tflop / seconds / peak:.0%}" if peak else ""
    row = Row(f"{what}: {contender.name}", "-", float("nan"), seconds, *[float("nan")] * 3, None, peak_gb(job), speed + mfu)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
