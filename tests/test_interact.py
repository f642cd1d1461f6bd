"""Tests the loop: the prompts of each interaction, the mask that is fed back, and the gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_training import TINY, blobs, join, tiny_sam
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samtrain.interact import BatchDecoder, Interaction, interact, interaction_losses, loss_with_flat_memory
from samtrain.losses import SamLoss
from samtrain.modeling.sam import Sam
from samtrain.prompts import CentreSampler, PromptSampler, Sampler, seeded_generator
from samtrain.types import Batch, PointLabel

CALM = replace(TINY, drop_path=0.0, dropout=0.0)


def encode(sam: Sam, batch: Batch) -> Tensor:
    return sam.encode(sam.preprocess(batch.images, batch.input_sizes))


def turns_of(sam: Sam, batch: Batch, sampler: Sampler, schedule: list[str] | None = None) -> list[Interaction]:
    generator = seeded_generator("cpu", 0)
    return list(
        interact(
            BatchDecoder(sam, encode(sam, batch), batch),
            batch.masks,
            sampler,
            schedule=schedule or sampler.schedule(generator),
            valid_NHW=batch.valid()[batch.image_index],
            generator=generator,
        )
    )


# ---- what is asked when


@torch.no_grad()
def test_three_masks_for_one_prompt_then_the_single_one() -> None:
    turns = turns_of(tiny_sam().eval(), blobs(0), PromptSampler(num_points=8, num_mask_only=2))
    assert len(turns) == 11
    assert [turn.output.low_res_logits.shape[1] for turn in turns] == [3] + [1] * 10
    assert [turn.index for turn in turns] == list(range(11))


@torch.no_grad()
def test_mask_only_turns_add_no_click() -> None:
    schedule = ["first", "point", "mask", "point", "mask"]
    turns = turns_of(tiny_sam().eval(), blobs(0), PromptSampler(), schedule)
    assert [turn.prompts.coords.shape[1] for turn in turns] == [2, 3, 3, 4, 4]
    assert torch.equal(turns[2].prompts.coords, turns[1].prompts.coords)


@torch.no_grad()
def test_the_mask_of_highest_predicted_iou_is_fed_back() -> None:
    turns = turns_of(tiny_sam().eval(), blobs(0), PromptSampler(num_points=3, num_mask_only=1))
    assert turns[0].prompts.mask_logits is None
    for before, after in zip(turns, turns[1:], strict=False):
        for n in range(len(before.chosen)):
            best = before.output.iou_predictions[n].argmax()
            assert torch.equal(after.prompts.mask_logits[n, 0], before.output.low_res_logits[n, best])


@torch.no_grad()
def test_clicks_are_in_the_error_with_the_right_label() -> None:
    batch = blobs(3)
    turns = turns_of(tiny_sam().eval(), batch, PromptSampler(num_points=6, num_mask_only=0))
    for before, after in zip(turns, turns[1:], strict=False):
        predicted = before.logits() > 0
        x, y = after.prompts.coords[:, 0].long().unbind(1)
        rows = torch.arange(len(x))
        assert (predicted[rows, y, x] != batch.masks[rows, y, x]).all()
        on_object = batch.masks[rows, y, x]
        assert torch.equal(after.prompts.labels[:, 0] == PointLabel.FOREGROUND, on_object)


def test_the_caller_may_stop_early() -> None:
    sam, batch = tiny_sam().eval(), blobs(0)
    decoder = BatchDecoder(sam, encode(sam, batch), batch)
    valid = batch.valid()[batch.image_index]
    sampler, generator = CentreSampler(), torch.Generator()
    turns = interact(decoder, batch.masks, sampler, schedule=sampler.schedule(), valid_NHW=valid, generator=generator)
    assert next(turns).index == 0
    turns.close()


@torch.no_grad()
@pytest.mark.parametrize("first", ["point", "box"])
def test_a_batch_equals_its_images_one_by_one(first: str) -> None:
    """Images with 1, 4 and 2 objects, in float64, because rounding errors grow from turn to turn."""
    sam = tiny_sam().double().eval()
    singles = [blobs(seed, counts=(count,)) for seed, count in ((1, 1), (2, 4), (3, 2))]
    sampler = CentreSampler(num_points=4, first=first)
    together = turns_of(sam, join(singles), sampler)
    apart = [turns_of(sam, single, sampler) for single in singles]
    for i, turn in enumerate(together):
        expected = torch.cat([turns[i].output.low_res_logits for turns in apart])
        torch.testing.assert_close(turn.output.low_res_logits, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(turn.prompts.coords, torch.cat([turns[i].prompts.coords for turns in apart]))


# ---- gradients


def gradients(
    sam: Sam, batch: Batch, loss: SamLoss, *, flat: bool, num_points: int = 8, sampler: type[PromptSampler] = PromptSampler
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns total loss and gradients of one step with num_points + 3 interactions."""
    sam.zero_grad()
    who = sampler(num_points=num_points, num_mask_only=2)
    schedule = who.schedule(seeded_generator("cpu", 1))
    torch.manual_seed(5)  # dropout and drop path

    def losses(embeddings: Tensor):  # type: ignore[no-untyped-def]
        generator = seeded_generator("cpu", 2)
        return interaction_losses(
            sam, embeddings, batch, who, loss, schedule=schedule, generator=generator, num_objects=5.0
        )

    images = sam.preprocess(batch.images, batch.input_sizes)
    if flat:
        total, log = loss_with_flat_memory(sam, sam.encode(images), losses)
        assert len(log) == num_points + 3
    else:
        total = torch.stack([terms.total for _, terms in losses(sam.encode(images))]).sum()
    (3.0 * total).backward()  # what comes from outside, by accumulation say, is passed on
    return total.detach(), {name: p.grad.clone() for name, p in sam.named_parameters() if p.grad is not None}


