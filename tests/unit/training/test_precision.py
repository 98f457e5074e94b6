"""Float32 products stay float32, or oneDNN is not used for them."""

from collections.abc import Iterator

import pytest
import torch

from raydpo.training import precision


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_products_are_float32_whatever_was_decided() -> None:
    precision.use_onednn_for_float32()
    assert precision.largest_error() < precision.TOLERANCE


def test_rounded_products_are_noticed_and_the_switch_is_turned_back(monkeypatch) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    exact = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: exact(a, b) if a.dtype == torch.float64 else exact(a.bfloat16(), b.bfloat16()),
    )
    assert precision.largest_error() > 1e-3
    assert not precision.use_onednn_for_float32()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
