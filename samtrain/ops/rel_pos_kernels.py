"""Computes attention with decomposed relative positions in Triton kernels, for bfloat16 and float16 on a GPU.

The kernels are flash attention (Dao et al. 2022) with keys in tiles of whole rows of the image, each row padded to a power of
two. Where a row fills a tile, a query's score for the row of the keys is one number per tile, and its scores for the columns
stay in registers. Where several rows share a tile, a product with one-hot rows and columns spreads both over the tile.
Channels are split into a power of two and a rest, because a width of 80 would otherwise be padded to 128.

`distances` holds, for each query, its product with the embedding of every distance: first the 2 H - 1 of the rows, then the
2 W - 1 of the columns. A key at (row, column) takes two of these numbers. Scores are multiplied by log2(e), for exp2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
FULL_ROW = 64  # keys in a tile; rows of this width and more have tiles of their own


class Launch(NamedTuple):
    """Holds the queries per tile and how a kernel is launched."""

    queries: int
    num_warps: int
    num_stages: int


# the fastest of those tried on an H200 (experiments/LOG.md); a tile holds one row of keys, or several
FORWARD_ROW, FORWARD_ROWS = Launch(64, 4, 3), Launch(64, 4, 3)
BACKWARD_QUERIES, BACKWARD_KEYS = Launch(64, 4, 2), Launch(64, 4, 2)


class _Sizes:
    """Holds the sizes that the kernels are compiled for."""

    def __init__(self, H: int, W: int, C: int, J: int) -> None:
        columns = max(16, triton.next_power_of_2(W))
        rows = max(1, FULL_ROW // columns)
        whole = max(16, 1 << (C.bit_length() - 1))  # a product needs 16 channels; those beyond C are zero
        rest = max(0, C - whole)
        self.spread = 0 if rows == 1 else max(16, triton.next_power_of_2(H + W))
        self.kept = self.spread or columns  # scores per query that the backward pass keeps for its second kernel
        self.arguments = {
            "H": H, "W": W, "C": C, "J": J, "C0": whole, "C1": max(16, triton.next_power_of_2(rest)) if rest else 0,
            "ROWS": rows, "COLUMNS": columns, "SPREAD": self.spread,
        }  # fmt: skip


def forward(qkv_BN3nC: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the attended values (B, N, n, C), and the base-2 logarithm of each query's sum of exponentials, (B, n, N)."""
    B, N, _, n, C = qkv_BN3nC.shape
    distances, _ = _distances(qkv_BN3nC, rel_pos_h, rel_pos_w)
    sizes = _sizes(rel_pos_h, rel_pos_w, distances)
    out = qkv_BN3nC.new_empty(B, N, n, C)
    log_sum = qkv_BN3nC.new_empty(B, n, N, dtype=torch.float32)
    launch = FORWARD_ROWS if sizes.spread else FORWARD_ROW
    _forward[(triton.cdiv(N, launch.queries), B * n)](
        qkv_BN3nC, distances, out, log_sum, scale, B, n,
        **sizes.arguments, QUERIES=launch.queries, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return out, log_sum


def backward(
    grad_BNnC: Tensor, out_BNnC: Tensor, log_sum: Tensor, qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of queries, keys and values (B, N, 3, n, C), and of both tables of relative positions."""
    B, N, _, n, C = qkv.shape
    distances, embeddings_JC = _distances(qkv, rel_pos_h, rel_pos_w)
    sizes = _sizes(rel_pos_h, rel_pos_w, distances)
    grad_qkv, grad_distances = torch.empty_like(qkv), torch.zeros_like(distances)
    kept = qkv.new_empty(B, n, N, sizes.kept)
    mean = torch.empty_like(log_sum)
    grad_BNnC = grad_BNnC.contiguous()
    for kernel, launch, tiles in (
        (_backward_queries, BACKWARD_QUERIES, triton.cdiv(N, BACKWARD_QUERIES.queries)),
        (_backward_keys, BACKWARD_KEYS, triton.cdiv(len(rel_pos_h) // 2 + 1, sizes.arguments["ROWS"])),
    ):
        kernel[(tiles, B * n)](
            qkv, distances, kept, grad_BNnC, out_BNnC, log_sum, mean, grad_qkv, grad_distances, scale, B, n,
            **sizes.arguments, QUERIES=launch.queries, num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip

    # Go backwards from the distances to the queries and the tables
    queries_nPC, grad_queries = (each[:, :, 0].flatten(0, 1).transpose(0, 1) for each in (qkv, grad_qkv))
    grad_queries.baddbmm_(grad_distances, embeddings_JC.expand(n, -1, -1))
    grad_embeddings = torch.bmm(grad_distances.transpose(1, 2), queries_nPC).float().sum(dim=0).to(rel_pos_h.dtype)
    grad_h, grad_w = grad_embeddings[: len(rel_pos_h) + len(rel_pos_w)].split([len(rel_pos_h), len(rel_pos_w)])
    return grad_qkv, grad_h.clone(), grad_w.clone()


def _distances(qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the products of queries and embeddings of distances, (n, B * N, J), and the embeddings (J, C)."""
    embeddings_JC = torch.cat([rel_pos_h, rel_pos_w]).to(qkv.dtype)
    embeddings_JC = F.pad(embeddings_JC, (0, 0, 0, -len(embeddings_JC) % 8))  # matrix products need multiples of 8
    queries_nPC = qkv[:, :, 0].flatten(0, 1).transpose(0, 1)
    return torch.bmm(queries_nPC, embeddings_JC.T.expand(qkv.shape[3], -1, -1)), embeddings_JC


def _sizes(rel_pos_h: Tensor, rel_pos_w: Tensor, distances: Tensor) -> _Sizes:
    return _Sizes(len(rel_pos_h) // 2 + 1, len(rel_pos_w) // 2 + 1, rel_pos_h.shape[1], distances.shape[-1])


# ---- what the kernels share


@triton.jit
def _load(base, rows, valid, stride, FIRST: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr):
    """Returns channels FIRST to FIRST + SIZE of some rows, zero beyond C and where `valid` is false."""
    c = FIRST + tl.arange(0, SIZE)
    return tl.load(base + rows[:, None] * stride + c[None, :], mask=valid[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def _store(base, rows, valid, stride, values, FIRST: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr):
    c = FIRST + tl.arange(0, SIZE)
    values = values.to(base.dtype.element_ty)
    tl.store(base + rows[:, None] * stride + c[None, :], values, mask=valid[:, None] & (c < C)[None, :])


@triton.jit
def _keys(row, H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Returns the indices of the keys in the tile that begins with `row`, and which of them exist."""
    i = tl.arange(0, ROWS * COLUMNS)
    y, x = row + i // COLUMNS, i % COLUMNS
    return y * W + x, (y < H) & (x < W)


@triton.jit
def _place(queries, H: tl.constexpr, W: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr):
    """Returns where the scores of a query's rows and columns, or of its columns alone, stand among its distances."""
    y, x = queries // W, queries % W
    if SPREAD > 0:
        i = tl.arange(0, SPREAD)[None, :]
        place = tl.where(i < H, y[:, None] - i + H - 1, 2 * H - 1 + x[:, None] - (i - H) + W - 1)
        return place, i < H + W
    else:
        i = tl.arange(0, COLUMNS)[None, :]
        return 2 * H - 1 + x[:, None] - i + W - 1, i < W


@triton.jit
def _one_hot(row, H: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr):
    """Returns (SPREAD, keys), true at the row and at the column of each key of a tile."""
    i, key = tl.arange(0, SPREAD)[:, None], tl.arange(0, ROWS * COLUMNS)[None, :]
    return tl.where(i < H, i == row + key // COLUMNS, i - H == key % COLUMNS)


@triton.jit
def _scores(
    q0, q1, k0, k1, positions, row, scale,
    H: tl.constexpr, W: tl.constexpr, C1: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Returns the scores of some queries with a tile of keys; where a row fills a tile, without the score for that row."""
    scores = tl.dot(q0, tl.trans(k0))
    if C1 > 0:
        scores += tl.dot(q1, tl.trans(k1))
    if SPREAD > 0:
        scores = scores * scale + tl.dot(positions, _one_hot(row, H, ROWS, COLUMNS, SPREAD).to(positions.dtype)) * LOG2E
    else:
        scores = scores * scale + positions
    if (W < COLUMNS) | (H % ROWS > 0):
        _, valid = _keys(row, H, W, ROWS, COLUMNS)
        scores = tl.where(valid[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _of_row(distances, queries, exists, row, H: tl.constexpr, W: tl.constexpr, J: tl.constexpr, SPREAD: tl.constexpr):
    """Returns the score of each query for the row that fills a tile, and 0 where several rows share it."""
    if SPREAD > 0:
        return tl.zeros(queries.shape, tl.float32)
    else:
        place = queries * J + queries // W - row + H - 1
        return tl.load(distances + place, mask=exists, other=0.0).to(tl.float32) * LOG2E


@triton.jit
def _scaled(positions, SPREAD: tl.constexpr):
    """Returns the scores of columns as they are added; those that a product spreads stay in its precision."""
    if SPREAD > 0:
        return positions
    else:
        return positions.to(tl.float32) * LOG2E


# ---- forward


@triton.jit
def _forward(
    qkv, distances, out, log_sum, scale, B, n,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, J: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = H * W
    b, head = (tl.program_id(1) // n).to(tl.int64), tl.program_id(1) % n
    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    exists = queries < N
    stride = 3 * n * C
    qkv += b * N * stride + head * C
    distances += (head * B + b) * N * J
    out += b * N * n * C + head * C

    # Queries, and their scores with rows and columns
    q0, q1 = _load(qkv, queries, exists, stride, 0, C0, C), 0.0
    if C1 > 0:
        q1 = _load(qkv, queries, exists, stride, C0, C1, C)
    place, used = _place(queries, H, W, COLUMNS, SPREAD)
    positions = tl.load(distances + queries[:, None] * J + place, mask=used & exists[:, None], other=0.0)
    positions = _scaled(positions, SPREAD)

    # Sum the values of all tiles, and rescale the sums whenever a larger score appears
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sum0 = tl.zeros([QUERIES, C0], tl.float32)
    sum1 = tl.zeros([QUERIES, C1 if C1 > 0 else 16], tl.float32)
    for row in range(0, H, ROWS):
        keys, valid = _keys(row, H, W, ROWS, COLUMNS)
        k0, k1 = _load(qkv + n * C, keys, valid, stride, 0, C0, C), 0.0
        if C1 > 0:
            k1 = _load(qkv + n * C, keys, valid, stride, C0, C1, C)
        of_row = _of_row(distances, queries, exists, row, H, W, J, SPREAD)
        scores = _scores(q0, q1, k0, k1, positions, row, scale * LOG2E, H, W, C1, ROWS, COLUMNS, SPREAD)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1) + of_row)
        attention = tl.exp2(scores - (new_largest - of_row)[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(attention, axis=1)
        attention = attention.to(q0.dtype)
        v0 = _load(qkv + 2 * n * C, keys, valid, stride, 0, C0, C)
        sum0 = tl.dot(attention, v0, sum0 * shrink[:, None])
        if C1 > 0:
            v1 = _load(qkv + 2 * n * C, keys, valid, stride, C0, C1, C)
            sum1 = tl.dot(attention, v1, sum1 * shrink[:, None])
        largest = new_largest

    _store(out, queries, exists, n * C, sum0 / total[:, None], 0, C0, C)
    if C1 > 0:
        _store(out, queries, exists, n * C, sum1 / total[:, None], C0, C1, C)
    tl.store(log_sum + (b * n + head) * N + queries, largest + tl.log2(total), mask=exists)


# ---- backward


@triton.jit
def _backward_queries(
    qkv, distances, kept, grad, out, log_sum, mean, grad_qkv, grad_distances, scale, B, n,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, J: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a tile of queries and of their distances; keeps `mean` and `kept` for `_backward_keys`."""
    N: tl.constexpr = H * W
    b, head = (tl.program_id(1) // n).to(tl.int64), tl.program_id(1) % n
    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    exists = queries < N
    stride = 3 * n * C
    qkv += b * N * stride + head * C
    grad_qkv += b * N * stride + head * C
    distances += (head * B + b) * N * J
    grad_distances += (head * B + b) * N * J
    grad += b * N * n * C + head * C
    out += b * N * n * C + head * C
    KEPT: tl.constexpr = SPREAD if SPREAD > 0 else COLUMNS

    # Queries, their scores with rows and columns, and the mean of the attention's gradient
    q0, q1 = _load(qkv, queries, exists, stride, 0, C0, C), 0.0
    g0, g1 = _load(grad, queries, exists, n * C, 0, C0, C), 0.0
    o0 = _load(out, queries, exists, n * C, 0, C0, C)
    average = tl.sum(g0.to(tl.float32) * o0.to(tl.float32), axis=1)
    if C1 > 0:
        q1 = _load(qkv, queries, exists, stride, C0, C1, C)
        g1 = _load(grad, queries, exists, n * C, C0, C1, C)
        o1 = _load(out, queries, exists, n * C, C0, C1, C)
        average += tl.sum(g1.to(tl.float32) * o1.to(tl.float32), axis=1)
    own = (b * n + head) * N + queries
    tl.store(mean + own, average, mask=exists)
    place, used = _place(queries, H, W, COLUMNS, SPREAD)
    used = used & exists[:, None]
    positions = tl.load(distances + queries[:, None] * J + place, mask=used, other=0.0)
    tl.store(kept + own[:, None] * KEPT + tl.arange(0, KEPT)[None, :], positions, mask=exists[:, None])
    positions = _scaled(positions, SPREAD)
    logarithm = tl.load(log_sum + own, mask=exists, other=0.0)

    grad_q0 = tl.zeros([QUERIES, C0], tl.float32)
    grad_q1 = tl.zeros([QUERIES, C1 if C1 > 0 else 16], tl.float32)
    grad_positions = tl.zeros([QUERIES, KEPT], tl.float32)
    for row in range(0, H, ROWS):
        keys, valid = _keys(row, H, W, ROWS, COLUMNS)
        k0, k1 = _load(qkv + n * C, keys, valid, stride, 0, C0, C), 0.0
        v0 = _load(qkv + 2 * n * C, keys, valid, stride, 0, C0, C)
        grad_attention = tl.dot(g0, tl.trans(v0))
        if C1 > 0:
            k1 = _load(qkv + n * C, keys, valid, stride, C0, C1, C)
            v1 = _load(qkv + 2 * n * C, keys, valid, stride, C0, C1, C)
            grad_attention += tl.dot(g1, tl.trans(v1))
        of_row = _of_row(distances, queries, exists, row, H, W, J, SPREAD)
        scores = _scores(q0, q1, k0, k1, positions, row, scale * LOG2E, H, W, C1, ROWS, COLUMNS, SPREAD)
        grad_scores = tl.exp2(scores - (logarithm - of_row)[:, None]) * (grad_attention - average[:, None])
        rounded = grad_scores.to(q0.dtype)
        grad_q0 = tl.dot(rounded, k0, grad_q0)
        if C1 > 0:
            grad_q1 = tl.dot(rounded, k1, grad_q1)
        if SPREAD > 0:
            one_hot = _one_hot(row, H, ROWS, COLUMNS, SPREAD).to(q0.dtype)
            grad_positions = tl.dot(rounded, tl.trans(one_hot), grad_positions)
        else:
            grad_positions += grad_scores
            grad_of_row = tl.sum(grad_scores, axis=1).to(q0.dtype)
            tl.store(grad_distances + queries * J + queries // W - row + H - 1, grad_of_row, mask=exists)

    _store(grad_qkv, queries, exists, stride, grad_q0 * scale, 0, C0, C)
    if C1 > 0:
        _store(grad_qkv, queries, exists, stride, grad_q1 * scale, C0, C1, C)
    tl.store(grad_distances + queries[:, None] * J + place, grad_positions.to(q0.dtype), mask=used)


@triton.jit
def _backward_keys(
    qkv, distances, kept, grad, out, log_sum, mean, grad_qkv, grad_distances, scale, B, n,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, J: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPREAD: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of a tile of keys and values."""
    N: tl.constexpr = H * W
    b, head = (tl.program_id(1) // n).to(tl.int64), tl.program_id(1) % n
    stride = 3 * n * C
    qkv += b * N * stride + head * C
    grad_qkv += b * N * stride + head * C
    distances += (head * B + b) * N * J
    grad += b * N * n * C + head * C
    KEPT: tl.constexpr = SPREAD if SPREAD > 0 else COLUMNS
    TILE: tl.constexpr = ROWS * COLUMNS

    row = tl.program_id(0) * ROWS
    keys, valid = _keys(row, H, W, ROWS, COLUMNS)
    k0, k1 = _load(qkv + n * C, keys, valid, stride, 0, C0, C), 0.0
    v0, v1 = _load(qkv + 2 * n * C, keys, valid, stride, 0, C0, C), 0.0
    if C1 > 0:
        k1 = _load(qkv + n * C, keys, valid, stride, C0, C1, C)
        v1 = _load(qkv + 2 * n * C, keys, valid, stride, C0, C1, C)

    grad_k0, grad_v0 = tl.zeros([TILE, C0], tl.float32), tl.zeros([TILE, C0], tl.float32)
    grad_k1 = tl.zeros([TILE, C1 if C1 > 0 else 16], tl.float32)
    grad_v1 = tl.zeros([TILE, C1 if C1 > 0 else 16], tl.float32)
    for first in range(0, N, QUERIES):
        queries = first + tl.arange(0, QUERIES)
        exists = queries < N
        own = (b * n + head) * N + queries
        q0, q1 = _load(qkv, queries, exists, stride, 0, C0, C), 0.0
        g0 = _load(grad, queries, exists, n * C, 0, C0, C)
        grad_attention = tl.dot(g0, tl.trans(v0))
        if C1 > 0:
            q1 = _load(qkv, queries, exists, stride, C0, C1, C)
            g1 = _load(grad, queries, exists, n * C, C0, C1, C)
            grad_attention += tl.dot(g1, tl.trans(v1))
        positions = _scaled(_load(kept, own, exists, KEPT, 0, KEPT, KEPT), SPREAD)
        of_row = _of_row(distances, queries, exists, row, H, W, J, SPREAD)
        scores = _scores(q0, q1, k0, k1, positions, row, scale * LOG2E, H, W, C1, ROWS, COLUMNS, SPREAD)
        attention = tl.exp2(scores - (tl.load(log_sum + own, mask=exists, other=0.0) - of_row)[:, None])
        average = tl.load(mean + own, mask=exists, other=0.0)
        grad_scores = (attention * (grad_attention - average[:, None])).to(q0.dtype)
        attention = attention.to(q0.dtype)
        grad_v0 = tl.dot(tl.trans(attention), g0, grad_v0)
        grad_k0 = tl.dot(tl.trans(grad_scores), q0, grad_k0)
        if C1 > 0:
            grad_v1 = tl.dot(tl.trans(attention), g1, grad_v1)
            grad_k1 = tl.dot(tl.trans(grad_scores), q1, grad_k1)

    _store(grad_qkv + n * C, keys, valid, stride, grad_k0 * scale, 0, C0, C)
    _store(grad_qkv + 2 * n * C, keys, valid, stride, grad_v0, 0, C0, C)
    if C1 > 0:
        _store(grad_qkv + n * C, keys, valid, stride, grad_k1 * scale, C0, C1, C)
        _store(grad_qkv + 2 * n * C, keys, valid, stride, grad_v1, C0, C1, C)
