"""DPO against plain arithmetic, its gradient identity, and its step-0 value."""

import math

import pytest
import torch

from raydpo.training.losses.dpo import conservative_loss


def plain(chosen: float, rejected: float, beta: float, smoothing: float) -> float:
    """Equation 7 with label smoothing, in Python floats."""
    d = beta * (chosen - rejected)
    right = math.log1p(math.exp(-abs(d))) + max(-d, 0.0)
    wrong = math.log1p(math.exp(-abs(d))) + max(d, 0.0)
    return (1 - smoothing) * right + smoothing * wrong


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_loss_equals_equation_seven(beta: float, smoothing: float) -> None:
    values = [(-3.0, 5.0), (0.0, 0.0), (12.5, -40.0), (300.0, -300.0), (-1e3, 1e3)]
    chosen, rejected = torch.tensor(values).unbind(1)
    expected = torch.tensor([plain(c, r, beta, smoothing) for c, r in values])
    torch.testing.assert_close(
        conservative_loss(chosen, rejected, beta=beta, label_smoothing=smoothing),
        expected,
        rtol=1e-5,
        atol=1e-6,
    )


def test_loss_is_log_two_where_policy_equals_reference() -> None:
    zero = torch.zeros(3)
    for smoothing in (0.0, 0.3):
        torch.testing.assert_close(
            conservative_loss(zero, zero, beta=0.1, label_smoothing=smoothing),
            torch.full((3,), math.log(2)),
        )


def test_gradient_weighs_pairs_by_how_wrong_the_implicit_reward_is() -> None:
    beta = 0.3
    chosen = torch.tensor([0.5, -2.0, 4.0], requires_grad=True)
    rejected = torch.tensor([1.0, -3.0, -4.0], requires_grad=True)
    conservative_loss(chosen, rejected, beta=beta, label_smoothing=0.0).sum().backward()
    weight = torch.sigmoid(beta * (rejected - chosen)).detach()
    torch.testing.assert_close(chosen.grad, -beta * weight)
    torch.testing.assert_close(rejected.grad, beta * weight)


def test_smoothed_loss_is_least_at_the_log_odds_of_the_labels() -> None:
    smoothing, beta = 0.2, 0.5
    d = torch.linspace(-10, 10, 4001)
    losses = conservative_loss(d, torch.zeros_like(d), beta=beta, label_smoothing=smoothing)
    best = d[losses.argmin()].item()
    assert best == pytest.approx(math.log((1 - smoothing) / smoothing) / beta, abs=0.01)
