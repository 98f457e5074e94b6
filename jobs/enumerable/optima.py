"""Objectives on an enumerable world, with the policy that each should reach.

From a `TabularWorld` the module computes expected losses of tables of logits, with the same
sections of the configuration as a job, and the optima that theory gives.

Shapes: X prompts, K completions of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from enumerable import world as tabular
from enumerable.sampled import expected_sampled_loss
from enumerable.world import TabularWorld
from raydpo.config import objectives as sections
from raydpo.training.losses.ranking import best_of_k_loss, plackett_luce_loss
from raydpo.training.measures.pairs import pair_loss

#: From logits [X, K] to the expected loss, a scalar.
ExpectedLoss = Callable[[Tensor], Tensor]

#: Order of the alpha-divergence in the list.
ALPHA = 0.6


@dataclass(frozen=True)
class TabularObjective:
    """An objective on a world, and the policy that it should reach.

    Attributes:
        name: its key, and what is special about it.
        loss: the expected loss.
        optimum: log-probabilities [X, K], or None where theory gives none.
        consistent: whether the optimum is that of E[r] - beta KL, pi_ref exp(r/beta)/Z.
    """

    name: str
    loss: ExpectedLoss
    optimum: Tensor | None
    consistent: bool = False


def tabular_objectives(
    world: TabularWorld, beta: float, flip_rate: float
) -> list[TabularObjective]:
    """Objectives that should reach pi*, then those with optima of their own, then others.

    Args:
        world: rewards and reference.
        beta: strength of the KL constraint of all of them; for IPO it is tau.
        flip_rate: share of labels that are flipped, where that is said.
    """
    return [
        *_consistent(world, beta, flip_rate),
        *_with_other_optima(world, beta),
        *_without_optimum(world, beta, flip_rate),
    ]


def expected_loss(
    world: TabularWorld, section: sections.LogratioObjective, weights: Tensor
) -> ExpectedLoss:
    """The loss of an objective of pairs over all ordered pairs.

    Args:
        world: rewards and reference.
        section: the objective.
        weights: [X, K, K], chosen by rejected: how often each pair comes up.
    """
    # What an objective of soft labels is told: the true probability.
    wins = tabular.preference_probabilities(world).flatten()
    loss = pair_loss(section)
    return lambda logits: tabular.expected_pair_loss(
        world, logits, lambda chosen, rejected: loss(chosen, rejected, wins), weights
    )


def _consistent(world: TabularWorld, beta: float, flip_rate: float) -> list[TabularObjective]:
    """Those that reach the optimum of RLHF from the labels (or rewards) that they are made for."""
    clean = tabular.preference_probabilities(world)
    flipped = tabular.with_flips(clean, flip_rate)
    flips = f"{flip_rate:.0%} flipped"
    robust = sections.RobustDpoObjective(name="robust", beta=beta, flip_rate=flip_rate)
    # A label drawn at random is a flipped one half of the time.
    mixture = sections.OutlierMixtureObjective(
        name="outlier_mixture", beta=beta, outlier_rate=2 * flip_rate
    )
    soft = sections.SoftLabelObjective(name="soft_label", beta=beta)
    k = world.rewards.shape[1]
    plackett_luce = partial(plackett_luce_loss, beta=beta)
    best_of_k = partial(best_of_k_loss, beta=beta)
    # Samples of the reference do, where no limit holds the ratio and the KL has it too.
    policy_gradient = sections.PolicyGradientObjective(
        name="policy_gradient", beta=beta, kl="weighted_loss", clip_low=None, clip_high=None
    )
    losses: dict[str, ExpectedLoss] = {
        "dpo": expected_loss(world, sections.DpoObjective(beta=beta), clean),
        "soft_label": expected_loss(world, soft, (clean > 0).to(clean.dtype)),
        f"robust, {flips}": expected_loss(world, robust, flipped),
        f"outlier_mixture, {flips}": expected_loss(world, mixture, flipped),
        f"plackett_luce, K = {k}": lambda x: tabular.expected_ranking_loss(world, x, plackett_luce),
        f"best_of_k, K = {k}": lambda x: tabular.expected_best_loss(world, x, best_of_k),
        "policy_gradient, weighted_loss": lambda x: expected_sampled_loss(
            world, x, world.reference_logps, policy_gradient
        ),
    }
    best = tabular.optimal_logps(world, beta)
    return [TabularObjective(name, loss, best, consistent=True) for name, loss in losses.items()]


def _with_other_optima(world: TabularWorld, beta: float) -> list[TabularObjective]:
    """IPO, and f-DPO under each divergence but the reverse KL."""
    clean = tabular.preference_probabilities(world)
    f_dpo = partial(sections.FDpoObjective, name="f_dpo", beta=beta)
    forward, js = f_dpo(divergence="forward_kl"), f_dpo(divergence="js")
    alpha = f_dpo(divergence="alpha", alpha=ALPHA)
    found: dict[str, tuple[sections.LogratioObjective, Tensor]] = {
        "ipo": (sections.IpoObjective(name="ipo", tau=beta), _ipo_optimum(world, clean, beta)),
        "f_dpo, forward KL": (
            forward,
            tabular.f_optimal_logps(world, beta, lambda score: 1 / (1 - score), 1.0),
        ),
        "f_dpo, JS": (js, tabular.f_optimal_logps(world, beta, _js_ratio, math.log(2))),
        f"f_dpo, alpha = {ALPHA}": (
            alpha,
            tabular.f_optimal_logps(world, beta, _alpha_ratio, 1 / ALPHA),
        ),
    }
    return [
        TabularObjective(name, expected_loss(world, section, clean), optimum)
        for name, (section, optimum) in found.items()
    ]


def _without_optimum(world: TabularWorld, beta: float, flip_rate: float) -> list[TabularObjective]:
    """Those that lead elsewhere."""
    clean = tabular.preference_probabilities(world)
    flipped = tabular.with_flips(clean, flip_rate)
    smoothed = sections.ConservativeDpoObjective(name="cdpo", beta=beta, label_smoothing=flip_rate)
    exo = sections.ExoObjective(name="exo", beta=beta, label_smoothing=0.1)
    apo_zero = sections.ApoZeroObjective(name="apo_zero", beta=beta)
    losses = {
        f"dpo, {flip_rate:.0%} flipped": expected_loss(
            world, sections.DpoObjective(beta=beta), flipped
        ),
        f"cdpo, e = {flip_rate}": expected_loss(world, smoothed, clean),
        "exo, e = 0.1": expected_loss(world, exo, clean),
        "apo_zero": expected_loss(world, apo_zero, clean),
    }
    return [TabularObjective(name, loss, None) for name, loss in losses.items()]


def _js_ratio(scores: Tensor) -> Tensor:
    """U of log(2u/(1+u))."""
    return scores.exp() / (2 - scores.exp())


def _alpha_ratio(scores: Tensor) -> Tensor:
    """U of (1 - u^-alpha)/alpha."""
    return (1 - ALPHA * scores) ** (-1 / ALPHA)


def _ipo_optimum(world: TabularWorld, preferences: Tensor, tau: float) -> Tensor:
    """pi_ref exp(P(y beats a uniform other)/tau)/Z, arXiv:2310.12036 sec. 5; P(y, y) = 1/2."""
    wins = preferences + torch.eye(preferences.shape[-1], dtype=preferences.dtype) / 2
    return (world.reference_logps + wins.mean(-1) / tau).log_softmax(-1)
