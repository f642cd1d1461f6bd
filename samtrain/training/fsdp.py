"""FSDP2 of the image encoder under Lightning: its blocks are sharded over all ranks, the rest is as it is under DDP.

A block's parameters, their gradients and the optimiser's state of them lie in equal parts on all ranks; whole parameters come
together while the block computes. The blocks are nearly all of the model (ViT-H: 98 %). What a run leaves behind is what one
process leaves: a checkpoint is one file of whole tensors, which `load_sam` reads and which any strategy goes on with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")  # the neck's; nobody writes into it


class EncoderFSDPStrategy(DDPStrategy):
    """Shards the blocks of `sam.image_encoder` of the module that it trains, and averages all other gradients once a step.

    Lightning's own ModelParallelStrategy wants a module that shards itself, and takes no `storage_options` when it saves; to
    this one a module is what it is to DDP.
    """

    _averages = True  # False in the micro-batches of a step before its last

    def configure_ddp(self) -> None:
        """In DDP's place: weights of the first rank everywhere, then the blocks cut to pieces."""
        assert self.lightning_module is not None
        self.model = self.lightning_module
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        shard_encoder(self._encoder, self.root_device.type, self.world_size)
        self._replicated = [p for p in self.model.parameters() if p.requires_grad and not isinstance(p, DTensor)]

    @property
    def _encoder(self) -> Any:
        return self.model.sam.image_encoder  # type: ignore[union-attr]

    # ---- gradients

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Around micro-batches before the last; blocks average each time, or their gradients would lie whole on all ranks."""
        self._averages = False
        yield
        self._averages = True

    def post_backward(self, closure_loss: Tensor) -> None:
        if self._averages:
            average_gradients(self._replicated)

    # ---- validation

    def on_validation_start(self) -> None:
        """Whole blocks until the end: ranks with different numbers of images need not wait for each other."""
        for block in self._sharded_blocks():
            block.set_reshard_after_forward(False)
            block.unshard()

    def on_validation_end(self) -> None:
        for block in self._sharded_blocks():
            block.reshard()
            block.set_reshard_after_forward(True)

    def _sharded_blocks(self) -> list[FSDPModule]:
        return [module for module in self._encoder.blocks if isinstance(module, FSDPModule)]

    # ---- checkpoints: restored before the model is sharded, its optimiser's state after

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._whole(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self._whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        states = [shard_state(o, state) for o, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _whole(self, tree: Any) -> Any:
        """With whole tensors in the place of sharded ones; only on the first rank, which writes them, are they kept."""

        def gather(tensor: DTensor) -> Tensor:
            whole = tensor.full_tensor().detach()
            return whole.cpu() if self.is_global_zero else whole.new_empty(0)

        return tree_map_only(DTensor, gather, tree)

    def teardown(self) -> None:
        """Without DDP's last step, which moves the model to the CPU: parts of it alone cannot go there."""
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def shard_encoder(encoder: Any, device_type: str, num_ranks: int) -> None:
    """Shard each block; the encoder itself makes them overlap what they compute and what they send.

    Its own parameters (patch and position embedding, neck) stay whole, so that each group of the optimiser, which goes by
    depth, is of one kind: fused AdamW takes no mixture.
    """
    mesh = init_device_mesh(device_type, (num_ranks,))
    for block in encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(encoder, mesh=mesh, ignored_params={p for p in encoder.parameters() if not isinstance(p, DTensor)})


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over all ranks, by one message; a gradient that this rank has not counts as zero, as under DDP."""
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def shard_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A stored state whose tensors are cut as the parameters are that they belong to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    state = dict(state_dict["state"])
    for number, p in zip(numbers, parameters, strict=True):
        if isinstance(p, DTensor) and number in state:
            state[number] = {
                key: distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
                if value.shape == p.shape
                else value
                for key, value in state[number].items()
            }
    return {**state_dict, "state": state}
