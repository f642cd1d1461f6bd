"""The device of these tests, and what must be set for its results to be compared with a CPU's.

`SAMTRAIN_TEST_DEVICE=cpu` runs them on a CPU instead, which shows that the tests themselves work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# read when cuBLAS starts; without it PyTorch refuses matrix products under use_deterministic_algorithms
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from samtrain.data.datasets import collate  # noqa: E402
from samtrain.data.scenes import generate_scene  # noqa: E402
from samtrain.data.transforms import ResizeLongestSide, Sample  # noqa: E402
from samtrain.interact import interaction_losses, loss_with_flat_memory  # noqa: E402
from samtrain.losses import SamLoss  # noqa: E402
from samtrain.modeling.sam import SAM_CONFIGS, Sam  # noqa: E402
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh  # noqa: E402
from samtrain.prompts import PromptSampler, seeded_generator  # noqa: E402
from samtrain.training.optim import AdamWConfig, build_optimizer  # noqa: E402
from samtrain.types import Batch  # noqa: E402

DEVICE = os.environ.get("SAMTRAIN_TEST_DEVICE", "cuda")
SIDE = 96
STEPS = int(os.environ.get("SAMTRAIN_TEST_STEPS", 300))  # of the small model, so that its masks show objects


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Switches TF32 off, and takes back what a test has changed for the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def scene_record(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Returns a synthetic scene and its annotations."""
    scene = generate_scene((7, seed), (SIDE, SIDE))
    rles = [encode_mask(mask) for mask in scene.masks]
    return scene.image, [
        {"id": i, "segmentation": rle, "area": rle_area(rle), "bbox": rle_to_box_xywh(rle)} for i, rle in enumerate(rles)
    ]


def scene_sample(seed: int) -> Sample:
    image, annotations = scene_record(seed)
    return ResizeLongestSide(image_size=SIDE)(image, annotations, 8, np.random.default_rng(seed))


def scenes(first: int, count: int = 4) -> Batch:
    """Returns a batch of synthetic scenes, on the CPU."""
    return collate([scene_sample(seed) for seed in range(first, first + count)])


def step_loss(sam: Sam, batch: Batch, sampler: PromptSampler, loss: SamLoss, seed: int = 0) -> torch.Tensor:
    """Returns the loss of one training step, as `LitSam` computes it."""
    place = batch.images.device

    def losses(embeddings: torch.Tensor) -> Any:
        return interaction_losses(
            sam,
            embeddings,
            batch,
            sampler,
            loss,
            schedule=sampler.schedule(seeded_generator("cpu", seed)),
            generator=seeded_generator(place, seed),
            num_objects=float(len(batch.masks)),
        )

    embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
    return loss_with_flat_memory(sam, embeddings, losses)[0]


@pytest.fixture(scope="session")
def trained(device: torch.device) -> Sam:
    """A small model after some steps on synthetic scenes, on the CPU: its masks have borders, and its scores differ."""
    torch.manual_seed(0)
    sam = Sam(SAM_CONFIGS["vit_tiny"]).to(device)
    settings = AdamWConfig(learning_rate=2e-3, warmup_steps=20, schedule="cosine", milestones=(), max_steps=STEPS)
    optimizer, schedule = build_optimizer(sam, settings, STEPS)
    sampler, loss = PromptSampler(num_points=1, num_mask_only=0), SamLoss(resolution="decoder", supervise_all_iou=True)
    batches = [scenes(4 * k).to(device) for k in range(24)]
    for step in range(STEPS):
        step_loss(sam, batches[step % len(batches)], sampler, loss, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return sam.cpu().eval()
