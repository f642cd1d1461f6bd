"""Computes attention with decomposed relative positions without an N x N bias in memory, forward and backward.

The score of a query at (y, x) and a key is ``scale * q·k + q·table_h[y, row of k] + q·table_w[x, column of k]``. There are
three exact implementations (measurements: experiments/LOG.md, 2026-11-24 and 2026-11-27):

* On a CPU a few heads and rows of queries are computed at a time, so that their scores stay in the cache. The backward pass
  recomputes the scores instead of keeping them.
* On a CUDA device in bfloat16 or float16, Triton kernels do the same (`rel_pos_kernels`).
* Elsewhere the bias is folded into query and key, ``[scale * q, rel_h, rel_w]·[k, onehot(row), onehot(column)]``, and the
  device's fused kernel does the rest.

The first two are custom operators, which `torch.compile` leaves as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

WAYS = {"cpu": "in chunks", "cuda": "in kernels"}  # devices where folding the bias is not the fastest way
CHUNK = 1 << 21  # scores computed together, 8 MB in float32; on two cores 2^20 to 2^22 are equally fast, 2^19 is slower


def rel_pos_attention(qkv_BN3nC: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float) -> Tensor:
    """Returns the attended values (B, N, n * C) of N = H * W positions in n heads.

    qkv_BN3nC:  queries, keys and values
    rel_pos_h:  (2 * H - 1, C), the embedding of each distance between two rows, from 1 - H to H - 1
    rel_pos_w:  (2 * W - 1, C), the same for columns
    scale:      factor of the products of queries and keys
    """
    way = _way(qkv_BN3nC)
    if way == "in kernels":
        return _in_kernels(qkv_BN3nC, rel_pos_h, rel_pos_w, scale)[0].flatten(2)
    table_h, table_w = (distance_table(each).to(qkv_BN3nC.dtype) for each in (rel_pos_h, rel_pos_w))
    return (_in_chunks if way == "in chunks" else _folded)(qkv_BN3nC, table_h, table_w, scale)


def distance_table(rel_pos: Tensor) -> Tensor:
    """Returns (size, size, C), the embedding of the distance between each two positions along one axis."""
    size = len(rel_pos) // 2 + 1
    steps = torch.arange(size, device=rel_pos.device)
    distance = steps[:, None] - steps[None, :] + size - 1
    # index_select, because the backward pass of fancy indexing is not reproducible on CPU
    return rel_pos.index_select(0, distance.flatten()).view(size, size, -1)


def _way(qkv: Tensor) -> str:
    if torch.compiler.is_exporting():  # an exported graph must run without samtrain, so that it cannot hold our operators
        return "folded"
    way = WAYS.get(qkv.device.type, "folded")
    if way == "in kernels" and (qkv.dtype not in (torch.bfloat16, torch.float16) or not _kernels_run_on(qkv.device)):
        return "folded"
    return way


@torch.compiler.assume_constant_result
def _kernels_run_on(device: torch.device) -> bool:
    """Returns whether Triton is installed and the GPU is of the Ampere generation or newer."""
    if device.type != "cuda":  # the planner's tensors, which stand for those of a GPU
        return True
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def relative_scores(q_PNC: Tensor, table_h: Tensor, table_w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the position scores of P * N queries with each row, (P, N, H), and each column, (P, N, W)."""
    H, W = len(table_h), len(table_w)
    q = q_PNC.view(-1, H, W, q_PNC.shape[-1])
    rel_h, rel_w = torch.einsum("pyxc,ykc->pyxk", q, table_h), torch.einsum("pyxc,xkc->pyxk", q, table_w)
    return rel_h.reshape(-1, H * W, H), rel_w.reshape(-1, H * W, W)


# ---- folded, for a fused kernel


