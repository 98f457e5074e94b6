"""On an enumerable world, objectives reach the policy that theory says they reach."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from enumerable import world as tabular
from enumerable.optima import (
    TabularObjective,
    expected_loss,
    tabular_objectives,
)
from raydpo.config.objectives import DpoObjective
from raydpo.training.losses import reward_model

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
