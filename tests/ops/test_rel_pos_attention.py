"""Compares values and gradients of both implementations of relative positions with the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samtrain.ops import rel_pos_attention as module
from samtrain.ops.rel_pos_attention import rel_pos_attention

SHAPES = [(2, 5, 7, 3, 8), (1, 4, 4, 2, 10), (6, 3, 3, 1, 4)]  # B, H, W, heads, channels of a head


def example(shape: tuple[int, ...]) -> list[Tensor]:
    B, H, W, n, C = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(B, H * W, 3, n, C), (2 * H - 1, C), (2 * W - 1, C)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]


def plain(qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float) -> Tensor:
    """Computes each score as scale * q·k plus q times the embeddings of the distances in rows and columns."""
    B, N, _, n, C = qkv.shape
    H, W = len(rel_pos_h) // 2 + 1, len(rel_pos_w) // 2 + 1
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y, x = torch.arange(N) // W, torch.arange(N) % W
    table = rel_pos_h[y[:, None] - y[None] + H - 1] + rel_pos_w[x[:, None] - x[None] + W - 1]  # (N, N, C)
    scores = scale * q @ k.transpose(-1, -2) + torch.einsum("bnqc,qkc->bnqk", q, table)
    assert H * W == N
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, n * C)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["folded", "in chunks", "in chunks of a few rows"])
def test_values_and_gradients_equal_the_formulas(way: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.WAYS, "cpu", "folded" if way == "folded" else "in chunks")
    if way == "in chunks of a few rows":
        monkeypatch.setattr(module, "CHUNK", 3 * shape[1] * shape[2])
    inputs = example(shape)
    out, wanted = rel_pos_attention(*inputs, 0.3), plain(*inputs, 0.3)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-12)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    gradients = torch.autograd.grad(out, inputs, outer)
    for gradient, expected in zip(gradients, torch.autograd.grad(wanted, inputs, outer), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_no_n_by_n_tensor_is_kept() -> None:
    """Only the input, the output and the tables are kept for the backward pass."""
    inputs = example((1, 16, 16, 2, 4))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        rel_pos_attention(*inputs, 0.3)
    assert kept and max(kept) == inputs[0].numel() < 256 * 256


def test_results_are_reproducible_to_the_bit() -> None:
    inputs = example(SHAPES[0])
    results = [torch.autograd.grad(rel_pos_attention(*inputs, 0.3).square().sum(), inputs) for _ in range(3)]
    assert all(a.equal(b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
