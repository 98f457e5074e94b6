"""On a world that can be listed, objectives reach the policy that theory says they reach."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raydpo.training import tabular
from raydpo.training.losses import dpo, f_divergence, ipo, ranking, reward_model

WORLD = tabular.random_world(prompts=3, completions=4, seed=11, reward_scale=1.0)
BETA = 0.7
PREFERENCES = tabular.preference_probabilities(WORLD)
ALL_PAIRS = (PREFERENCES > 0).double()
STEPS = 20

Objective = Callable[[Tensor], Tensor]


def pairs(loss: tabular.PairLoss, weights: Tensor = PREFERENCES) -> Objective:
    return lambda logits: tabular.expected_pair_loss(WORLD, logits, loss, weights)


def soft(chosen: Tensor, rejected: Tensor) -> Tensor:
    return dpo.soft_label_loss(chosen, rejected, PREFERENCES.flatten(), beta=BETA)


def robust(chosen: Tensor, rejected: Tensor) -> Tensor:
    return dpo.robust_loss(chosen, rejected, beta=BETA, flip_rate=0.2)


def mixture(chosen: Tensor, rejected: Tensor) -> Tensor:
    return dpo.outlier_mixture_loss(chosen, rejected, beta=BETA, outlier_rate=0.4)


def sigmoid(chosen: Tensor, rejected: Tensor) -> Tensor:
    return dpo.sigmoid_loss(chosen, rejected, beta=BETA)


def plackett_luce(groups: Tensor, mask: Tensor) -> Tensor:
    return ranking.plackett_luce_loss(groups, mask, beta=BETA)


def best_of_k(groups: Tensor, mask: Tensor) -> Tensor:
    return ranking.best_of_k_loss(groups, mask, beta=BETA)


FLIPPED = tabular.with_flips(PREFERENCES, 0.2)

CONSISTENT: dict[str, Objective] = {
    "sigmoid": pairs(sigmoid),
    "soft labels": pairs(soft, ALL_PAIRS),
    "robust, with a fifth of the labels flipped": pairs(robust, FLIPPED),
    # 40 % drawn at random flip a fifth of the labels.
    "outlier mixture, with two fifths of the labels random": pairs(mixture, FLIPPED),
    "plackett_luce, K = 4": lambda x: tabular.expected_ranking_loss(WORLD, x, plackett_luce),
    "best_of_k, K = 4": lambda x: tabular.expected_best_loss(WORLD, x, best_of_k),
}


@pytest.mark.parametrize("name", CONSISTENT)
def test_consistent_objectives_reach_the_optimal_policy(name: str) -> None:
    best = tabular.optimal_logps(WORLD, BETA)
    trajectory = tabular.fit(WORLD, CONSISTENT[name], STEPS)
    assert tabular.kl(best, trajectory[0]) > 0.1
    assert tabular.kl(best, trajectory[-1]) < 1e-12
    value = tabular.regularized_reward(WORLD, trajectory[-1], BETA)
    torch.testing.assert_close(value, BETA * tabular.log_partition(WORLD, BETA))


def test_no_policy_has_more_regularized_reward_than_beta_log_z() -> None:
    most = BETA * tabular.log_partition(WORLD, BETA)
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1.0):
        noise = scale * torch.randn(WORLD.rewards.shape, generator=generator, dtype=torch.float64)
        near = (tabular.optimal_logps(WORLD, BETA) + noise).log_softmax(-1)
        assert (tabular.regularized_reward(WORLD, near, BETA) < most).all()


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("plain DPO on flipped labels", pairs(sigmoid, FLIPPED)),
        (
            "conservative on clean labels",
            pairs(lambda c, r: dpo.conservative_loss(c, r, beta=BETA, label_smoothing=0.2)),
        ),
        ("the wrong beta", pairs(lambda c, r: dpo.sigmoid_loss(c, r, beta=1.3 * BETA))),
        ("the opposite preference", pairs(sigmoid, PREFERENCES.mT)),
    ],
)
def test_others_do_not_reach_it(name: str, objective: Objective) -> None:
    trajectory = tabular.fit(WORLD, objective, STEPS)
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), trajectory[-1]) > 1e-3


def test_ipo_reaches_its_own_optimum() -> None:
    """pi_ref exp(P(y beats mu)/tau)/Z with mu uniform over completions, 2310.12036 sec. 5."""
    tau = 0.5
    against_all = PREFERENCES + torch.eye(4, dtype=torch.float64) / 2
    best = (WORLD.reference_logps + against_all.mean(-1) / tau).log_softmax(-1)
    objective = pairs(lambda c, r: ipo.ipo_loss(c, r, tau=tau))
    trajectory = tabular.fit(WORLD, objective, STEPS)
    assert tabular.kl(best, trajectory[-1]) < 1e-12
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), trajectory[-1]) > 1e-3


#: f, and u = (f')^-1 of f'(u) - f'(1), for a scalar; the largest value that f' takes.
DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable, Callable, float]] = {
    "forward KL": (
        f_divergence.forward_kl_scores,
        lambda u: -u.log(),
        lambda s: 1 / (1 - s),
        1.0,
    ),
    "JS": (
        f_divergence.js_scores,
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        lambda s: s.exp() / (2 - s.exp()),
        math.log(2),
    ),
    "alpha = 0.6": (
        lambda h: f_divergence.alpha_scores(h, alpha=0.6),
        lambda u: (u**0.4 - 0.4 * u - 0.6) / (0.6 * -0.4),
        lambda s: (1 - 0.6 * s) ** (-1 / 0.6),
        1 / 0.6,
    ),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_dpo_reaches_the_optimum_of_its_divergence(name: str) -> None:
    scores, f, inverse, most = DIVERGENCES[name]
    best = tabular.f_optimal_logps(WORLD, BETA, inverse, most)
    torch.testing.assert_close(best.logsumexp(-1), torch.zeros(3, dtype=torch.float64))
    objective = pairs(lambda c, r: dpo.sigmoid_loss(scores(c), scores(r), beta=BETA))
    trajectory = tabular.fit(WORLD, objective, STEPS)
    assert tabular.kl(best, trajectory[-1]) < 1e-12

    def value(logps: Tensor) -> Tensor:
        """E[r] - beta D_f(pi || pi_ref), D_f = E_ref[f(u)]."""
        u = (logps - WORLD.reference_logps).exp()
        return (logps.exp() * WORLD.rewards - BETA * WORLD.reference_logps.exp() * f(u)).sum(-1)

    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(20, *WORLD.rewards.shape, generator=generator, dtype=torch.float64)
    assert (value((best + noise).log_softmax(-1)) < value(best)).all()


def test_reward_model_recovers_rewards_up_to_a_constant() -> None:
    def loss(rewards: Tensor) -> Tensor:
        chosen, rejected = rewards[:, :, None], rewards[:, None, :]
        return (PREFERENCES * reward_model.bradley_terry_loss(chosen, rejected)).sum()

    def centred(table: Tensor) -> Tensor:
        return table - table.mean(-1, keepdim=True)

    fitted = tabular.fit(WORLD, loss, STEPS)[-1]
    torch.testing.assert_close(centred(fitted), centred(WORLD.rewards), rtol=1e-6, atol=1e-6)


def test_a_constant_added_to_the_rewards_of_a_prompt_changes_nothing() -> None:
    shifted = tabular.TabularWorld(
        WORLD.rewards + torch.tensor([[3.0], [-50.0], [0.5]]), WORLD.reference_logps
    )
    torch.testing.assert_close(tabular.preference_probabilities(shifted), PREFERENCES)
    torch.testing.assert_close(
        tabular.optimal_logps(shifted, BETA), tabular.optimal_logps(WORLD, BETA)
    )
