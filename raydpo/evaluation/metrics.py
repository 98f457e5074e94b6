"""Compute the report's numbers: estimates with standard errors clustered by prompt.

From plain lists over completions, pairs or tokens, with the prompt of each, the functions compute
`Estimate`s. Completions of one prompt are not independent, so prompts are the unit of every
standard error. Lists hold only real tokens, so padding never counts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Half the width of a 95 % interval, in standard errors (normal approximation).
Z_95: Final = 1.959963984540054

Floats = NDArray[np.float64]
TokenLogps = Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error.

    Args:
        mean: the estimate.
        standard_error: clustered by prompt; None if fewer than two prompts leave it unknown.
        prompts: number of clusters.
        observations: number of completions, pairs or comparisons.
        share: whether it is a mean of values in [0, 1], such as shares and probabilities.
    """

    mean: float
    standard_error: float | None
    prompts: int
    observations: int
    share: bool = False

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The ends of the 95 % confidence interval; those of a share lie in [0, 1]."""
        if self.standard_error is None:
            return None
        if self.share:
            return _wilson(self.mean, self.standard_error, self.prompts)
        half = Z_95 * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def z(self) -> float | None:
        """The mean in standard errors; None if the standard error is unknown or 0."""
        return self.mean / self.standard_error if self.standard_error else None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON value without NaN; unknown values are null."""
        interval = self.ci95
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "ci95": list(interval) if interval else None,
            "prompts": self.prompts,
            "observations": self.observations,
        }


def clustered_ratio(
    numerators: Sequence[float], denominators: Sequence[float], prompts: Sequence[str]
) -> Estimate:
    """Estimate the ratio of two sums, with prompts as the units of its standard error.

    With S_g and N_g the sums of prompt g's numerators and denominators, G prompts:

        m  = sum_g S_g / sum_g N_g
        SE = sqrt( G/(G-1) * sum_g (S_g - m N_g)^2 ) / sum_g N_g

    (linearised ratio estimator: Cochran, Sampling Techniques, section 6.4). If all N_g are equal,
    this is the usual standard error of the mean of the prompts' means.

    Args:
        numerators: [n].
        denominators: [n], not negative, with a positive sum.
        prompts: [n], the prompt of each observation.
    """
    sums, sizes, count = _sums_by_prompt(numerators, denominators, prompts)
    total = math.fsum(sizes)
    mean = math.fsum(sums) / total
    residuals = (sums - mean * sizes) / total
    return Estimate(mean, _root_of_sum(residuals), count, len(numerators))


