"""Compare runs that were evaluated on the same prompts: bootstrap by prompt, swap test, Holm.

A run's values are summed by prompt, in one order of prompts for all runs. Prompts are the units:
each resample draws whole prompts, with all completions that every run has for them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from raydpo.evaluation.metrics import Floats, outcomes_by_prompt

#: Weights that are in memory at once.
_MOST_WEIGHTS: Final = 2_000_000
#: Differences that are equal but for rounding count as equal.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Clusters:
    """The sum of a run's values and their number, of each prompt; two arrays [prompts].

    Their ratio over all prompts is the mean over completions, as in `metrics.clustered_ratio`.
    """

    sums: Floats
    sizes: Floats

    @property
    def mean(self) -> float:
        """The mean over all values."""
        return math.fsum(self.sums) / math.fsum(self.sizes)


def clusters(values: Sequence[float], prompts: Sequence[str], order: Sequence[str]) -> Clusters:
    """Sum values by prompt, in the given order; values of other prompts are left out.

    Args:
        values: [n].
        prompts: [n], the prompt of each value.
        order: the prompts that count; each has a value.
    """
    place = {prompt: index for index, prompt in enumerate(order)}
    sums, sizes = np.zeros(len(order)), np.zeros(len(order))
    for value, prompt in zip(values, prompts, strict=True):
        if prompt in place:
            sums[place[prompt]] += value
            sizes[place[prompt]] += 1
    return Clusters(sums, sizes)


def win_clusters(
    first: Sequence[float],
    first_prompts: Sequence[str],
    second: Sequence[float],
    second_prompts: Sequence[str],
    order: Sequence[str],
) -> Clusters:
    """Sum by prompt how often the first run's completions outscore the second's; a tie is a half."""
    met = outcomes_by_prompt(first, first_prompts, second, second_prompts)
    wins, meetings = zip(*(met[prompt] for prompt in order), strict=True)
    return Clusters(np.array(wins), np.array(meetings))


def resampled_means(columns: Sequence[Clusters], resamples: int, seed: int) -> Floats:
    """Draw prompts with replacement, and return each column's mean in each resample.

    All columns share the draws, so the difference of two columns is paired by prompt (Efron and
    Tibshirani 1993, chapter 8; clusters are drawn whole).

    Args:
        columns: k of them, over the same prompts.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        float64 [resamples, k].
    """
    sums = np.stack([column.sums for column in columns], axis=1)
    sizes = np.stack([column.sizes for column in columns], axis=1)
    return np.concatenate([(w @ sums) / (w @ sizes) for w in draws(len(sums), resamples, seed)])


def percentile_interval(values: Floats) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of resampled values [resamples]."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def swap_p_value(first: Clusters, second: Clusters, resamples: int, seed: int) -> float:
    """Test whether two runs differ, by exchanging their completions of some prompts.

    If the two policies are the same, exchanging all their completions of a prompt changes nothing
    (Fisher 1935; Phipson and Smyth 2010 for the 1 that is added to both counts):

        p = (1 + #{|d*| >= |d|}) / (1 + resamples)

    With at most as many exchanges as resamples, all 2^prompts of them are made, and p is exact.

    Args:
        first: of one run.
        second: of the other one, over the same prompts.
        resamples: number of random exchanges.
        seed: of the exchanges.
    """
    prompts = len(first.sums)
    found = abs(first.mean - second.mean)
    limit = found - _ROUNDING * max(1.0, found)
    exact = prompts < 63 and 1 << prompts <= resamples
    swaps = _all_swaps(prompts) if exact else _random_swaps(prompts, resamples, seed)
    as_large = sum(int((np.abs(_exchanged(first, second, s)) >= limit).sum()) for s in swaps)
    return as_large / (1 << prompts) if exact else (1 + as_large) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons, in their order (Holm 1979).

    The smallest is multiplied by their number, the next one by one less, and none falls below the
    one before.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[int(index)] = largest
    return adjusted


def draws(prompts: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each resample draws each prompt: float64 [some resamples, prompts]."""
    generator = np.random.default_rng(seed)
    shares = np.full(prompts, 1 / prompts)
    for count in _chunks(prompts, resamples):
        yield generator.multinomial(prompts, shares, size=count).astype(np.float64)


def _random_swaps(prompts: int, resamples: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    for count in _chunks(prompts, resamples):
        yield generator.integers(0, 2, size=(count, prompts)).astype(np.float64)


def _all_swaps(prompts: int) -> Iterator[Floats]:
    every = itertools.product((0.0, 1.0), repeat=prompts)
    while some := list(itertools.islice(every, max(1, _MOST_WEIGHTS // prompts))):
        yield np.array(some)


def _chunks(prompts: int, resamples: int) -> Iterator[int]:
    most = max(1, _MOST_WEIGHTS // prompts)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)


def _exchanged(first: Clusters, second: Clusters, swaps: Floats) -> NDArray[np.float64]:
    """Return the difference of means for each row of exchanges: [rows]."""
    moved_sums, moved_sizes = (
        swaps @ (second.sums - first.sums),
        swaps @ (second.sizes - first.sizes),
    )
    ours = (first.sums.sum() + moved_sums) / (first.sizes.sum() + moved_sizes)
    theirs = (second.sums.sum() - moved_sums) / (second.sizes.sum() - moved_sizes)
    return ours - theirs
