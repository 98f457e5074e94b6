"""Check the parts of losses that no formula of one row can check.

Each check takes a namespace with the functions of one module (the shipped one, or a mutant of it)
and fails by an assertion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Namespace = dict[str, Any]


def close(got: Tensor, wanted: list[Any], tolerance: float = 1e-12) -> None:
    expected = torch.tensor(wanted, dtype=got.dtype)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def alternatives_follow_the_softmax(space: Namespace) -> None:
    """Over evenly spread uniforms each logit is drawn as often as it is likely."""
    logits = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    many = 9000
    uniforms = (torch.arange(many, dtype=torch.float64) + 0.5) / many
    drawn = space["sampled_alternatives"](logits.expand(many, 3), uniforms)
    weights = [math.exp(x) / sum(math.exp(y) for y in (1, 0, 2)) for x in (1, 0, 2)]
    shares = [(drawn == x).double().mean().item() for x in (1, 0, 2)]
    assert max(abs(s - w) for s, w in zip(shares, weights, strict=True)) < 2 / many
    # The gradient goes into the logit drawn, and not through the draw.
    (gradient,) = torch.autograd.grad(drawn.sum(), logits)
    close(gradient, [share * many for share in shares], 1e-9)


def alternatives_stand_at_the_borders(space: Namespace) -> None:
    """A uniform on a border belongs to the next logit; rounding never leaves the k."""
    even = torch.zeros(4, 2, dtype=torch.float64) + torch.tensor([0.0, 1e-9])
    drawn = space["sampled_alternatives"](even.float() * 0, torch.tensor([0.0, 0.49, 0.5, 1.0]))
    assert drawn.tolist() == [0, 0, 0, 0]
    ordered = torch.tensor([[5.0, 5.0 + 1e-6]]).expand(3, 2)
    drawn = space["sampled_alternatives"](ordered, torch.tensor([0.0, 0.4999, 0.9999999]))
    assert drawn.tolist() == [ordered[0, 0], ordered[0, 0], ordered[0, 1]]
    tied = torch.zeros(1, 2, requires_grad=True)
    drawn = space["sampled_alternatives"](tied, torch.tensor([0.5]))
    (gradient,) = torch.autograd.grad(drawn.sum(), tied)
    assert gradient.tolist() == [[0.0, 1.0]]


def reference_point_is_never_negative(space: Namespace) -> None:
    point = space["kto_reference_point"]
    positive = point(doubles(1.0, 3.0, -0.5))
    assert positive.item() == 3.5 / 3
    assert not positive.requires_grad
    assert point(doubles(1.0, -3.0)).item() == 0
    assert point(doubles(0.25, 0.5)).item() == 0.375


def ranks_match(space: Namespace) -> None:
    others = doubles(10.0, 30.0, 20.0, 40.0)
    matched = space["matched_by_rank"](doubles(3.0, 1.0, 2.0, 2.0), others)
    close(matched, [40.0, 10.0, 20.0, 30.0])
    (gradient,) = torch.autograd.grad((matched * doubles(1.0, 2.0, 3.0, 4.0)).sum(), others)
    close(gradient, [2.0, 4.0, 3.0, 1.0])


def odds_hold_up_to_certainty(space: Namespace) -> None:
    """log(p/(1-p)) for p from e^-700 to 1, and a slope where p rounds to 1."""
    logps = [-700.0, -50.0, -1.0, -math.log(2) - 1e-9, -math.log(2) + 1e-9, -1e-3, -1e-9]
    inputs = doubles(*logps)
    values = space["log_odds"](inputs)
    close(values, [x - math.log(-math.expm1(x)) for x in logps])
    (slopes,) = torch.autograd.grad(values.sum(), inputs)
    close(slopes, [-1 / math.expm1(x) for x in logps])
    sure = torch.zeros(1, requires_grad=True)
    odds = space["log_odds"](sure)
    close(odds, [-math.log(torch.finfo(torch.float32).eps)], 1e-6)
    (slope,) = torch.autograd.grad(odds.sum(), sure)
    close(slope * torch.finfo(torch.float32).eps, [1.0], 1e-6)


def desensitized_sums(space: Namespace) -> None:
    """Three completions of 2, 4 and 1 tokens, interleaved; the second is in two pairs."""
    sequences = torch.tensor([0, 1, 1, 0, 2, 1, 1])
    values = doubles(1.0, 10.0, 20.0, 2.0, 100.0, 30.0, 40.0)
    lengths, pairs = torch.tensor([2, 4, 1]), torch.tensor([[0, 1], [1, 2]])
    sums: Callable[..., tuple[Tensor, Tensor]] = space["length_desensitized_sums"]
    chosen, rejected = sums(values, sequences, lengths, pairs, alpha=0.25)
    close(chosen, [3.0, 10 + 0.25 * 90])
    close(rejected, [30 + 0.25 * 70, 100.0])
    (gradient,) = torch.autograd.grad((chosen + rejected).sum(), values)
    close(gradient, [1.0, 2.0, 1.25, 1.0, 1.0, 0.5, 0.5])
    plain, _ = sums(values, sequences, lengths, pairs, alpha=1.0)
    close(plain, [3.0, 100.0])


def divergences_are_finite_in_float32(space: Namespace) -> None:
    """|h| up to 1e4, values and gradients, and a gradient whose square is finite."""
    for name, knobs in [("forward_kl", {}), ("js", {}), ("alpha", {"alpha": 0.9})]:
        logratios = torch.tensor([-1e4, -88.0, -41.0, 0.0, 41.0, 88.0, 1e4], requires_grad=True)
        values = space[f"{name}_scores"](logratios, **knobs)
        (gradient,) = torch.autograd.grad(values.sum(), logratios)
        assert values.isfinite().all()
        assert (values.diff() >= 0).all()
        assert gradient.square().isfinite().all()
        assert (gradient >= 0).all()


def tokens_at_a_limit_have_no_gradient(space: Namespace) -> None:
    """Beyond the limit that the advantage pushes towards, and nowhere else."""
    ratios = doubles(0.5, 0.5, 2.0, 2.0, 0.9, 1.2, 0.5, 2.0)
    pushes = doubles(2.0, -0.5, 0.5, -2.0, -3.0, 3.0, 0.0, 0.0)
    sampler = doubles(-1.0, -2.0, -0.5, -3.0, -1.5, -0.25, -1.0, -2.0)
    logps = (ratios.log() + sampler).detach().requires_grad_()
    limits = {"clip_low": 0.25, "clip_high": 0.5}
    found = space["clipped_tokens"](logps, sampler, pushes, **limits)
    assert found.tolist() == [False, True, True, False, False, False, False, False]
    losses = space["clipped_ratio_losses"](logps, sampler, pushes, **limits)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    close(gradient, [-1.0, 0.0, 0.0, 4.0, 2.7, -3.6, 0.0, 0.0])
    open_ended = {"clip_low": None, "clip_high": None}
    assert not space["clipped_tokens"](logps, sampler, pushes, **open_ended).any()


def groups_are_compared_with_themselves(space: Namespace) -> None:
    """Groups of different sizes; one completion, or equal rewards, have no advantage."""
    rewards = doubles(1.0, 5.0, 6.0, 2.0, 2.0, 2.0, 7.0, 1.0, 2.0)
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3])
    close(space["leave_one_out_advantages"](rewards, groups), [0, -1, 1, 0, 0, 0, 5.5, -3.5, -2])
    found = space["group_normalized_advantages"](rewards, groups)
    wide = math.sqrt((121 + 49 + 16) / 18) + 1e-4
    pair = math.sqrt(0.5) + 1e-4
    wanted = [0, -0.5 / pair, 0.5 / pair, 0, 0, 0, 11 / 3 / wide, -7 / 3 / wide, -4 / 3 / wide]
    close(found, wanted)
    alone = doubles(4.0)
    only = torch.tensor([0])
    close(space["leave_one_out_advantages"](alone, only), [0.0])
    close(space["group_normalized_advantages"](alone, only), [0.0])


SMALL_CHECKS: dict[str, list[Callable[[Namespace], None]]] = {
    "cringe": [alternatives_follow_the_softmax, alternatives_stand_at_the_borders],
    "kto": [reference_point_is_never_negative],
    "aot": [ranks_match],
    "reference_free": [odds_hold_up_to_certainty],
    "length": [desensitized_sums],
    "f_divergence": [divergences_are_finite_in_float32],
    "policy_gradient": [tokens_at_a_limit_have_no_gradient, groups_are_compared_with_themselves],
}
