"""Log-probs by slices of the vocabulary, against the whole softmax."""

import pytest
import torch
from torch import Tensor

from raydpo.training import linear_head
from raydpo.training.linear_head import linear_logps

TOKENS, HIDDEN, VOCABULARY = 13, 8, 31


@pytest.fixture(autouse=True, params=["kept", "computed again"])
def small_slices(request, monkeypatch) -> None:
    """Several slices, the last one narrower, and several blocks in each."""
    monkeypatch.setattr(linear_head, "_CPU_COLUMNS", 7)
    monkeypatch.setattr(linear_head, "_CPU_BLOCK", 14)
    if request.param == "computed again":
        monkeypatch.setattr(linear_head, "KEPT_LOGIT_BYTES", 0)


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,))


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.t()).log_softmax(-1)[torch.arange(TOKENS), targets]


def test_log_probs_and_gradients_are_those_of_the_whole_softmax() -> None:
    hidden, weight, targets = make()
    got, expected = linear_logps(hidden, weight, targets), whole(hidden, weight, targets)
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad((got**2).sum(), [hidden, weight])
    theirs = torch.autograd.grad((expected**2).sum(), [hidden, weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_logits_are_rounded_by_autocast_and_sums_are_not() -> None:
    hidden, weight, targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_logps(hidden, weight, targets)
        logits = hidden @ weight.t()
    expected = logits.float().log_softmax(-1)[torch.arange(TOKENS), targets]
    assert logits.dtype == torch.bfloat16
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    for gradient in torch.autograd.grad(got.sum(), [hidden, weight]):
        assert gradient.dtype == torch.float32


def test_scoring_gives_what_training_gives_bit_by_bit() -> None:
    hidden, weight, targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        trained = linear_logps(hidden, weight, targets)
        with torch.no_grad():
            scored = linear_logps(hidden, weight, targets)
    assert torch.equal(trained, scored)


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets = make()
    linear_logps(hidden, weight.detach(), targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_target_of_impossible_logit_has_log_prob_of_minus_infinity_only_itself() -> None:
    hidden, weight, targets = make(torch.float32)
    with torch.no_grad():
        weight[7:14] = 0.0
        weight[7:14, 0] = -float("inf")
        hidden[:, 0] = 1.0
    got = linear_logps(hidden, weight, targets)
    impossible = (targets >= 7) & (targets < 14)
    assert torch.equal(got.isinf(), impossible)
