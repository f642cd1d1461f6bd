"""Estimates the memory and the operations of a training step by running it on tensors without values.

The step is the real one (`interact`) on PyTorch's fake tensors, which have shapes and storages but compute nothing. So the
figures follow the code, and a laptop can estimate any model, size and number of masks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from samtrain.interact import interaction_losses, loss_with_flat_memory
from samtrain.losses import SamLoss
from samtrain.modeling.lora import add_lora
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.modeling.transformer import head_channels
from samtrain.ops import mask_loss, rel_pos_attention
from samtrain.prompts import Sampler, seeded_generator
from samtrain.training.lit_sam import freeze
from samtrain.training.optim import LoraConfig
from samtrain.types import Batch


@dataclass(frozen=True)
class Device:
    """Describes a device: memory in 10^9 bytes, and 10^12 operations per second of the model over a whole training step."""

    kind: str
    memory_gb: float
    tflops: float
    source: str


# speeds reached in float32 on a CPU and in bf16 on a GPU
DEVICES = {
    "cpu": Device("cpu", 24, 0.18, "measured: experiments/README.md, a step of ViT-B on 2 cores of a Xeon"),
    "rtx4090": Device("cuda", 24, 58, "not measured: 35 % of 165"),
    "a100": Device("cuda", 80, 109, "not measured: 35 % of 312"),
    "h100": Device("cuda", 80, 346, "not measured: 35 % of 989"),
    "h200": Device("cuda", 141, 346, "not measured: 35 % of 989"),
}


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The `plan` node: the device to plan for, its price, and the numbers of objects per image to try."""

    device: str = "h100"
    memory_gb: float | None = None
    tflops: float | None = None
    price_per_hour: float | None = None
    masks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"plan.device is {self.device!r}: give one of {', '.join(DEVICES)}, and set plan.memory_gb")
        for name in ("memory_gb", "tflops"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"plan.{name} is {value}: give a number above 0, or null for the device's own")
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise ValueError(f"plan.price_per_hour is {self.price_per_hour}: give what a device costs per hour, 0 or more")
        if any(count < 1 for count in self.masks):
            raise ValueError(f"plan.masks is {self.masks}: give numbers of objects per image of 1 or more")

    def resolved_device(self) -> Device:
        """Returns the named device with the memory and speed that are set here in place of its own."""
        device = DEVICES[self.device]
        if self.tflops is not None:
            device = replace(device, tflops=float(self.tflops), source="plan.tflops")
        return device if self.memory_gb is None else replace(device, memory_gb=float(self.memory_gb))


# a weight in float32, and AdamW's two moments of a weight that trains; the step itself allocates the gradient
BYTES_OF_WEIGHT, BYTES_OF_MOMENTS = 4, 8


@dataclass(frozen=True)
class StepCost:
    """Holds the cost of one micro-batch on one device.

    state_gb:     weights and optimiser, in 10^9 bytes
    step_gb:      peak of everything else: activations, gradients, temporary tensors
    encoder_tflop, decoder_tflop: 10^12 floating-point operations, forward and backward; a multiply-add counts as two
    """

    state_gb: float
    step_gb: float
    encoder_tflop: float
    decoder_tflop: float

    @property
    def memory_gb(self) -> float:
        return self.state_gb + self.step_gb

    @property
    def tflop(self) -> float:
        return self.encoder_tflop + self.decoder_tflop


