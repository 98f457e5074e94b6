"""Measure Best-of-N: of N completions of a model, the one with the highest reward.

Judged samples of a model with their rewards give, for each N, the judge score of the chosen
completion, its win rate against the reference, and the KL from the model that was sampled. One set
of M samples a prompt serves every N up to M. Nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from raydpo.core.errors import DataError
from raydpo.evaluation import metrics
from raydpo.evaluation.samples import Sample, samples_by_prompt

Json = dict[str, Any]
Floats = NDArray[np.float64]

#: Keeps a logarithm finite where its factor is 0.
_TINY: Final = float(np.finfo(np.float64).tiny)


def best_of_weights(rewards: Sequence[float], n: int) -> Floats:
    """Return the probability that each of M samples is the best of a random subset of N.

    With samples in ascending order of reward, the i-th of M has the weight

        w_i = C(i-1, N-1) / C(M, N)

    so sum_i w_i f(y_i) is an unbiased estimate of E[f(best of N)] (Hilton and Gao 2022, "Measuring
    Goodhart's law"). Samples of equal reward share their weights equally: the best of N is drawn
    uniformly among the samples that tie for it.

    Args:
        rewards: [M], in any order.
        n: N, from 1 to M.

    Returns:
        [M] in the order of `rewards`, with sum 1.
    """
    count = len(rewards)
    assert 1 <= n <= count
    ranked = np.zeros(count)
    ranked[-1] = n / count
    for i in range(count - 1, n - 1, -1):  # w_i from w_(i+1), by rank from 1
        ranked[i - 1] = ranked[i] * (i + 1 - n) / i
    classes, sizes = _classes(rewards)
    ends = np.cumsum(sizes)
    cumulative = np.concatenate([[0.0], np.cumsum(ranked)])
    shared = (cumulative[ends] - cumulative[ends - sizes]) / sizes
    return shared[classes]


def best_of_kl(rewards: Sequence[float], n: int) -> float:
    """Estimate KL(best of N || the sampled model) of one prompt, in nats per completion.

    With F the distribution function of the reward of a completion, and ties drawn uniformly, the
    best of N has a density ratio to the model that depends on the completion's reward r alone:

        pi_N(y) / pi(y) = (F(r)^N - F(r-)^N) / (F(r) - F(r-))     where r has probability,
                        = N F(r)^(N-1)                             where it has none.

    So the KL is that of the two distributions of the reward, and no log-prob of a model is needed.
    F is estimated by the M rewards. A reward that several samples share is taken to have their
    share as its probability; one that occurs once, to have none. If all rewards differ, the result
    is therefore the bound of `kl_bound`, and it is never above it.

    The bias: sets of samples that miss the best completions, or hold a rare one twice by chance,
    lower the estimate. A frequent reward that is seen once raises it. On random worlds of 3 to
    3,000 completions the bias lay between -0.06 and +0.01 nats at N <= M/4. At N = M it lay
    between -0.11 and +0.03 for M = 128, and between -0.30 and +0.05 for M = 16. Tests compare with
    exact values.

    Args:
        rewards: [M]; equal completions have equal rewards.
        n: N, 1 or more.
    """
    _, sizes = _classes(rewards)
    upper = np.cumsum(sizes) / len(rewards)
    lower = upper - sizes / len(rewards)
    lower[0] = 0.0  # it is 0 but for rounding, and has a logarithm below
    mass = upper**n - lower**n
    tied = np.where(mass > 0, mass * np.log(np.maximum(mass, _TINY) / (upper - lower)), 0.0)
    alone = _antiderivative(upper, n) - _antiderivative(lower, n)
    return max(0.0, float(np.where(sizes > 1, tied, alone).sum()))


def kl_bound(n: int) -> float:
    """Return log N - (N-1)/N, in nats: the KL of Best-of-N if no two completions tie.

    It is an upper bound for all models and rewards, and not the KL itself (Beirami et al. 2024,
    arXiv:2401.01879, theorem 1).
    """
    return math.log(n) - (n - 1) / n


def measure_best_of(
    samples: list[Sample],
    rewards: dict[tuple[str, int], float],
    reference: list[Sample],
    sizes: Sequence[int],
    shares: bool,
) -> list[Json]:
    """Measure the best of N samples for each N, with intervals clustered by prompt.

    Args:
        samples: judged completions of the model that is sampled, M a prompt.
        rewards: what chooses, by prompt and candidate; a sample without a reward does not count.
        reference: judged completions of the reference, drawn independently of `samples`.
        sizes: the values of N. A prompt with fewer than N samples is left out at this N.
        shares: whether judge scores lie in [0, 1].

    Returns:
        A JSON value for each N; its `tied_share` is that of comparisons with equal scores, which
        count one half in `win_rate`.

    Raises:
        DataError: no prompt has N samples and a completion of the reference.
    """
    pools = pools_of(samples, rewards, reference)
    return [_measured(n, [p for p in pools if len(p.rewards) >= n], shares) for n in sizes]


@dataclass(frozen=True)
class Pool:
    """The samples of a prompt that Best-of-N chooses from: [M] each.

    Attributes:
        prompt_id: the prompt.
        rewards: what chooses.
        scores: judge scores.
        lengths: in tokens.
        wins: the share of the reference's completions that have a lower score, a tie counting half.
        ties: the share of them that have an equal score.
    """

    prompt_id: str
    rewards: list[float]
    scores: Floats
    lengths: Floats
    wins: Floats
    ties: Floats


def pools_of(
    samples: list[Sample], rewards: dict[tuple[str, int], float], reference: list[Sample]
) -> list[Pool]:
    """Return the pool of each prompt of which both have samples; arguments as of `measure_best_of`."""
    opponents = samples_by_prompt(reference)
    return [
        _pool(some, rewards, opponents[prompt])
        for prompt, some in samples_by_prompt(samples).items()
        if prompt in opponents
    ]


def _pool(
    samples: list[Sample], rewards: dict[tuple[str, int], float], opponents: list[Sample]
) -> Pool:
    kept = [s for s in samples if (s.prompt_id, s.candidate) in rewards]
    # Classifiers round differently in different batches: equal texts have the first one's reward.
    first: dict[tuple[int, ...], float] = {}
    own = [first.setdefault(s.completion_ids, rewards[s.prompt_id, s.candidate]) for s in kept]
    scores = np.array([s.score for s in kept], dtype=np.float64)
    signs = np.sign(np.subtract.outer(scores, np.array([s.score for s in opponents])))
    return Pool(
        prompt_id=samples[0].prompt_id,
        rewards=own,
        scores=scores,
        lengths=np.array([len(s.completion_ids) for s in kept], dtype=np.float64),
        wins=(signs + 1).mean(axis=1) / 2,
        ties=(signs == 0).mean(axis=1),
    )


def _measured(n: int, pools: list[Pool], shares: bool) -> Json:
    if not pools:
        raise DataError(
            f"no held-out prompt has {n} samples with a reward and a judge score",
            "evaluation.best_of measures each N on the prompts that have as many samples",
            "read the reasons in the quarantine folders of the evaluation, or take smaller N",
        )
    weights = [best_of_weights(pool.rewards, n) for pool in pools]

    def mean(values: list[Floats], share: bool = False) -> Json:
        of_prompts = [float(w @ v) for w, v in zip(weights, values, strict=True)]
        return _clustered(of_prompts, pools, share)

    return {
        "n": n,
        "score": mean([pool.scores for pool in pools], shares),
        "reward": mean([np.array(pool.rewards) for pool in pools]),
        "win_rate": mean([pool.wins for pool in pools], share=True),
        "tied_share": mean([pool.ties for pool in pools], share=True),
        "completion_tokens": mean([pool.lengths for pool in pools]),
        "kl_nats_per_completion": _clustered([best_of_kl(p.rewards, n) for p in pools], pools),
        "kl_bound_nats": kl_bound(n),
    }


def _clustered(of_prompts: list[float], pools: list[Pool], share: bool = False) -> Json:
    """Estimate the mean over prompts; `observations` counts samples."""
    estimate = metrics.clustered_mean(of_prompts, [pool.prompt_id for pool in pools])
    samples = sum(len(pool.rewards) for pool in pools)
    return replace(estimate, share=share, observations=samples).as_json()


def _classes(rewards: Sequence[float]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return each sample's class of equal rewards, and the sizes of the classes, in ascending order."""
    _, classes, sizes = np.unique(np.array(rewards), return_inverse=True, return_counts=True)
    return classes, sizes


def _antiderivative(u: Floats, n: int) -> Floats:
    """Return the integral from 0 to u of N t^(N-1) log(N t^(N-1)) dt."""
    inner = math.log(n) + (n - 1) * np.log(np.maximum(u, _TINY)) - (n - 1) / n
    return np.where(u > 0, u**n * inner, 0.0)
