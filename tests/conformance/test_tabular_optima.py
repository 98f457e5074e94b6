"""On an enumerable world, objectives reach the policy that theory says they reach."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from enumerable import world as tabular
from enumerable.optima import (
    TabularObjective,
    expected_loss,
    tabular_objectives,
)
from enumerable.sampled import expected_sampled_loss, on_policy
from raydpo.config.objectives import DpoObjective, PolicyGradientObjective
from raydpo.training.losses import reward_model
from raydpo.training.losses.policy_gradient import clipped_ratio_losses, kl_estimates

pytestmark = pytest.mark.thorough

WORLD = tabular.random_world(prompts=3, completions=4, seed=11, reward_scale=1.0)
BETA = 0.7
PREFERENCES = tabular.preference_probabilities(WORLD)
STEPS = 20

OBJECTIVES = {one.name: one for one in tabular_objectives(WORLD, BETA, flip_rate=0.2)}


def names(wanted: Callable[[TabularObjective], bool]) -> list[str]:
    found = [name for name, one in OBJECTIVES.items() if wanted(one)]
    assert len(found) >= 4
    return found


def reached(loss: Callable[[Tensor], Tensor]) -> Tensor:
    return tabular.fit(WORLD, loss, STEPS)[-1]


@pytest.mark.parametrize("name", names(lambda one: one.consistent))
def test_consistent_objectives_reach_the_optimal_policy(name: str) -> None:
    best = tabular.optimal_logps(WORLD, BETA)
    logps = reached(OBJECTIVES[name].loss)
    assert tabular.kl(best, WORLD.reference_logps) > 0.1
    assert tabular.kl(best, logps) < 1e-12
    value = tabular.regularized_reward(WORLD, logps, BETA)
    torch.testing.assert_close(value, BETA * tabular.log_partition(WORLD, BETA))


@pytest.mark.parametrize("name", names(lambda one: one.optimum is not None and not one.consistent))
def test_other_objectives_reach_optima_of_their_own(name: str) -> None:
    logps = reached(OBJECTIVES[name].loss)
    assert tabular.kl(OBJECTIVES[name].optimum, logps) < 1e-12
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), logps) > 1e-3


@pytest.mark.parametrize("name", names(lambda one: one.optimum is None))
def test_others_do_not_reach_the_optimal_policy(name: str) -> None:
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), reached(OBJECTIVES[name].loss)) > 1e-3


@pytest.mark.parametrize(
    ("beta", "preferences"),
    [(1.3 * BETA, PREFERENCES), (BETA, PREFERENCES.mT)],
    ids=["the wrong beta", "the opposite preference"],
)
def test_dpo_does_not_reach_it_with(beta: float, preferences: Tensor) -> None:
    logps = reached(expected_loss(WORLD, DpoObjective(beta=beta), preferences))
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), logps) > 1e-3


def test_no_policy_has_more_regularized_reward_than_beta_log_z() -> None:
    most = BETA * tabular.log_partition(WORLD, BETA)
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.1, 1.0):
        noise = scale * torch.randn(WORLD.rewards.shape, generator=generator, dtype=torch.float64)
        near = (tabular.optimal_logps(WORLD, BETA) + noise).log_softmax(-1)
        assert (tabular.regularized_reward(WORLD, near, BETA) < most).all()


#: f of each divergence E_ref[f(u)], u = pi/pi_ref.
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "f_dpo, forward KL": lambda u: -u.log(),
    "f_dpo, JS": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "f_dpo, alpha = 0.6": lambda u: (u**0.4 - 0.4 * u - 0.6) / (0.6 * -0.4),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_policy_has_more_reward_under_a_divergence_than_its_optimum(name: str) -> None:
    best = OBJECTIVES[name].optimum
    assert best is not None
    torch.testing.assert_close(best.logsumexp(-1), torch.zeros(3, dtype=torch.float64))

    def value(logps: Tensor) -> Tensor:
        """E[r] - beta D_f(pi || pi_ref)."""
        u = (logps - WORLD.reference_logps).exp()
        divergence = WORLD.reference_logps.exp() * DIVERGENCES[name](u)
        return (logps.exp() * WORLD.rewards - BETA * divergence).sum(-1)

    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(20, *WORLD.rewards.shape, generator=generator, dtype=torch.float64)
    assert (value((best + noise).log_softmax(-1)) < value(best)).all()


def policy_gradient(**options: Any) -> PolicyGradientObjective:
    return PolicyGradientObjective(name="policy_gradient", **{"beta": BETA, **options})


@pytest.mark.parametrize("kl", ["reward", "weighted_loss"])
def test_policy_gradient_on_its_own_samples_reaches_the_optimal_policy(kl: str) -> None:
    best = tabular.optimal_logps(WORLD, BETA)
    logps = on_policy(WORLD, policy_gradient(kl=kl), 40)[-1]
    assert tabular.kl(best, logps) < 1e-12
    value = tabular.regularized_reward(WORLD, logps, BETA)
    torch.testing.assert_close(value, BETA * tabular.log_partition(WORLD, BETA))


def test_the_kl_term_of_grpo_holds_the_opposite_kl() -> None:
    """Its mean is KL(policy || reference); its gradient is that of KL(reference || policy)."""
    logps = on_policy(WORLD, policy_gradient(kl="loss"), 200, rate=0.1)[-1]
    opposite = OBJECTIVES["f_dpo, forward KL"].optimum
    assert opposite is not None
    assert tabular.kl(opposite, logps) < 1e-12
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), logps) > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"beta": 1.3 * BETA}, {"advantages": "group_normalized", "kl": "weighted_loss"}],
    ids=["the wrong beta", "rewards in standard deviations"],
)
def test_policy_gradient_does_not_reach_it_with(options: dict[str, Any]) -> None:
    logps = on_policy(WORLD, policy_gradient(**options), 60)[-1]
    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), logps) > 1e-3


def test_limits_of_the_ratio_keep_the_policy_near_its_sampler() -> None:
    section = policy_gradient(kl="weighted_loss", clip_low=0.2, clip_high=0.2)

    def loss(logits: Tensor) -> Tensor:
        return expected_sampled_loss(WORLD, logits, WORLD.reference_logps, section)

    assert tabular.kl(tabular.optimal_logps(WORLD, BETA), reached(loss)) > 1e-3


@pytest.mark.parametrize(("kl", "is_exact"), [("reward", True), ("weighted_loss", False)])
def test_over_several_tokens_the_gradient_is_that_of_the_regularized_reward(
    kl: str, is_exact: bool
) -> None:
    """Two tokens of three. A term of each token misses what a token does to the KL of later ones."""
    generator = torch.Generator().manual_seed(2)
    reward, first, second = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 3), (2, 3), (2, 3, 3))
    )
    leaves = [first[0].clone().requires_grad_(), second[0].clone().requires_grad_()]
    policy = tokens(*leaves)
    sampler, reference = policy.detach(), tokens(first[1], second[1])
    value = (policy.sum(-1).exp() * (reward - BETA * (policy - reference).sum(-1))).sum()
    wanted = torch.autograd.grad(-value, leaves, retain_graph=True)
    rewards = reward - BETA * (sampler - reference).sum(-1) if kl == "reward" else reward
    ppo = clipped_ratio_losses(policy, sampler, rewards[..., None], clip_low=0.2, clip_high=0.2)
    if kl == "weighted_loss":
        ppo = ppo + BETA * (policy - sampler).exp() * kl_estimates(policy, reference)
    found = torch.autograd.grad((sampler.sum(-1).exp() * ppo.sum(-1)).sum(), leaves)
    errors = [(one - other).abs().max().item() for one, other in zip(found, wanted, strict=True)]
    assert (max(errors) < 1e-12) == is_exact


def tokens(first: Tensor, second: Tensor) -> Tensor:
    """Log-probs of both tokens of all sequences: [3, 3, 2]."""
    heads = first.log_softmax(-1)[:, None].expand(3, 3)
    return torch.stack([heads, second.log_softmax(-1)], -1)


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
