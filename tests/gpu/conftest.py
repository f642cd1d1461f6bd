"""The device of these tests, and what must be set for its results to be compared with a CPU's.

`SAMTRAIN_TEST_DEVICE=cpu` runs them on a CPU instead, which shows that the tests themselves work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# read when cuBLAS starts; without it PyTorch refuses matrix products under use_deterministic_algorithms
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from small_scenes import scenes, step_loss  # noqa: E402

from samtrain.losses import SamLoss  # noqa: E402
from samtrain.modeling.sam import SAM_CONFIGS, Sam  # noqa: E402
from samtrain.prompts import PromptSampler  # noqa: E402
from samtrain.training.optim import AdamWConfig, build_optimizer  # noqa: E402

DEVICE = os.environ.get("SAMTRAIN_TEST_DEVICE", "cuda")
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


@pytest.fixture(scope="session")
def trained(device: torch.device) -> Sam:
    """A small model after some steps on synthetic scenes, on the CPU: its masks have borders, and its scores differ."""
    torch.manual_seed(0)
    sam = Sam(SAM_CONFIGS["vit_tiny"]).to(device)
    settings = AdamWConfig(learning_rate=1.5e-3, layer_decay=1.0, warmup_steps=25, schedule="cosine")
    optimizer, schedule = build_optimizer(sam, settings, STEPS)
    sampler, loss = PromptSampler(num_points=1, num_mask_only=0), SamLoss(resolution="decoder", supervise_all_iou=True)
    batches = [scenes(4 * k).to(device) for k in range(24)]
    for step in range(STEPS):
        step_loss(sam, batches[step % len(batches)], sampler, loss, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return sam.cpu().eval()
