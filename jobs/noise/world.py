"""The noise study on an enumerable world: with all possible labels, and with few.

For a flip rate and a seed, it measures how well each objective's policy orders completions, and
what the policy misses of the largest regularized reward. Labels are those of Bradley-Terry,
flipped at the rate: either in their exact proportions, or one drawn for each pair. The policy is
a table, and is trained until its loss converges.

Shapes: X prompts, K completions, P labelled pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from enumerable import world as tabular
from noise.contenders import Result, contenders
from raydpo.training.measures.pairs import PairLoss, pair_loss

BETA = 0.5
PROMPTS, COMPLETIONS = 400, 4
STEPS, LEARNING_RATE = 400, 0.05


def run_world(flip_rate: float, seed: int, exact: bool, skip: set[str]) -> Iterator[Result]:
    """Objectives on the same labels: in exact proportions, or one drawn for each pair.

    Args:
        flip_rate: share of labels that are flipped.
        seed: of the world and its labels.
        exact: whether labels come in their exact proportions.
        skip: names of objectives that are done.
    """
    world = tabular.random_world(PROMPTS, COMPLETIONS, seed, reward_scale=1.5)
    labels = draw_labels(world, flip_rate, seed)
    weights = torch.ones(len(labels), dtype=torch.float64)
    if exact:
        labels, weights = all_labels(world, flip_rate)
    most = BETA * tabular.log_partition(world, BETA)
    setting = "exact" if exact else "world"
    for name, section in contenders(flip_rate, BETA).items():
        if name not in skip:
            logps = train_table(world, labels, weights, pair_loss(section))
            missing = (most - tabular.regularized_reward(world, logps, BETA)).mean().item()
            yield Result(setting, name, flip_rate, *right_orders(world, logps), missing)


def draw_labels(world: tabular.TabularWorld, flip_rate: float, seed: int) -> Tensor:
    """[P, 3] int64: prompt, chosen, rejected; each unordered pair has one label."""
    generator = torch.Generator().manual_seed(seed + 1)
    first, second = torch.tensor(
        list(itertools.combinations(range(COMPLETIONS), 2))
    ).T  # [pairs of a prompt]
    wins = tabular.preference_probabilities(world)[:, first, second]  # [X, pairs of a prompt]
    # The same draws at every rate: only the flips come on top.
    preferred = torch.rand(wins.shape, generator=generator) < wins
    flipped = torch.rand(wins.shape, generator=generator) < flip_rate
    won = preferred ^ flipped
    prompts = torch.arange(len(wins))[:, None].expand(wins.shape)
    chosen, rejected = torch.where(won, first, second), torch.where(won, second, first)
    return torch.stack([prompts, chosen, rejected], dim=-1).reshape(-1, 3)


def all_labels(world: tabular.TabularWorld, flip_rate: float) -> tuple[Tensor, Tensor]:
    """[P, 3] as `draw_labels`, each ordered pair once, and how often each comes up: [P]."""
    flipped = tabular.with_flips(tabular.preference_probabilities(world), flip_rate)
    labels = flipped.nonzero()
    return labels, flipped[tuple(labels.T)]


def train_table(
    world: tabular.TabularWorld, labels: Tensor, weights: Tensor, loss: PairLoss
) -> Tensor:
    """[X, K] log-probs after Adam on the weighted mean loss of the labels."""
    logits = world.reference_logps.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    prompts, chosen, rejected = labels.T
    certain = torch.ones(len(labels), dtype=logits.dtype)
    for _ in range(STEPS):
        h = tabular.logratios(world, logits)
        losses = loss(h[prompts, chosen], h[prompts, rejected], certain)
        value = (weights * losses).sum() / weights.sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return logits.detach().log_softmax(-1)


def right_orders(world: tabular.TabularWorld, logps: Tensor) -> tuple[list[float], list[str]]:
    """For each pair 1.0 where the policy's implicit reward orders it as the true one, and its prompt."""
    h = tabular.logratios(world, logps)
    right: list[float] = []
    prompts: list[str] = []
    for i, j in itertools.combinations(range(COMPLETIONS), 2):
        same = (h[:, i] > h[:, j]) == (world.rewards[:, i] > world.rewards[:, j])
        right += same.double().tolist()
        prompts += map(str, range(len(h)))
    return right, prompts
