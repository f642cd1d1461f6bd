"""FSDP2 for the image encoder under Lightning: its blocks are sharded over all ranks, and the rest is replicated as under DDP.

Each rank stores an equal part of a block's parameters, gradients and optimiser state; the parameters are gathered while the
block computes. The blocks are nearly all of the model (ViT-H: 98 %). A run's files are those of a single process: a checkpoint
is one file of whole tensors, which `load_sam` reads and from which any strategy resumes.
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

warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")  # the neck's; nothing writes into it


class EncoderFSDPStrategy(DDPStrategy):
    """Shards the blocks of the module's `sam.image_encoder`, and averages all other gradients once per step.

    Lightning's own ModelParallelStrategy needs a module that shards itself, and takes no `storage_options` when it saves. This
    one takes the same modules as DDP.
    """

    _averages = True  # False in all micro-batches of a step but the last

    def configure_ddp(self) -> None:
        """Replaces DDP's wrapper: copies the first rank's weights to all ranks, then shards the blocks."""
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
        """Wraps all micro-batches of a step but the last, in which only blocks average.

        Blocks average each time, because otherwise every rank would store their whole gradients.
        """
        self._averages = False
        yield
        self._averages = True

    def post_backward(self, closure_loss: Tensor) -> None:
        if self._averages:
            average_gradients(self._replicated)

    # ---- validation

    def on_validation_start(self) -> None:
        """Gathers the blocks until the validation ends, so that ranks with different numbers of images do not wait."""
        for block in self._sharded_blocks():
            block.set_reshard_after_forward(False)
            block.unshard()

    def on_validation_end(self) -> None:
        for block in self._sharded_blocks():
            block.reshard()
            block.set_reshard_after_forward(True)

    def _sharded_blocks(self) -> list[FSDPModule]:
        return [module for module in self._encoder.blocks if isinstance(module, FSDPModule)]

    # ---- checkpoints: weights are restored before the model is sharded, the optimiser's state after

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self._whole(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self._whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        states = [shard_state(o, state) for o, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _whole(self, tree: Any) -> Any:
        """Returns the tree with whole tensors in place of sharded ones; only the first rank, which writes them, keeps them."""

        def gather(tensor: DTensor) -> Tensor:
            whole = tensor.full_tensor().detach()
            return whole.cpu() if self.is_global_zero else whole.new_empty(0)

        return tree_map_only(DTensor, gather, tree)

    def teardown(self) -> None:
        """Skips DDP's last step, which moves the model to the CPU, because shards cannot be moved one by one."""
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def shard_encoder(encoder: Any, device_type: str, num_ranks: int) -> None:
    """Shards each block, then wraps the encoder so that blocks overlap computation and communication.

    The encoder's other parameters (patch and position embedding, neck) stay whole: fused AdamW takes no mixture of sharded and
    whole tensors, and its parameter groups go by depth.
    """
    mesh = init_device_mesh(device_type, (num_ranks,))
    for block in encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(encoder, mesh=mesh, ignored_params={p for p in encoder.parameters() if not isinstance(p, DTensor)})


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Averages gradients over all ranks in one message; a gradient missing on this rank counts as zero, as under DDP."""
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def shard_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored optimiser state with its tensors sharded like the parameters that they belong to."""
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
