"""The model, its loss and its gradients on a GPU equal those on a CPU; bfloat16 changes masks little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small_scenes import scenes, step_loss
from torch import Tensor

from samtrain.interact import BatchDecoder, interact
from samtrain.losses import SamLoss
from samtrain.modeling.sam import SAM_CONFIGS, Sam
from samtrain.prompts import CentreSampler, PromptSampler, seeded_generator
from samtrain.training.lit_sam import LitSam
from samtrain.types import Batch, Prompts

TOLERANCE = 1e-4  # of the largest value


def assert_close(here: Tensor, there: Tensor, name: str = "", share: float = TOLERANCE) -> None:
    assert here.shape == there.shape and here.dtype == there.dtype, name
    largest = there.double().abs().max().item()
    assert (here.cpu().double() - there.double()).abs().max().item() <= share * largest, name


def embed(sam: Sam, batch: Batch) -> Tensor:
    return sam.encode(sam.preprocess(batch.images, batch.input_sizes))


def prompts_of(batch: Batch, mask_size: int | None = None) -> Prompts:
    """Returns a click or a box for each object, and the logits of a mask if `mask_size` is given."""
    valid = batch.valid()[batch.image_index]
    prompts = PromptSampler().first(batch.masks, valid, seeded_generator("cpu", 3))
    if mask_size is None:
        return prompts
    logits = torch.randn(len(batch.masks), 1, mask_size, mask_size, generator=seeded_generator("cpu", 4))
    return prompts.with_mask(3 * logits)


def moved(prompts: Prompts, device: torch.device) -> Prompts:
    mask = None if prompts.mask_logits is None else prompts.mask_logits.to(device)
    return Prompts(prompts.coords.to(device), prompts.labels.to(device), mask)


@pytest.mark.parametrize("side", [96, 256])
@torch.no_grad()
def test_the_encoder(trained: Sam, device: torch.device, side: int) -> None:
    """With windows that fit the grid, and with padded ones."""
    sam = trained
    if side != 96:
        torch.manual_seed(1)
        sam = Sam(replace(SAM_CONFIGS["vit_tiny"], image_size=side)).eval()
    images = torch.randn(2, 3, side, side, generator=seeded_generator("cpu", 0))
    assert_close(deepcopy(sam).to(device).encode(images.to(device)), sam.encode(images))


@torch.no_grad()
def test_the_encoder_of_vit_b_at_1024_pixels(device: torch.device) -> None:
    """In the paper's shapes: head width 64, 64 x 64 positions, windows of 14."""
    torch.manual_seed(0)
    sam = Sam(replace(SAM_CONFIGS["vit_b"], encoder_depth=2, global_attn_indexes=(1,))).eval()
    images = torch.randn(1, 3, 1024, 1024, generator=seeded_generator("cpu", 0))
    assert_close(deepcopy(sam).to(device).encode(images.to(device)), sam.encode(images))


@pytest.mark.parametrize("with_mask", [False, True])
@torch.no_grad()
def test_prompt_encoder_and_mask_decoder(trained: Sam, device: torch.device, with_mask: bool) -> None:
    batch, there = scenes(1000), deepcopy(trained).to(device)
    embeddings = embed(trained, batch)
    prompts = prompts_of(batch, trained.config.mask_size if with_mask else None)

    # the prompt encoder's tokens, and what it adds to the image
    assert_close(there.prompt_encoder.embed_tokens(moved(prompts, device)), trained.prompt_encoder.embed_tokens(prompts))
    added = zip(
        there.prompt_encoder.embed_masks(moved(prompts, device)), trained.prompt_encoder.embed_masks(prompts), strict=True
    )
    for here, expected in added:
        assert (here is None) == (expected is None)
        if here is not None:
            assert_close(here, expected)

    # the decoder's masks and scores
    here = there.decode(embeddings.to(device), batch.image_index.to(device), moved(prompts, device), not with_mask)
    expected = trained.decode(embeddings, batch.image_index, prompts, not with_mask)
    assert_close(here.low_res_logits, expected.low_res_logits)
    assert_close(here.iou_predictions, expected.iou_predictions)


