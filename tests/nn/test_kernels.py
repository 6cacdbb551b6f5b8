"""The Triton kernels against the plain formula: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

CASES = list(itertools.product(("reflect", "replicate", "zeros", "circular", "causal"), (False, True), (False, True)))


def compare(padding: str, pooled: bool, last: bool, device: str) -> None:
    """One case, forward and backward, for odd and even sizes and a crop."""
    from blurify.nn import BlurPool2d, kernels
    from blurify.nn.lines import lines_of
    from blurify.nn.pools import _DenseMax

    torch.manual_seed(0)
    for size, stride, extend, dtype in (
        ((5, 6), (2, 1), (0, 0), torch.float32), ((4, 7), (2, 2), (-1, 1), torch.float16)
    ):  # fmt: skip
        layer = BlurPool2d(stride, 4, factor=2, padding=padding)
        x = torch.randn(2, 3, *size).relu().to(dtype)
        pool = _DenseMax((3, 2), (1, 0), (1, 1), (0, 1)) if pooled else None
        leaf = x.float().requires_grad_()
        wanted = layer._blur(leaf if pool is None else pool.plain(leaf), extend)
        grad = torch.randn_like(wanted).to(dtype)
        (back,) = torch.autograd.grad(wanted, leaf, grad.float())
        lines = lines_of(layer._filters, layer.stride, layer._pads(extend), padding)
        given = x.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)
        stages = None if pool is None else pool.stages
        assert kernels.fits(lines, stages, given)
        found = kernels.filtered(given, lines, stages, last)
        near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 4e-3}
        torch.testing.assert_close(found.float().cpu(), wanted.detach(), **near)
        spread = kernels.spread(grad.to(device), lines, stages, size, given if pooled else None, last)
        torch.testing.assert_close(spread.float().cpu(), back, **near)
        assert spread.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("padding", "pooled", "last"), CASES)
def test_on_a_gpu(padding: str, pooled: bool, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from blurify.nn import MaxBlurPool2d

    compare(padding, pooled, last, "cuda")
    x = torch.randn(2, 3, 9, 8, device="cuda", requires_grad=True)
    pool = MaxBlurPool2d(3, 2, 1, padding_mode=padding).cuda()
    plain = pool(x)
    (wanted,) = torch.autograd.grad(plain.square().sum(), x)
    monkeypatch.setenv("BLURIFY_TRITON", "1")
    torch.testing.assert_close(pool(x), plain)
    torch.testing.assert_close(torch.autograd.grad(pool(x).square().sum(), x)[0], wanted)


def test_in_the_interpreter() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["all", str(len(CASES))]


if __name__ == "__main__":
    for case in CASES:
        compare(*case, "cpu")
    print("all", len(CASES))