def step_cost(
    config: SamConfig,
    *,
    device: str,
    images: int,
    masks: int,
    sampler: Sampler,
    loss: SamLoss,
    bf16: bool,
    activation_checkpointing: bool,
    trainable: Sequence[str] = ("*",),
    lora: LoraConfig | None = None,
    cached: bool = False,
) -> StepCost:
    """Returns the cost of a step on `images` images with `masks` objects each, in bf16-mixed or float32.

    device:    "cpu" or "cuda", which use different code for attention and loss
    trainable: globs of the parameters that train; a frozen encoder stores nothing for a backward pass and has none
    lora:      differences of low rank that train beside them
    cached:    embeddings come from the disk
    """
    with torch.device("meta"):
        sam = Sam(config)
    sam.register_constants()
    freeze(sam, trainable)
    if lora is not None:
        add_lora(sam, lora.layers, rank=lora.rank, alpha=lora.alpha, seed=0)
    encoder_trains = any(p.requires_grad for p in sam.image_encoder.parameters())
    sam.train().image_encoder.set_grad_checkpointing(activation_checkpointing)
    schedule = sampler.schedule(seeded_generator("cpu", 0))
    meter = _Meter(config.encoder_dim // config.encoder_heads)
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on(device), meter:
        sam.to_empty(device="cpu")
        meter.reset()  # state_gb counts the weights
        batch = _batch(config.image_size, images, masks)

        def losses(embeddings: torch.Tensor) -> Any:
            before_decoder.append(meter.operations)
            return interaction_losses(
                sam,
                embeddings,
                batch,
                sampler,
                loss,
                schedule=schedule,
                generator=seeded_generator("cpu", 0),
                num_objects=float(images * masks),
            )

        before_decoder: list[int] = []
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with torch.set_grad_enabled(encoder_trains):
                if cached:
                    embeddings = torch.zeros(images, config.prompt_dim, config.grid, config.grid)
                else:
                    embeddings = sam.encode(sam.preprocess(batch.images, batch.input_sizes))
            total, _ = loss_with_flat_memory(sam, embeddings, losses)
        decoder = meter.operations - before_decoder[0]
        total.backward()
    return StepCost(
        state_gb=sum(p.numel() * (BYTES_OF_WEIGHT + BYTES_OF_MOMENTS * p.requires_grad) for p in sam.parameters()) / 1e9,
        step_gb=meter.peak / 1e9,
        encoder_tflop=(meter.operations - decoder) / 1e12,
        decoder_tflop=decoder / 1e12,
    )


def _batch(side: int, images: int, masks: int) -> Batch:
    N = images * masks
    return Batch(
        images=torch.zeros(images, 3, side, side, dtype=torch.uint8),
        masks=torch.zeros(N, side, side, dtype=torch.bool),
        image_index=torch.zeros(N, dtype=torch.int64),
        weights=torch.ones(N),
        input_sizes=torch.full((images, 2), side),
        original_sizes=torch.full((images, 2), side),
        keys=[""] * images,
    )


@contextmanager
def _as_on(device: str) -> Iterator[None]:
    """Makes the step use the code of `device`, although its fake tensors are on the CPU."""
    pixels, way = mask_loss.PIXELS_AT_A_TIME["cpu"], rel_pos_attention.WAYS["cpu"]
    if device != "cpu":
        mask_loss.PIXELS_AT_A_TIME["cpu"] = mask_loss.PIXELS_AT_A_TIME["cuda"]
        rel_pos_attention.WAYS["cpu"] = rel_pos_attention.WAYS["cuda"]
    try:
        with ExitStack() as stack:
            for owner, name in ((F, "layer_norm"), (torch.Tensor, "softmax")) if device != "cpu" else ():
                stack.enter_context(patch.object(owner, name, _in_float32(getattr(owner, name))))
            yield
    finally:
        mask_loss.PIXELS_AT_A_TIME["cpu"] = pixels
        rel_pos_attention.WAYS["cpu"] = way
        head_channels.cache_clear()  # a real model must not find the tensors without values


def _in_float32(function: Callable) -> Callable:
    """Returns the function as it runs under autocast on CUDA, where norms and softmax are computed in float32."""

    def cast(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        return function(*args, **kwargs)

    return cast


class _Meter(TorchDispatchMode):
    """Counts operations of matrix products and convolutions, and the bytes alive of tensors that were created under it."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.operations = self.peak = self._alive = 0
        self._sizes: dict[int, int] = {}

    def reset(self) -> None:
        """Forgets what has been counted up to now."""
        self.operations = self.peak = self._alive = 0
        self._sizes = dict.fromkeys(self._sizes, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.operations += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet in _ATTENTION:
            self.operations += self._attention(*_ATTENTION[packet], args)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _attention(self, products: int, place: int, args: tuple) -> int:
        """Returns the operations that the model asks for, without those that a kernel spends on padding or a folded bias."""
        shape = args[place].shape
        if len(shape) == 5:
            B, N, _, n, C = shape
        else:
            B, n, N, C = shape
        return products * 2 * B * n * N * N * min(C, self.head_dim)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._alive += storage.nbytes()
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._alive -= self._sizes.pop(key, 0)


# number of N x N products, and the argument with the shape: the forward pass computes scores and sums; the backward pass
# computes the scores again, their gradient, and the gradients of query, key and value
_ATTENTION = {
    torch.ops.samtrain.rel_pos_attention: (2, 0),
    torch.ops.samtrain.rel_pos_attention_backward: (5, 2),
    torch.ops.samtrain.rel_pos_kernels: (2, 0),
    torch.ops.samtrain.rel_pos_kernels_backward: (5, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (2, 0),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (5, 1),
}
