"""Each loss has the value that its paper implies where the policy equals the reference."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raydpo.training.losses import (
    anchors,
    aot,
    apo,
    contrastive,
    discopop,
    dpo,
    f_divergence,
    hinge,
    ipo,
    kto,
    policy_gradient,
    ranking,
    reward_model,
    tdpo,
)

ZERO = torch.zeros(5, dtype=torch.float64)
HALF = torch.full_like(ZERO, 0.5)
ALL = torch.ones(5, 4, dtype=torch.bool)
GROUPS = torch.zeros(5, 4, dtype=torch.float64)
LOG2 = math.log(2)
BETA = 0.3


def f_dpo(scores: Callable[[Tensor], Tensor]) -> Tensor:
    return dpo.sigmoid_loss(scores(ZERO), scores(ZERO), beta=BETA)


VALUES = {
    "sigmoid": (dpo.sigmoid_loss(ZERO, ZERO, beta=BETA), LOG2),
    "conservative": (dpo.conservative_loss(ZERO, ZERO, beta=BETA, label_smoothing=0.1), LOG2),
    "robust": (dpo.robust_loss(ZERO, ZERO, beta=BETA, flip_rate=0.1), LOG2),
    "outlier mixture": (dpo.outlier_mixture_loss(ZERO, ZERO, beta=BETA, outlier_rate=0.1), LOG2),
    "soft label": (dpo.soft_label_loss(ZERO, ZERO, HALF * 0.4, beta=BETA), LOG2),
    "ipo": (ipo.ipo_loss(ZERO, ZERO, tau=0.3), 1 / (4 * 0.3**2)),
    "hinge": (hinge.hinge_loss(ZERO, ZERO, beta=BETA), 1.0),
    "f-DPO, reverse KL": (f_dpo(f_divergence.reverse_kl_scores), LOG2),
    "f-DPO, forward KL": (f_dpo(f_divergence.forward_kl_scores), LOG2),
    "f-DPO, JS": (f_dpo(f_divergence.js_scores), LOG2),
    "f-DPO, alpha": (f_dpo(lambda h: f_divergence.alpha_scores(h, alpha=0.4)), LOG2),
    "plackett_luce": (ranking.plackett_luce_loss(GROUPS, ALL, beta=BETA), math.log(24)),
    "best_of_k": (ranking.best_of_k_loss(GROUPS, ALL, beta=BETA), math.log(4)),
    "tdpo1": (tdpo.tdpo1_loss(ZERO, ZERO, ZERO, ZERO, beta=BETA), LOG2),
    "tdpo2": (tdpo.tdpo2_loss(ZERO, ZERO, ZERO, ZERO, beta=BETA, alpha=0.5), LOG2),
    "kto, desirable": (
        kto.kto_loss(ZERO, ZERO == 0, 0.0, beta=BETA, desirable_weight=1.2, undesirable_weight=0.8),
        0.6,
    ),
    "kto, undesirable": (
        kto.kto_loss(ZERO, ZERO != 0, 0.0, beta=BETA, desirable_weight=1.2, undesirable_weight=0.8),
        0.4,
    ),
    "exo": (
        contrastive.exo_loss(ZERO, ZERO, beta=BETA, label_smoothing=1e-3),
        -LOG2 - math.log(1e-3 * 0.999) / 2,
    ),
    "nca": (contrastive.nca_loss(ZERO, ZERO, beta=BETA), 2 * LOG2),
    "bco": (contrastive.bco_loss(ZERO, ZERO, 0.0, beta=BETA), 2 * LOG2),
    "apo_zero": (apo.apo_zero_loss(ZERO, ZERO, beta=BETA), 0.0),
    "apo_down": (apo.apo_down_loss(ZERO, ZERO, beta=BETA), 0.0),
    "aot": (
        dpo.conservative_loss(
            ZERO, aot.matched_by_rank(ZERO, ZERO), beta=BETA, label_smoothing=0.1
        ),
        LOG2,
    ),
    "sppo": (ipo.sppo_loss(ZERO, ZERO, HALF * 2, ZERO, beta=BETA), 1 / (2 * BETA**2)),
    "discopop": (
        discopop.discopop_loss(ZERO, ZERO, beta=BETA, temperature=0.05),
        (LOG2 + 1) / 2,
    ),
    "dpop": (anchors.dpop_loss(ZERO, ZERO, beta=BETA, penalty=5.0), LOG2),
    "policy_gradient": (
        policy_gradient.clipped_ratio_losses(ZERO, ZERO, HALF, clip_low=0.2, clip_high=0.2),
        -0.5,
    ),
    "policy_gradient, KL": (policy_gradient.kl_estimates(ZERO, ZERO), 0.0),
    "reward model": (reward_model.bradley_terry_loss(ZERO, ZERO), LOG2),
}


@pytest.mark.parametrize("name", VALUES)
def test_loss_where_policy_equals_reference(name: str) -> None:
    losses, expected = VALUES[name]
    torch.testing.assert_close(losses, torch.full_like(losses, expected), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_the_dtype_of_what_they_get(dtype: torch.dtype) -> None:
    h, groups = ZERO.to(dtype), GROUPS.to(dtype)
    losses = [
        dpo.outlier_mixture_loss(h, h, beta=BETA, outlier_rate=0.1),
        f_divergence.forward_kl_scores(h),
        ranking.plackett_luce_loss(groups, ALL, beta=BETA),
        discopop.discopop_loss(h, h, beta=BETA, temperature=0.05),
        kto.kto_loss(h, h == 0, 0.0, beta=BETA, desirable_weight=1, undesirable_weight=1),
        contrastive.exo_loss(h, h, beta=BETA, label_smoothing=0.01),
    ]
    assert {loss.dtype for loss in losses} == {dtype}
