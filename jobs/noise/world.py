"""The noise study on an enumerable world: with all possible labels, and with few.

For a corruption and a seed, it measures how well each objective's policy orders completions, and
what the policy misses of the largest regularized reward. Labels are those of Bradley-Terry,
corrupted at the rate: either in their exact proportions, or one or a few votes drawn for each
pair. The policy is a table, and is trained until its loss converges.

Shapes: X prompts, K completions, V votes, P labelled pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from enumerable import world as tabular
from noise.contenders import Result, contenders
from noise.labels import VOTES, Asked, Noise
from raydpo.training.measures.pairs import PairLoss, pair_loss

BETA = 0.5
PROMPTS, COMPLETIONS = 400, 4
STEPS, LEARNING_RATE = 400, 0.05


def run_world(noise: Noise, seed: int, exact: bool, skip: set[str]) -> Iterator[Result]:
    """Objectives on the same votes: in exact proportions, or a few drawn for each pair.

    In exact proportions `soft_label` has the loss of `dpo`, and is left out.

    Args:
        noise: how labels are corrupted.
        seed: of the world and its labels.
        exact: whether labels come in their exact proportions.
        skip: names of objectives that are done.
    """
    world = tabular.random_world(PROMPTS, COMPLETIONS, seed, reward_scale=1.5)
    best = BETA * tabular.log_partition(world, BETA)
    setting = "exact" if exact else "world"
    for name, contender in contenders(noise, BETA).items():
        if name in skip or (exact and contender.asked != Asked()):
            continue
        if exact:
            labels, weights = all_labels(world, noise.wrong_share)
            certain = torch.ones_like(weights)
        else:
            labels, certain = draw_labels(world, noise, seed, contender.asked)
            weights = torch.ones_like(certain)
        logps = train_table(world, labels, weights, certain, pair_loss(contender.section))
        missing = (best - tabular.regularized_reward(world, logps, BETA)).tolist()
        right, prompts = right_orders(world, logps)
        each = [str(prompt) for prompt in range(len(missing))]
        yield Result(setting, name, noise.name, noise.rate, seed, right, prompts, missing, each)


def draw_labels(
    world: tabular.TabularWorld, noise: Noise, seed: int, asked: Asked
) -> tuple[Tensor, Tensor]:
    """Draw votes on the pairs of a world; each unordered pair has at most one label.

    Args:
        world: rewards and reference.
        noise: how each vote is corrupted.
        seed: of the votes and their errors, which are the same at every rate.
        asked: how many votes, and on which share of the pairs.

    Returns:
        [P, 3] int64: prompt, and chosen and rejected by the majority; and [P] float64: the share
        of the votes for chosen.
    """
    first, second = torch.tensor(
        list(itertools.combinations(range(COMPLETIONS), 2))
    ).T  # [pairs of a prompt]
    wins = tabular.preference_probabilities(world)[:, first, second]  # [X, pairs of a prompt]
    generators = [torch.Generator().manual_seed(5 * seed + n) for n in range(1, 5)]
    shape = (VOTES, *wins.shape)
    preferred = torch.rand(shape, generator=generators[0]) < wins  # [V, X, pairs of a prompt]
    corrupted = torch.rand(shape, generator=generators[1]) < noise.rate
    coins = torch.rand(shape, generator=generators[2]) < 0.5
    replaced = ~preferred if noise.corruption == "flips" else coins
    votes = torch.where(corrupted, replaced, preferred)[: asked.votes].double().mean(0)
    won = votes > 0.5
    prompts = torch.arange(len(wins))[:, None].expand(wins.shape)
    chosen, rejected = torch.where(won, first, second), torch.where(won, second, first)
    labels = torch.stack([prompts, chosen, rejected], dim=-1)
    kept = torch.rand(wins.shape, generator=generators[3]) < asked.share
    return labels[kept], torch.where(won, votes, 1 - votes)[kept]


def all_labels(world: tabular.TabularWorld, wrong_share: float) -> tuple[Tensor, Tensor]:
    """[P, 3] as `draw_labels`, each ordered pair once, and how often each comes up: [P]."""
    flipped = tabular.with_flips(tabular.preference_probabilities(world), wrong_share)
    labels = flipped.nonzero()
    return labels, flipped[tuple(labels.T)]


def train_table(
    world: tabular.TabularWorld, labels: Tensor, weights: Tensor, certain: Tensor, loss: PairLoss
) -> Tensor:
    """[X, K] log-probs after Adam on the weighted mean loss of the labels.

    Args:
        world: rewards and reference.
        labels: [P, 3] int64: prompt, chosen, rejected.
        weights: [P], of each label.
        certain: [P], the probability that chosen wins, for losses that read one.
        loss: from log-ratios [P] of chosen and rejected and `certain` to losses [P].
    """
    logits = world.reference_logps.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    prompts, chosen, rejected = labels.T
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
