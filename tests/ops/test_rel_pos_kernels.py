"""Runs the Triton kernels of attention in Triton's interpreter, which needs no GPU, and compares them with the formula."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# H, W, channels: several rows in a tile; a width of channels that is split; a row that fills a tile; one that is wider
SIZES = ["6,6,10", "14,14,80", "3,64,20", "2,70,16"]

PROGRAM = """
import sys, torch
from samtrain.ops import rel_pos_attention, rel_pos_kernels

for size in sys.argv[1:]:
    H, W, C = map(int, size.split(","))
    torch.manual_seed(0)
    inputs = [torch.randn(shape).mul_(0.5).requires_grad_() for shape in [(2, H * W, 3, 2, C), (2 * H - 1, C), (2 * W - 1, C)]]
    outer = torch.randn(2, H * W, 2 * C)
    rel_pos_attention.WAYS["cpu"] = "folded"  # which the formula checks in test_rel_pos_attention
    expected = rel_pos_attention.rel_pos_attention(*inputs, 0.3)
    gradients = torch.autograd.grad(expected, inputs, outer)

    detached = [each.detach() for each in inputs]
    out, log_sum = rel_pos_kernels.forward(*detached, 0.3)
    torch.testing.assert_close(out.flatten(2), expected.detach(), rtol=1e-4, atol=1e-5)
    found = rel_pos_kernels.backward(outer.view(out.shape), out, log_sum, *detached, 0.3)
    for gradient, wanted in zip(found, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)
    print("equal", size)
"""


def test_the_kernels_equal_the_formula() -> None:
    pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds for Linux")
    # decorators read the variable when the kernels are imported, so they need a process of their own
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *SIZES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"equal {size}" for size in SIZES]