def test_gradients_taken_in_the_forward_pass_are_exact() -> None:
    """Compares eleven interactions in float64, dropout included."""
    sam, batch, loss = tiny_sam().double(), blobs(0), SamLoss(resolution="decoder")
    plain_total, plain = gradients(sam, batch, loss, flat=False)
    total, flat = gradients(sam, batch, loss, flat=True)
    torch.testing.assert_close(total.double(), plain_total.double(), rtol=1e-6, atol=0)  # the sum is kept in float32
    assert flat.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(flat[name], plain[name], rtol=1e-12, atol=1e-15)


def test_gradients_of_the_real_loss_agree_in_float32() -> None:
    sam, batch = tiny_sam(config=CALM), blobs(0)
    _, plain = gradients(sam, batch, SamLoss(), flat=False)
    _, flat = gradients(sam, batch, SamLoss(), flat=True)
    for name in plain:
        torch.testing.assert_close(flat[name], plain[name], rtol=1e-3, atol=1e-6)


def test_only_trainable_weights_get_gradients() -> None:
    batch = blobs(0)
    for frozen in ("image_encoder", "mask_decoder"):
        sam = tiny_sam()
        getattr(sam, frozen).requires_grad_(False)
        _, flat = gradients(sam, batch, SamLoss(resolution="decoder"), flat=True, num_points=1)
        assert flat and not any(name.startswith(frozen) for name in flat)


def test_memory_does_not_grow_with_the_interactions() -> None:
    """At the start of each interaction autograd holds as much as at the first: the encoder's graph."""
    sam, held, at_begin = tiny_sam(), [0, 0], []

    class Watched(PromptSampler):
        def first(self, *args):
            at_begin.append(held[0])
            return super().first(*args)

        def next(self, *args):
            at_begin.append(held[0])
            return super().next(*args)

    def keep(tensor: Tensor) -> Held:
        return Held(tensor, held)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        gradients(sam, blobs(0), SamLoss(), flat=True, num_points=8, sampler=Watched)
    assert len(at_begin) == 9
    assert at_begin == [at_begin[0]] * 9 and held[1] > at_begin[0] > 0


class Held:
    """Counts a tensor that a graph keeps, until it is released."""

    def __init__(self, tensor: Tensor, held: list[int]) -> None:
        self.tensor, self.held = tensor, held
        held[0] += tensor.nbytes
        held[1] = max(held)

    def __del__(self) -> None:
        self.held[0] -= self.tensor.nbytes


def test_one_seed_gives_one_result() -> None:
    """Backward passes on the CPU are reproducible to the bit."""
    results = [gradients(tiny_sam(), blobs(0), SamLoss(), flat=True, num_points=2)[1] for _ in range(3)]
    for name in results[0]:
        assert all(torch.equal(results[0][name], other[name]) for other in results[1:]), name


# ---- on a GPU


class HostCopies(TorchDispatchMode):
    """Counts tensors that are copied from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ({t.device.type for t in tree_leaves(tree) if isinstance(t, Tensor)} for tree in ((args, kwargs), out))
        self.count += "cpu" in given and "cuda" in made
        return out


@pytest.mark.parametrize("resolution", ["input", "decoder"])
def test_a_step_never_waits_for_a_gpu(resolution: str) -> None:
    """On tensors without values, which need no GPU: nothing is copied to it, and no value is read from it, which raises."""
    schedule, sampler, on_host = ["first", "point", "mask"], PromptSampler(box_probability=0.5), blobs(0)
    with torch.device("meta"):
        sam = Sam(TINY).train()
    sam.register_constants()
    with FakeTensorMode(allow_non_fake_inputs=True):
        sam.to_empty(device="cuda")
        batch = on_host.to("cuda")
        generator = seeded_generator("cpu", 0)  # one on the GPU needs a GPU
        loss = SamLoss(resolution=resolution)
        with HostCopies() as copies:
            losses = interaction_losses(
                sam, encode(sam, batch), batch, sampler, loss, schedule=schedule, generator=generator, num_objects=5.0
            )
            assert [terms.total.device.type for _, terms in losses] == ["cuda"] * len(schedule)
            assert copies.count == 0
            on_host.to("cuda")  # the count works
        assert copies.count > 0
