"""An enumerable world: every prompt, every completion, exact preferences.

It has rewards and a reference policy over a few completions of a few prompts. It gives expected
losses without sampling, the policies that minimise them, and the optimum that theory predicts.
Policies are tables, softmax(logits), in float64.

Shapes: X prompts, K completions of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

#: Losses of pairs or groups, from logratios of chosen and rejected, or [G, K] and a mask.
PairLoss = Callable[[Tensor, Tensor], Tensor]
GroupLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TabularWorld:
    """All there is to know.

    Attributes:
        rewards: [X, K] float64, r(x, y), dimensionless.
        reference_logps: [X, K] float64, log pi_ref(y|x), nats, normalised.
    """

    rewards: Tensor
    reference_logps: Tensor


def random_world(prompts: int, completions: int, seed: int, reward_scale: float) -> TabularWorld:
    """Rewards and reference logits from a normal distribution.

    Args:
        prompts: X.
        completions: K.
        seed: of the draw.
        reward_scale: standard deviation of the rewards.
    """
    generator = torch.Generator().manual_seed(seed)
    rewards, logits = torch.randn(2, prompts, completions, generator=generator, dtype=torch.float64)
    return TabularWorld(reward_scale * rewards, logits.log_softmax(-1))


def preference_probabilities(world: TabularWorld) -> Tensor:
    """Bradley-Terry: P(y_i > y_j | x) = sigmoid(r_i - r_j), arXiv:2305.18290 eq. 1.

    Returns:
        [X, K, K], chosen by rejected. 0 on the diagonal: no completion meets itself.
    """
    differences = world.rewards[:, :, None] - world.rewards[:, None, :]
    itself = torch.eye(world.rewards.shape[1], dtype=torch.bool)
    return differences.sigmoid().masked_fill(itself, 0.0)


def with_flips(preferences: Tensor, flip_rate: float) -> Tensor:
    """Preferences whose labels are swapped with a probability: [X, K, K]."""
    return (1 - flip_rate) * preferences + flip_rate * preferences.mT


def log_partition(world: TabularWorld, beta: float) -> Tensor:
    """Log Z(x) = log sum_y pi_ref(y|x) exp(r(x,y)/beta): [X]."""
    return (world.reference_logps + world.rewards / beta).logsumexp(-1)


def optimal_logps(world: TabularWorld, beta: float) -> Tensor:
    """Log pi*(y|x) = log pi_ref + r/beta - log Z, arXiv:2305.18290 eq. 4: [X, K]."""
    tilted = world.reference_logps + world.rewards / beta
    return tilted - log_partition(world, beta)[:, None]


def f_optimal_logps(
    world: TabularWorld, beta: float, ratio: Callable[[Tensor], Tensor], largest_score: float
) -> Tensor:
    """The maximiser of E[r] - beta D_f(pi || pi_ref): f'(u) = r/beta - c(x), u = pi/pi_ref.

    arXiv:2309.16240. c(x) makes probabilities sum to 1; it is found by bisection.

    Args:
        world: rewards and reference.
        beta: strength of the constraint, > 0.
        ratio: u from scores f'(u) (as in losses/f_divergence.py, 0 at u = 1), rising.
        largest_score: what the scores of a finite u stay below.

    Returns:
        [X, K].
    """
    reference, scaled = world.reference_logps.exp(), world.rewards / beta
    low = scaled.amax(-1, keepdim=True) - largest_score  # sums to infinity here
    high = low + 1e4  # and to next to nothing here
    for _ in range(200):
        middle = (low + high) / 2
        too_much = (reference * ratio(scaled - middle)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (reference * ratio(scaled - high)).log()


def kl(logps: Tensor, other_logps: Tensor) -> float:
    """KL(p || q), nats, the mean over prompts; both [X, K]."""
    return (logps.exp() * (logps - other_logps)).sum(-1).mean().item()


def regularized_reward(world: TabularWorld, logps: Tensor, beta: float) -> Tensor:
    """E[r] - beta KL(pi || pi_ref) of each prompt, arXiv:2305.18290 eq. 3: [X]."""
    return (logps.exp() * (world.rewards - beta * (logps - world.reference_logps))).sum(-1)


def logratios(world: TabularWorld, logits: Tensor) -> Tensor:
    """Log pi - log pi_ref of a table of logits: [X, K], nats."""
    return logits.log_softmax(-1) - world.reference_logps


def expected_pair_loss(
    world: TabularWorld, logits: Tensor, loss: PairLoss, weights: Tensor
) -> Tensor:
    """A pair loss over all ordered pairs of each prompt, weighted.

    Args:
        world: rewards and reference.
        logits: [X, K], the policy.
        loss: from logratios [P] of chosen and of rejected to losses [P], P = X K K.
        weights: [X, K, K], chosen by rejected: how often each pair comes up, such as
            `preference_probabilities`.

    Returns:
        Scalar.
    """
    h = logratios(world, logits)
    chosen = h[:, :, None].expand(weights.shape).flatten()
    rejected = h[:, None, :].expand(weights.shape).flatten()
    return (weights.flatten() * loss(chosen, rejected)).sum() / weights.sum()


def expected_ranking_loss(world: TabularWorld, logits: Tensor, loss: GroupLoss) -> Tensor:
    """A ranking loss over all K! rankings, as likely as Plackett-Luce makes them.

    Args:
        world: rewards and reference.
        logits: [X, K], the policy.
        loss: from logratios [G, K], best first, and a mask to losses [G].

    Returns:
        Scalar, the mean over prompts.
    """
    orders = torch.tensor(list(permutations(range(world.rewards.shape[1]))))  # [K!, K]
    ranked = world.rewards[:, orders]  # [X, K!, K]
    among = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    probabilities = (ranked - among).sum(-1).exp()
    groups = logratios(world, logits)[:, orders].flatten(0, 1)
    losses = loss(groups, torch.ones_like(groups, dtype=torch.bool))
    return (probabilities.flatten() * losses).sum() / len(world.rewards)


def expected_best_loss(world: TabularWorld, logits: Tensor, loss: GroupLoss) -> Tensor:
    """A best-of-K loss, each completion as often the best as softmax(r) says.

    Args:
        world: rewards and reference.
        logits: [X, K], the policy.
        loss: from logratios [G, K], the best first, and a mask to losses [G].

    Returns:
        Scalar, the mean over prompts.
    """
    completions = world.rewards.shape[1]
    orders = (torch.arange(completions)[:, None] + torch.arange(completions)) % completions
    groups = logratios(world, logits)[:, orders].flatten(0, 1)
    losses = loss(groups, torch.ones_like(groups, dtype=torch.bool))
    return (world.rewards.softmax(-1).flatten() * losses).sum() / len(world.rewards)


def fit(world: TabularWorld, objective: Callable[[Tensor], Tensor], steps: int) -> list[Tensor]:
    """Minimise an expected loss over tables by damped Newton steps, from the reference on.

    A loss need not be convex in the logits: curvature counts by its size, and a step is
    halved until the loss falls. Near a minimum digits double with every step.

    Args:
        world: where to start.
        objective: from logits [X, K] to the loss, a scalar.
        steps: Newton steps.

    Returns:
        Log-probabilities [X, K] at the start and after every step.
    """
    logits = world.reference_logps
    trajectory = [logits]
    for _ in range(steps):
        logits = _descend(objective, logits, _newton_step(objective, logits))
        trajectory.append(logits.log_softmax(-1))
    return trajectory


def _newton_step(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    size = logits.numel()
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf), leaf)
    hessian = torch.autograd.functional.hessian(objective, logits)
    assert isinstance(hessian, Tensor)
    curvatures, directions = torch.linalg.eigh(hessian.reshape(size, size))
    slopes = directions.T @ gradient.flatten()
    return -(directions @ (slopes / curvatures.abs().clamp(min=1e-9))).reshape(logits.shape)


def _descend(objective: Callable[[Tensor], Tensor], logits: Tensor, step: Tensor) -> Tensor:
    """The longest of step, step/2, step/4 ... that does not raise the loss."""
    start = objective(logits)
    for halvings in range(60):
        moved = logits + step / 2**halvings
        if objective(moved) <= start:
            return moved
    return logits