def _folded(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Returns the attended values, with the bias in additional channels of query and key."""
    B, N, _, n, C = qkv.shape
    H, W = len(table_h), len(table_w)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    rel_h, rel_w = relative_scores(q.reshape(B * n, N, C), table_h, table_w)
    # CUDA's kernels need widths that are multiples of 8, and would otherwise copy each tensor to pad it
    spare = -(C + H + W) % 8
    query = torch.cat([q * scale, rel_h.view(B, n, N, H), rel_w.view(B, n, N, W), q.new_zeros(B, n, N, spare)], dim=-1)
    grid = F.pad(one_hot_grid(H, W, k), (0, spare))
    key = torch.cat([k, grid.expand(B, n, N, H + W + spare)], dim=-1)
    # they also need equal widths, so the value is padded and the result cut
    value = F.pad(v, (0, H + W + spare))
    out = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :C]
    return out.transpose(1, 2).reshape(B, N, n * C)


def one_hot_grid(H: int, W: int, like: Tensor) -> Tensor:
    """Returns (H * W, H + W), the one-hot row and the one-hot column of each position of the grid."""
    rows = torch.eye(H, dtype=like.dtype, device=like.device).repeat_interleave(W, dim=0)
    columns = torch.eye(W, dtype=like.dtype, device=like.device).repeat(H, 1)
    return torch.cat([rows, columns], dim=1)


# ---- in chunks, for the CPU


@torch.library.custom_op("samtrain::rel_pos_attention", mutates_args=())
def _in_chunks(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """Returns the attended values, computed for a few heads and rows of queries at a time."""
    B, N, _, n, C = qkv.shape
    out = qkv.new_empty(B, N, n, C)
    for group in _groups(B, N, n):
        q, k, v = (_of_group(qkv[:, :, i], group) for i in range(3))
        rel_h, rel_w = relative_scores(q, table_h, table_w)
        attended = torch.empty_like(q)
        for rows in _row_chunks(q):
            attended[:, rows] = torch.bmm(_attention(q, k, rel_h, rel_w, rows, scale), v)
        _to_group(out, group, attended)
    return out.view(B, N, n * C)


@torch.library.custom_op("samtrain::rel_pos_attention_backward", mutates_args=())
def _in_chunks_backward(
    grad: Tensor, out: Tensor, qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values, and of both tables."""
    B, N, _, n, C = qkv.shape
    H, W = len(table_h), len(table_w)
    grad, out = grad.reshape(B, N, n, C), out.view(B, N, n, C)
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    grad_table_h, grad_table_w = torch.zeros_like(table_h), torch.zeros_like(table_w)
    for group in _groups(B, N, n):
        q, k, v = (_of_group(qkv[:, :, i], group) for i in range(3))
        rel_h, rel_w = relative_scores(q, table_h, table_w)
        grad_out = _of_group(grad, group)
        mean = (grad_out * _of_group(out, group)).sum(dim=-1, keepdim=True)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows in _row_chunks(q):
            # Recompute the attention of these rows, and go backwards through the softmax
            attention = _attention(q, k, rel_h, rel_w, rows, scale)
            grad_v.baddbmm_(attention.transpose(1, 2), grad_out[:, rows])
            grad_scores = torch.bmm(grad_out[:, rows], v.transpose(1, 2)).sub_(mean[:, rows]).mul_(attention)
            # Go backwards to query and key; the sums over rows and columns of keys replace the position scores
            grad_q[:, rows] = torch.bmm(grad_scores, k).mul_(scale)
            grad_k.baddbmm_(grad_scores.transpose(1, 2), q[:, rows], alpha=scale)
            grad_scores = grad_scores.unflatten(-1, (H, W))
            rel_h[:, rows], rel_w[:, rows] = grad_scores.sum(dim=-1), grad_scores.sum(dim=-2)
        # Go backwards from the position scores to queries and tables
        grids = (each.view(-1, H, W, each.shape[-1]) for each in (q, grad_q, rel_h, rel_w))
        q_grid, grad_q_grid, grad_h, grad_w = grids
        grad_q_grid += torch.einsum("pyxk,ykc->pyxc", grad_h, table_h)
        grad_q_grid += torch.einsum("pyxk,xkc->pyxc", grad_w, table_w)
        grad_table_h += torch.einsum("pyxk,pyxc->ykc", grad_h, q_grid)
        grad_table_w += torch.einsum("pyxk,pyxc->xkc", grad_w, q_grid)
        for i, part in enumerate((grad_q, grad_k, grad_v)):
            _to_group(grad_qkv[:, :, i], group, part)
    return grad_qkv, grad_table_h, grad_table_w


def _attention(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, rows: slice, scale: float) -> Tensor:
    """Returns the attention (P, rows, N) of some rows of queries."""
    scores = (rel_h[:, rows, :, None] + rel_w[:, rows, None, :]).flatten(2)
    return scores.baddbmm_(q[:, rows], k.transpose(1, 2), alpha=scale).softmax(dim=-1)


Group = tuple[slice, slice]  # some images of the batch, some heads


def _groups(B: int, N: int, n: int) -> Iterator[Group]:
    """Yields groups of images and heads with scores that fit into a chunk, with at least one head per thread."""
    heads = min(n, max(CHUNK // N**2, torch.get_num_threads()))
    images = max(1, CHUNK // (N**2 * n)) if heads == n else 1
    for b in range(0, B, images):
        for h in range(0, n, heads):
            yield slice(b, b + images), slice(h, h + heads)


def _row_chunks(q_PNC: Tensor) -> Iterator[slice]:
    """Yields rows of queries with scores that fit into a chunk."""
    P, N = q_PNC.shape[:2]
    size = max(1, CHUNK // (P * N))
    for start in range(0, N, size):
        yield slice(start, start + size)


def _of_group(x_BNnC: Tensor, group: Group) -> Tensor:
    """Returns (P, N, C), the images and heads of a group, contiguous in memory."""
    images, heads = group
    return x_BNnC[images, :, heads].transpose(1, 2).flatten(0, 1).contiguous()


def _to_group(x_BNnC: Tensor, group: Group, part_PNC: Tensor) -> None:
    """Writes (P, N, C) to the images and heads of a group."""
    images, heads = group
    place = x_BNnC[images, :, heads].transpose(1, 2)
    place.copy_(part_PNC.view(place.shape))


@_in_chunks.register_fake
def _(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    B, N, _, n, C = qkv.shape
    return qkv.new_empty(B, N, n * C)


@_in_chunks_backward.register_fake
def _(grad: Tensor, out: Tensor, qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> tuple[Tensor, ...]:
    return qkv.new_empty(qkv.shape), torch.empty_like(table_h), torch.empty_like(table_w)


def _save_for_backward(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(output, *tensors)


def _backward(ctx, grad: Tensor) -> tuple:
    return *_in_chunks_backward(grad, *ctx.saved_tensors, ctx.scale), None


_in_chunks.register_autograd(_backward, setup_context=_save_for_backward)


# ---- in kernels, for CUDA


@torch.library.custom_op("samtrain::rel_pos_kernels", mutates_args=())
def _in_kernels(qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the attended values (B, N, n, C), and the logarithm of each query's sum of exponentials (B, n, N)."""
    from samtrain.ops import rel_pos_kernels  # imports Triton

    return rel_pos_kernels.forward(qkv, rel_pos_h, rel_pos_w, scale)


@torch.library.custom_op("samtrain::rel_pos_kernels_backward", mutates_args=())
def _in_kernels_backward(
    grad: Tensor, out: Tensor, log_sum: Tensor, qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values, and of both tables."""
    from samtrain.ops import rel_pos_kernels

    return rel_pos_kernels.backward(grad, out, log_sum, qkv, rel_pos_h, rel_pos_w, scale)


@_in_kernels.register_fake
def _(qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    B, N, _, n, C = qkv.shape
    return qkv.new_empty(B, N, n, C), qkv.new_empty(B, n, N, dtype=torch.float32)


@_in_kernels_backward.register_fake
def _(
    grad: Tensor, out: Tensor, log_sum: Tensor, qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float
) -> tuple[Tensor, ...]:
    return torch.empty_like(qkv), torch.empty_like(rel_pos_h), torch.empty_like(rel_pos_w)


def _save_for_kernels(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _kernels_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    return *_in_kernels_backward(grad, *ctx.saved_tensors, ctx.scale), None


_in_kernels.register_autograd(_kernels_backward, setup_context=_save_for_kernels)