@pytest.mark.parametrize("resolution", ["input", "decoder"])
def test_loss_and_gradients(trained: Sam, device: torch.device, resolution: str) -> None:
    """Of a click at the centre of each object, because random clicks are others on another device."""
    found = []
    for place in (torch.device("cpu"), device):
        sam, batch = deepcopy(trained).to(place), scenes(1000, 2).to(place)
        loss = step_loss(sam, batch, CentreSampler(num_points=1), SamLoss(resolution=resolution))
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in sam.named_parameters() if p.grad is not None}))
    (expected, gradients), (here, others) = found
    assert_close(here, expected, "loss")
    assert gradients.keys() == others.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (others[name].cpu() - gradient).abs().max().item() <= TOLERANCE * largest, name
        relative = (others[name].cpu() - gradient).norm() / gradient.norm().clamp(min=1e-3 * largest)
        assert relative < 1e-2, f"{name}: {relative}"


@torch.no_grad()
def test_masks_in_bfloat16(trained: Sam, device: torch.device) -> None:
    """Masks of the trained model, after one click and after three, in pixels of the input."""
    batch, sam = scenes(1000, 16).to(device), deepcopy(trained).to(device)
    valid = batch.valid()[batch.image_index]
    sampler = CentreSampler(num_points=3)
    decoder = BatchDecoder(sam, embed(sam, batch), batch)
    with torch.autocast(device.type, torch.bfloat16):
        rounded = BatchDecoder(sam, embed(sam, batch), batch)
    generator = torch.Generator()  # the sampler draws nothing
    for turn in interact(decoder, batch.masks, sampler, schedule=sampler.schedule(), valid_NHW=valid, generator=generator):
        with torch.autocast(device.type, torch.bfloat16):
            output = rounded.decode(turn.prompts, turn.index == 0)
        logits = output.low_res_logits.gather(1, turn.chosen[:, None, None, None].expand_as(turn.low_res_logits))
        exact, masks = turn.logits(), rounded.to_frame(logits)[:, 0] > 0
        clear = exact.abs() > 0.05 * exact.abs().amax(dim=(1, 2), keepdim=True)  # away from ties
        both, either = ((op(masks, exact > 0) & valid) for op in (torch.logical_and, torch.logical_or))
        assert (exact > 0).flatten(1).any(dim=1).float().mean() > 0.9, "the model is trained too little to show anything"
        iou = both.sum().item() / either.sum().item()
        iou_of_clear = (both & clear).sum().item() / (either & clear).sum().item()
        assert iou >= 0.98 and iou_of_clear >= 0.99, f"after {turn.index + 1} clicks: {iou:.4f}, {iou_of_clear:.4f}"


@contextmanager
def forbidden_to_wait(device: torch.device) -> Iterator[None]:
    """Makes PyTorch raise an error where the host would wait for the GPU."""
    if device.type == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_never_waits_for_the_gpu(trained: Sam, device: torch.device, bf16: bool) -> None:
    """Sampling, decoding, loss and gradients of the paper's kinds of prompts; a copy between host and device is an error."""
    sam, batch, sampler = deepcopy(trained).to(device).train(), scenes(1000).to(device), PromptSampler(num_points=2)
    schedule, generator = sampler.schedule(seeded_generator("cpu", 0)), seeded_generator(device, 0)
    step_loss(sam, batch, sampler, SamLoss()).backward()  # kernels are loaded and cached tensors made
    with forbidden_to_wait(device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        embeddings = embed(sam, batch)
        valid = batch.valid().index_select(0, batch.image_index)
        decoder = BatchDecoder(sam, embeddings, batch)
        kinds = [
            turn.kind
            for turn in interact(decoder, batch.masks, sampler, schedule=schedule, valid_NHW=valid, generator=generator)
        ]
        assert kinds == schedule
        for resolution in ("input", "decoder"):
            step_loss(sam, batch, sampler, SamLoss(resolution=resolution)).backward()


def test_prompts_are_drawn_on_the_device(device: torch.device) -> None:
    """Each click lies on its object, and equal seeds give equal clicks."""
    batch = scenes(1000).to(device)
    valid = batch.valid()[batch.image_index]
    first, again = (PromptSampler(box_probability=0.0).first(batch.masks, valid, seeded_generator(device, 5)) for _ in range(2))
    assert first.coords.device.type == device.type and torch.equal(first.coords, again.coords)
    x, y = first.coords[:, 0].long().unbind(dim=1)
    assert batch.masks[torch.arange(len(batch.masks), device=device), y, x].all()


def test_a_batch_is_copied_without_waiting(device: torch.device) -> None:
    batch = scenes(1000)
    pinned = batch.pin_memory() if device.type == "cuda" else batch
    with forbidden_to_wait(device):
        here = LitSam.transfer_batch_to_device(None, pinned, device, 0)  # type: ignore[arg-type]
    assert torch.equal(here.masks.cpu(), batch.masks)
