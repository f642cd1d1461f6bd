"""Times a step of fine-tuning ViT-B at 1024 px by what trains: everything, LoRA, the decoder, the decoder on cached embeddings.

The step is that of `LitSam` on one image, with the optimiser's step behind it; weights are random. Memory is the peak of the
step with weights, gradients and the optimiser's state. `--device cuda` runs in bf16, the CPU in float32. Each row begins with a
new model.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from paired import arguments, begin, machine, peak_gb, timed, write_rows
from step import image
from torch import Tensor

from samtrain.interact import interaction_losses, loss_with_flat_memory
from samtrain.losses import SamLoss
from samtrain.modeling import SAM_CONFIGS, Sam
from samtrain.prompts import PromptSampler, seeded_generator
from samtrain.training.embedding_cache import EmbeddingCache
from samtrain.training.lit_sam import LitSam
from samtrain.training.optim import AdamWConfig, LoraConfig, build_optimizer

DECODER = ["mask_decoder.*"]


@dataclass
class Mode:
    name: str
    trainable: list[str]
    lora: LoraConfig | None = None
    recompute: bool = False
    cached: bool = False


MODES = (
    Mode("everything", ["*"]),
    Mode("everything, activation checkpointing", ["*"], recompute=True),
    Mode("LoRA of rank 8 on the encoder's attention, and the decoder", DECODER, lora=LoraConfig(rank=8)),
    Mode("LoRA, activation checkpointing", DECODER, lora=LoraConfig(rank=8), recompute=True),
    Mode("the decoder", DECODER),
    Mode("the decoder on cached embeddings (float16)", DECODER, cached=True),
)


def main() -> None:
    parser = arguments(__doc__, pairs=3)
    parser.add_argument("--masks", type=int, default=16, help="objects in the image")
    parser.add_argument("--interactions", type=int, default=11)
    parser.add_argument("--model", default="vit_b", choices=list(SAM_CONFIGS))
    parser.add_argument("--only", type=int, nargs="+", default=list(range(len(MODES))), help="numbers of modes, from 0")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    begin(options)
    rows = []
    for number in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(MODES[number], folder, options))
        print(rows[-1], flush=True)
        gc.collect()
        if options.json is not None:
            write_rows(options.json, {"benchmark": "finetune", "machine": machine(), "rows": rows, "masks": options.masks})


def measure(mode: Mode, folder: str, options: argparse.Namespace) -> dict[str, float | str]:
    """Returns seconds per step, images per second and peak memory of a mode."""
    cache = EmbeddingCache(folder, torch.float16) if mode.cached else None
    seconds, parameters = 0.0, 0

    def whole() -> None:
        nonlocal seconds, parameters
        step, lit = step_of(mode, cache, options)
        step(), step()
        seconds = statistics.median(timed(step) for _ in range(options.pairs))
        parameters = sum(p.numel() for p in lit.parameters() if p.requires_grad)

    peak = peak_gb(whole)
    return {
        "mode": mode.name,
        "trained_parameters": parameters,
        "seconds_per_step": round(seconds, 4),
        "images_per_second": round(1 / seconds, 3),
        "peak_gb": round(peak, 2),
    }


def step_of(mode: Mode, cache: EmbeddingCache | None, options: argparse.Namespace) -> tuple[Callable[[], None], LitSam]:
    """Returns a training step of a new model."""
    torch.manual_seed(0)
    sampler = PromptSampler(num_points=options.interactions - 3, num_mask_only=2)
    optim = AdamWConfig(learning_rate=1e-5)
    lit = LitSam(
        sam=Sam(SAM_CONFIGS[options.model]), prompts=sampler, loss=SamLoss(), optim=optim, seed=0, trainable=mode.trainable,
        activation_checkpointing=mode.recompute, embedding_cache=cache, lora=mode.lora,
    ).to(options.device).train()  # fmt: skip
    batch = image(options.masks).to(options.device)
    optimizer, _ = build_optimizer(lit.sam, optim, 100)
    schedule = sampler.schedule(seeded_generator("cpu", 0))

    def losses(embeddings: Tensor):
        return interaction_losses(
            lit.sam, embeddings, batch, sampler, lit.loss, schedule=schedule,
            generator=seeded_generator(batch.images.device, 0), num_objects=len(batch.masks),
        )  # fmt: skip

    def step() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
            loss_with_flat_memory(lit.sam, lit.encode(batch), losses)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, lit


if __name__ == "__main__":
    main()
