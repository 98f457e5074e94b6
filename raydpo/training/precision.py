"""Faster float32 matrix products on CPUs, where they are seen to stay float32.

What comes in: nothing. What goes out: whether oneDNN computes float32 products from now on.
It is faster than PyTorch's default on AMD and stays true float32 there; on other processors
the same switch may round operands to bfloat16, so it is kept only if a test of its errors
against float64 says that it does not.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

#: Largest relative error of a product of float32 matrices; bfloat16 operands give 3e-3.
TOLERANCE: Final = 5e-6
#: Rows, inner size, columns: square, of a step's layers, and thin.
_SHAPES: Final = ((512, 512, 512), (1600, 384, 1024), (384, 1600, 1024), (64, 2048, 16))


def use_onednn_for_float32() -> bool:
    """Let oneDNN compute float32 products on CPUs, if they stay float32.

    Returns:
        Whether it does; if not, everything is as it was.
    """
    settings: Any = torch.backends.mkldnn
    if not settings.is_available() or not hasattr(settings, "matmul"):
        return False
    before: str = settings.matmul.fp32_precision
    settings.matmul.fp32_precision = "bf16"  # a permission to round, and the way to oneDNN
    if largest_error() < TOLERANCE:
        return True
    settings.matmul.fp32_precision = before
    return False


def largest_error() -> float:
    """Largest relative error of float32 products of several shapes against float64."""
    generator = torch.Generator().manual_seed(0)
    errors: list[float] = []
    for rows, inner, columns in _SHAPES:
        a = torch.randn(rows, inner, generator=generator)
        b = torch.randn(inner, columns, generator=generator)
        exact = a.double() @ b.double()
        batched = torch.bmm(a.expand(3, -1, -1), b.expand(3, -1, -1))[1]
        transposed = (b.t().contiguous() @ a.t()).t()
        errors += [_relative_error(got, exact) for got in (a @ b, batched, transposed)]
    return max(errors)


def _relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()
