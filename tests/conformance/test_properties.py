"""What must hold for any input: mirrors, constants, monotonicity, agreement between objectives."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from enumerable import world as tabular
from raydpo.config.job import PairsConfig
from raydpo.labeling.pairs import Draws, Scored, build_pairs
from raydpo.training.losses import (
    apo,
    contrastive,
    discopop,
    dpo,
    f_divergence,
    hinge,
    ipo,
    ranking,
    reference_free,
)

BETA = 0.3
PairLoss = Callable[[Tensor, Tensor], Tensor]

logratio = st.floats(-1e3, 1e3, width=32)
few = settings(max_examples=30, deadline=None)


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def soft(p: float) -> PairLoss:
    return lambda c, r: dpo.soft_label_loss(c, r, scalar(p), beta=BETA)


def conservative(e: float) -> PairLoss:
    return lambda c, r: dpo.conservative_loss(c, r, beta=BETA, label_smoothing=e)


#: Read the margin only.
OF_THE_MARGIN: dict[str, PairLoss] = {
    "sigmoid": lambda c, r: dpo.sigmoid_loss(c, r, beta=BETA),
    "conservative": conservative(0.1),
    "robust": lambda c, r: dpo.robust_loss(c, r, beta=BETA, flip_rate=0.1),
    "outlier mixture": lambda c, r: dpo.outlier_mixture_loss(c, r, beta=BETA, outlier_rate=0.1),
    "hinge": lambda c, r: hinge.hinge_loss(c, r, beta=BETA),
    "ipo": lambda c, r: ipo.ipo_loss(c, r, tau=BETA),
    "exo": lambda c, r: contrastive.exo_loss(c, r, beta=BETA, label_smoothing=0.01),
    "discopop": lambda c, r: discopop.discopop_loss(c, r, beta=BETA, temperature=0.05),
    "simpo": lambda c, r: reference_free.simpo_loss(c, r, beta=BETA, gamma=0.5),
}
#: Fall as the margin grows, wherever they are.
MONOTONE = ["sigmoid", "robust", "outlier mixture", "hinge", "simpo"]


@pytest.mark.parametrize("name", OF_THE_MARGIN)
@given(chosen=logratio, rejected=logratio, shift=logratio)
@few
def test_a_constant_added_to_both_logratios_changes_nothing(
    name: str, chosen: float, rejected: float, shift: float
) -> None:
    loss = OF_THE_MARGIN[name]
    moved = loss(scalar(chosen + shift), scalar(rejected + shift))
    torch.testing.assert_close(moved, loss(scalar(chosen), scalar(rejected)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MONOTONE)
@given(chosen=logratio, rejected=logratio, more=st.floats(1 / 64, 100, width=32))
@few
def test_losses_fall_as_the_margin_grows(
    name: str, chosen: float, rejected: float, more: float
) -> None:
    loss = OF_THE_MARGIN[name]
    assert loss(scalar(chosen + more), scalar(rejected)) <= loss(scalar(chosen), scalar(rejected))
    assert loss(scalar(chosen), scalar(rejected + more)) >= loss(scalar(chosen), scalar(rejected))


@given(logratio, logratio, st.floats(0, 1))
@few
def test_swapping_chosen_and_rejected_mirrors_the_label(c: float, r: float, p: float) -> None:
    one, other = scalar(c), scalar(r)
    torch.testing.assert_close(soft(p)(one, other), soft(1 - p)(other, one))
    torch.testing.assert_close(soft(1 - p)(one, other), conservative(p)(one, other))


@given(logratio, logratio)
@few
def test_gradients_of_a_swapped_pair_are_mirrored(c: float, r: float) -> None:
    chosen, rejected = scalar(c).requires_grad_(), scalar(r).requires_grad_()
    for name in OF_THE_MARGIN:
        loss = OF_THE_MARGIN[name](chosen, rejected).sum()
        down, up = torch.autograd.grad(loss, (chosen, rejected))
        torch.testing.assert_close(down, -up)


@given(logratio, logratio)
@few
def test_robust_is_unbiased_over_flips(c: float, r: float) -> None:
    e, one, other = 0.3, scalar(c), scalar(r)
    robust = [
        dpo.robust_loss(*pair, beta=BETA, flip_rate=e) for pair in ((one, other), (other, one))
    ]
    clean = dpo.sigmoid_loss(one, other, beta=BETA)
    torch.testing.assert_close((1 - e) * robust[0] + e * robust[1], clean, rtol=1e-9, atol=1e-9)


@given(logratio, logratio)
@few
def test_losses_fall_back_to_dpo(c: float, r: float) -> None:
    chosen, rejected = scalar(c), scalar(r)
    group = torch.stack([chosen, rejected], dim=1)
    mask = torch.ones_like(group, dtype=torch.bool)
    same = [
        conservative(0.0)(chosen, rejected),
        soft(1.0)(chosen, rejected),
        dpo.robust_loss(chosen, rejected, beta=BETA, flip_rate=0.0),
        dpo.outlier_mixture_loss(chosen, rejected, beta=BETA, outlier_rate=0.0),
        ranking.plackett_luce_loss(group, mask, beta=BETA),
        ranking.best_of_k_loss(group, mask, beta=BETA),
        dpo.sigmoid_loss(
            f_divergence.reverse_kl_scores(chosen),
            f_divergence.reverse_kl_scores(rejected),
            beta=BETA,
        ),
    ]
    for loss in same:
        torch.testing.assert_close(
            loss, dpo.sigmoid_loss(chosen, rejected, beta=BETA), rtol=1e-9, atol=1e-9
        )


@given(st.floats(-50, 50, width=32))
@few
def test_alpha_divergence_lies_between_reverse_and_forward_kl(h: float) -> None:
    h_ = scalar(h)
    torch.testing.assert_close(
        f_divergence.alpha_scores(h_, alpha=1.0), f_divergence.forward_kl_scores(h_)
    )
    near = f_divergence.alpha_scores(h_, alpha=1e-9)
    torch.testing.assert_close(near, f_divergence.reverse_kl_scores(h_), rtol=1e-6, atol=1e-6)


@given(logratio, logratio)
@few
def test_apo_moves_each_likelihood_its_own_way(c: float, r: float) -> None:
    chosen, rejected = scalar(c).requires_grad_(), scalar(r).requires_grad_()
    zero = apo.apo_zero_loss(chosen, rejected, beta=BETA)
    up, down = torch.autograd.grad(zero, (chosen, rejected))
    assert up <= 0 <= down
    _, down = torch.autograd.grad(
        apo.apo_down_loss(chosen, rejected, beta=BETA), (chosen, rejected)
    )
    assert down >= 0


#: Eighths, so that adding a whole number rounds nothing.
eighths = st.lists(st.integers(-160, 160).map(lambda n: n / 8), min_size=4, max_size=4)


@pytest.mark.parametrize("builder", ["best_worst", "all_pairs", "first_two", "best_random"])
@pytest.mark.parametrize("labels", ["argmax", "bradley_terry"])
@given(eighths, st.integers(-1000, 1000))
@few
def test_a_constant_added_to_the_rewards_of_a_prompt_builds_the_same_pairs_and_ranking(
    builder: str, labels: str, rewards: list[float], constant: int
) -> None:
    config = PairsConfig.model_validate(
        {"builder": builder, "labels": labels, "min_margin": 0.25, "flip_rate": 0.1}
    )
    built = [
        build_pairs(
            [Scored(i, (i,), reward + added) for i, reward in enumerate(rewards)],
            config,
            Draws(0, 0, "prompt"),
        )
        for added in (0, constant)
    ]
    assert built[0] == built[1]


@given(eighths, st.integers(-1000, 1000))
@few
def test_a_constant_added_to_the_rewards_of_a_prompt_gives_the_same_soft_labels(
    rewards: list[float], constant: int
) -> None:
    table = torch.tensor([rewards], dtype=torch.float64)
    reference = torch.zeros_like(table).log_softmax(-1)
    one = tabular.preference_probabilities(tabular.TabularWorld(table, reference))
    other = tabular.preference_probabilities(tabular.TabularWorld(table + constant, reference))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