def clustered_mean(values: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Return the mean, with its standard error clustered by prompt (see `clustered_ratio`)."""
    return clustered_ratio(values, [1.0] * len(values), prompts)


def as_share(estimate: Estimate) -> Estimate:
    """Return the same estimate as a share, whose interval stays in [0, 1] (see `_wilson`)."""
    return replace(estimate, share=True)


def paired_difference(
    policy: Sequence[float],
    policy_prompts: Sequence[str],
    reference: Sequence[float],
    reference_prompts: Sequence[str],
) -> Estimate:
    """Subtract the mean over the reference's completions from the policy's, paired by prompt.

    Only prompts with completions of both models count. With m, S_g, N_g as in `clustered_ratio`,
    one set for each model, and N the sum of each model's N_g:

        d_g = (S_g - m N_g)/N  of the policy  -  the same of the reference
        SE  = sqrt( G/(G-1) * sum_g d_g^2 )

    A prompt's effect on both models alike cancels, so this is smaller than the root of the sum of
    both squared standard errors. `z` of the result is the difference in standard errors.
    """
    shared = set(policy_prompts) & set(reference_prompts)
    return _difference((policy, policy_prompts), (reference, reference_prompts), shared)


def difference_of_means(
    first: Sequence[float],
    first_prompts: Sequence[str],
    second: Sequence[float],
    second_prompts: Sequence[str],
) -> Estimate:
    """Subtract the mean of one set of completions from another's; a prompt may be in both sets.

    The standard error is that of `paired_difference` over all prompts; a prompt that is missing on
    one side counts 0 there.
    """
    prompts = {*first_prompts, *second_prompts}
    return _difference((first, first_prompts), (second, second_prompts), prompts)


def separation(
    good: Sequence[float],
    good_prompts: Sequence[str],
    bad: Sequence[float],
    bad_prompts: Sequence[str],
) -> Estimate:
    """Return how often a good value lies above a bad one, with ties as half: the area under ROC.

    The standard error takes prompts as the units (Obuchowski 1997: the structural components of
    DeLong et al. 1988, summed by prompt). 0.5 is chance.
    """
    prompts = {*good_prompts, *bad_prompts}
    of_good, area, _ = _influence(_share_below(good, bad), good_prompts, prompts)
    above = [1 - share for share in _share_below(bad, good)]
    of_bad, _, _ = _influence(above, bad_prompts, prompts)
    error = _root_of_sum(of_good + of_bad)
    return Estimate(area, error, len(prompts), len(good) + len(bad), share=True)


def kl_per_completion(
    policy: Sequence[TokenLogps], reference: Sequence[TokenLogps], prompts: Sequence[str]
) -> Estimate:
    """Estimate KL(policy || reference) in nats per completion on the policy's own samples.

        KL = E_{y ~ policy} [ sum_t log policy(y_t | x, y_<t) - log reference(y_t | x, y_<t) ]

    The estimate is unbiased and covers exactly a completion's real tokens, which each list holds.

    Args:
        policy: [n] lists of per-token log-probs (nats).
        reference: log-probs of the same tokens under the reference.
        prompts: [n], the prompt of each completion.
    """
    return clustered_mean(sequence_logratios(policy, reference), prompts)


def kl_per_token(
    policy: Sequence[TokenLogps], reference: Sequence[TokenLogps], prompts: Sequence[str]
) -> Estimate:
    """Estimate KL(policy || reference) in nats per token: summed log-ratios over token count."""
    tokens = [float(len(logps)) for logps in policy]
    return clustered_ratio(sequence_logratios(policy, reference), tokens, prompts)


def sequence_logratios(
    policy: Sequence[TokenLogps], reference: Sequence[TokenLogps]
) -> list[float]:
    """Return each completion's sum over tokens of policy - reference log-prob, in nats."""
    return [
        math.fsum(p - r for p, r in zip(ours, theirs, strict=True))
        for ours, theirs in zip(policy, reference, strict=True)
    ]


def win_rate(
    policy: Sequence[float],
    policy_prompts: Sequence[str],
    reference: Sequence[float],
    reference_prompts: Sequence[str],
) -> Estimate:
    """Return how often a policy completion outscores a reference completion of the same prompt.

    Every policy sample is compared with every reference sample of its prompt; a tie counts one
    half. The standard error takes prompts as the units.
    """
    met = outcomes_by_prompt(policy, policy_prompts, reference, reference_prompts)
    wins, meetings = zip(*met.values(), strict=True)
    estimate = clustered_ratio(wins, meetings, list(met))
    return replace(estimate, observations=int(math.fsum(meetings)), share=True)


def outcomes_by_prompt(
    first: Sequence[float],
    first_prompts: Sequence[str],
    second: Sequence[float],
    second_prompts: Sequence[str],
) -> dict[str, tuple[float, float]]:
    """Compare all completions of a prompt with all of another model's, of each shared prompt.

    Returns:
        By prompt: how many comparisons the first model wins, a tie counting one half, and how many
        there are.
    """
    ours, theirs = _by_prompt(first, first_prompts), _by_prompt(second, second_prompts)
    met: dict[str, tuple[float, float]] = {}
    for prompt in ours:
        if prompt in theirs:
            gaps = np.sign(np.subtract.outer(np.array(ours[prompt]), np.array(theirs[prompt])))
            met[prompt] = float((gaps + 1).sum()) / 2, float(gaps.size)
    return met


def pair_accuracy(
    margins: Sequence[float], weights: Sequence[float], prompts: Sequence[str]
) -> Estimate:
    """Return the weighted share of pairs with a positive margin; a margin of 0 counts one half."""
    right = [0.5 * (1 + np.sign(margin)) for margin in margins]
    return as_share(weighted_mean(right, weights, prompts))


def weighted_mean(
    values: Sequence[float], weights: Sequence[float], prompts: Sequence[str]
) -> Estimate:
    """Return a weighted mean, with a standard error clustered by prompt."""
    products = [value * weight for value, weight in zip(values, weights, strict=True)]
    return clustered_ratio(products, weights, prompts)


def distinct_2(completions: Sequence[Sequence[int]]) -> float | None:
    """Return the share of distinct bigrams in a set of completions; low if all are alike.

    The result is None if no completion has two tokens. Compare only sets of similar size, because
    the share falls as text grows.
    """
    bigrams = [pair for ids in completions for pair in _bigrams(ids)]
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def repetition_share(
    completions: Sequence[Sequence[int]], prompts: Sequence[str]
) -> Estimate | None:
    """Return the share of bigrams that repeat within a completion; high if text loops.

    The result is None if no completion has two tokens.
    """
    repeats, totals = _repeats(completions)
    return as_share(clustered_ratio(repeats, totals, prompts)) if sum(totals) else None


def repetition_difference(
    policy: Sequence[Sequence[int]],
    policy_prompts: Sequence[str],
    reference: Sequence[Sequence[int]],
    reference_prompts: Sequence[str],
) -> Estimate | None:
    """Subtract the reference's repetition share from the policy's (see `difference_of_ratios`)."""
    return difference_of_ratios(
        *_repeats(policy), policy_prompts, *_repeats(reference), reference_prompts
    )


def difference_of_ratios(
    policy: Sequence[float],
    policy_sizes: Sequence[float],
    policy_prompts: Sequence[str],
    reference: Sequence[float],
    reference_sizes: Sequence[float],
    reference_prompts: Sequence[str],
) -> Estimate | None:
    """Subtract the reference's ratio of two sums from the policy's, paired by prompt.

    Only prompts with completions of both models count. The result is None if a model's sizes sum to
    0 there. With m, S_g and N_g as in `clustered_ratio`, one set for each model:

        d_g = (S_g - m N_g) / sum_g N_g  of the policy  -  the same of the reference
        SE  = sqrt( G/(G-1) * sum_g d_g^2 )

    Args:
        policy: [n], numerators of the policy's completions.
        policy_sizes: [n], their denominators.
        policy_prompts: [n], their prompts.
        reference: [m], the same of the reference's completions, as the two lists after it.
        reference_sizes: [m].
        reference_prompts: [m].
    """
    shared = sorted(set(policy_prompts) & set(reference_prompts))
    sides = [
        _sums_of_shared(policy, policy_sizes, policy_prompts, shared),
        _sums_of_shared(reference, reference_sizes, reference_prompts, shared),
    ]
    if not all(side[:, 1].sum() for side in sides):
        return None
    means = [side[:, 0].sum() / side[:, 1].sum() for side in sides]
    influences = [
        (side[:, 0] - mean * side[:, 1]) / side[:, 1].sum()
        for side, mean in zip(sides, means, strict=True)
    ]
    error = _root_of_sum(influences[0] - influences[1])
    count = len(policy) + len(reference)
    return Estimate(float(means[0] - means[1]), error, len(shared), count)


def distinct_2_difference(
    policy: Sequence[Sequence[int]],
    policy_prompts: Sequence[str],
    reference: Sequence[Sequence[int]],
    reference_prompts: Sequence[str],
) -> Estimate | None:
    """Subtract the reference's distinct-2 from the policy's, paired by prompt.

    Only prompts with completions of both models count. The result is None if a model has no
    completion of two tokens for them. A share of a set is no mean, so the standard error is that of
    the jackknife, which leaves out a prompt of both models (Efron and Tibshirani 1993, chapter 11):

        SE = sqrt( (G-1)/G * sum_g (d_(g) - mean d)^2 )
    """
    shared = sorted(set(policy_prompts) & set(reference_prompts))
    ours = _distinct_without(policy, policy_prompts, shared)
    theirs = _distinct_without(reference, reference_prompts, shared)
    if ours is None or theirs is None:
        return None
    count, error = len(shared), None
    if len(ours) == len(theirs) == count + 1:
        without = ours[1:] - theirs[1:]
        spread = float(np.square(without - without.mean()).sum())
        error = math.sqrt((count - 1) / count * spread)
    return Estimate(float(ours[0] - theirs[0]), error, count, len(policy) + len(reference))


def _distinct_without(
    completions: Sequence[Sequence[int]], prompts: Sequence[str], order: Sequence[str]
) -> Floats | None:
    """Return distinct-2 of all given prompts, and then without each of them: [1 + prompts].

    Return the first value alone if a prompt has all bigrams, and None if there is no bigram.
    """
    owners: dict[tuple[int, int], set[str]] = {}
    bigrams = dict.fromkeys(order, 0)
    for ids, prompt in zip(completions, prompts, strict=True):
        if prompt in bigrams:
            found = _bigrams(ids)
            bigrams[prompt] += len(found)
            for bigram in found:
                owners.setdefault(bigram, set()).add(prompt)
    alone = Counter(next(iter(some)) for some in owners.values() if len(some) == 1)
    distinct = np.array([len(owners), *(len(owners) - alone[p] for p in order)], dtype=np.float64)
    total = sum(bigrams.values())
    left = np.array([total, *(total - bigrams[p] for p in order)], dtype=np.float64)
    if not left.all():
        distinct, left = distinct[:1], left[:1]
    return distinct / left if total else None


def _repeats(completions: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """Return the number of repeated bigrams and of all bigrams of each completion."""
    found = [_bigrams(ids) for ids in completions]
    repeats = [float(len(bigrams) - len(set(bigrams))) for bigrams in found]
    return repeats, [float(len(bigrams)) for bigrams in found]


def _sums_of_shared(
    values: Sequence[float], sizes: Sequence[float], prompts: Sequence[str], shared: Sequence[str]
) -> Floats:
    """Return sums of values and sizes of each shared prompt, in their order: [prompts, 2]."""
    found = {prompt: [0.0, 0.0] for prompt in shared}
    for value, size, prompt in zip(values, sizes, prompts, strict=True):
        if prompt in found:
            found[prompt][0] += value
            found[prompt][1] += size
    return np.array(list(found.values())).reshape(-1, 2)


def _difference(
    first: tuple[Sequence[float], Sequence[str]],
    second: tuple[Sequence[float], Sequence[str]],
    prompts: set[str],
) -> Estimate:
    """Subtract the mean of one set of values from another's; only the given prompts count."""
    ours, first_mean, first_count = _influence(*first, prompts)
    theirs, second_mean, second_count = _influence(*second, prompts)
    return Estimate(
        first_mean - second_mean,
        _root_of_sum(ours - theirs),
        len(prompts),
        first_count + second_count,
    )


def _share_below(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return for each value the share of the others below it, with ties as half."""
    ordered = np.sort(np.array(others))
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return (below / (2 * len(ordered))).tolist()


def _bigrams(ids: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(ids))


def _by_prompt(values: Sequence[float], prompts: Sequence[str]) -> dict[str, list[float]]:
    grouped: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        grouped.setdefault(prompt, []).append(value)
    return grouped


def _sums_by_prompt(
    numerators: Sequence[float], denominators: Sequence[float], prompts: Sequence[str]
) -> tuple[Floats, Floats, int]:
    """Return sums of numerators and denominators per prompt, in order of first appearance."""
    above, below = _by_prompt(numerators, prompts), _by_prompt(denominators, prompts)
    sums = np.array([math.fsum(values) for values in above.values()])
    sizes = np.array([math.fsum(values) for values in below.values()])
    return sums, sizes, len(above)


def _influence(
    values: Sequence[float], prompts: Sequence[str], shared: set[str]
) -> tuple[Floats, float, int]:
    """Return what each shared prompt, sorted, adds to the mean; the mean; its observations."""
    grouped = _by_prompt(values, prompts)
    kept = [grouped.get(prompt, []) for prompt in sorted(shared)]
    sums = np.array([math.fsum(group) for group in kept])
    sizes = np.array([float(len(group)) for group in kept])
    total = math.fsum(sizes)
    mean = math.fsum(sums) / total
    return (sums - mean * sizes) / total, mean, int(total)


def _wilson(mean: float, standard_error: float, prompts: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, for the number of draws that its error implies.

    With z = 1.96 and n = m (1 - m) / SE^2, the number of independent 0/1 draws that would have this
    standard error (Wilson 1927; clusters as in Korn and Graubard 1998, without their t):

        ( m + z^2/2n  -+  z sqrt( m (1-m)/n + z^2/4n^2 ) ) / ( 1 + z^2/n )

    A share of exactly 0 or 1 has a standard error of 0, which carries no information. In this case
    n is the number of prompts, as if the completions of a prompt always agreed.
    """
    variance = max(0.0, mean * (1 - mean))
    if standard_error == 0 and variance > 0:  # every prompt has exactly this share
        return mean, mean
    draws = variance / standard_error**2 if standard_error > 0 and variance > 0 else prompts
    ratio = Z_95**2 / draws
    centre = (mean + ratio / 2) / (1 + ratio)
    half = Z_95 * math.sqrt(variance / draws + ratio / (4 * draws)) / (1 + ratio)
    return max(0.0, centre - half), min(1.0, centre + half)


def _root_of_sum(residuals: Floats) -> float | None:
    count = len(residuals)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * float(np.square(residuals).sum()))
