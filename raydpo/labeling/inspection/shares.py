"""Shares and means with intervals whose units are prompts.

Pairs of one prompt are not independent, so a standard error comes from sums by prompt (the
linearised ratio estimator of Cochran, Sampling Techniques, section 6.4). The interval of a share is
Wilson's (1927), with as many observations as would give that standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Half the width of a 95 % interval, in standard errors.
Z_95: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Share:
    """A share with its confidence interval.

    Attributes:
        value: in [0, 1].
        low: lower end of the interval.
        high: upper end.
        prompts: the number of prompts that it comes from.
        observations: the number of pairs or texts.
    """

    value: float
    low: float
    high: float
    prompts: int
    observations: int

    def as_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "value": self.value,
            "ci": [self.low, self.high],
            "prompts": self.prompts,
            "observations": self.observations,
        }


def z_of(comparisons: int, level: float = 0.05) -> float:
    """Return the z of two-sided intervals that all hold together (Bonferroni).

    Args:
        comparisons: the number of intervals.
        level: the probability that any of them misses.
    """
    return NormalDist().inv_cdf(1 - level / (2 * max(comparisons, 1)))


def wilson(value: float, observations: float, z: float = Z_95) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share; [0, 1] without observations."""
    if observations <= 0:
        return 0.0, 1.0
    z2 = z * z / observations
    middle = (value + z2 / 2) / (1 + z2)
    half = z / (1 + z2) * math.sqrt(value * (1 - value) / observations + z2 / (4 * observations))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_of(
    outcomes: NDArray[np.floating[Any]] | NDArray[np.bool_],
    prompts: NDArray[np.uint64],
    z: float = Z_95,
) -> Share | None:
    """Estimate a share over observations; None without any.

    Args:
        outcomes: [n], each 0 or 1, or 0.5 for a tie.
        prompts: [n], the key of each observation's prompt.
        z: half the width of the interval, in standard errors.
    """
    count = len(outcomes)
    if not count:
        return None
    _, where = np.unique(prompts, return_inverse=True)
    sums = np.bincount(where, outcomes.astype(np.float64)).astype(np.float64)
    sizes = np.bincount(where).astype(np.float64)
    value, clusters = float(sums.sum() / count), len(sums)
    return Share(value, *wilson(value, _effective(value, sums, sizes), z), clusters, count)


def _effective(value: float, sums: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Return how many independent observations would be as certain; at most as many as there are."""
    count, clusters = float(sizes.sum()), len(sums)
    if clusters < 2 or value in (0.0, 1.0):
        return float(clusters)
    residuals = sums - value * sizes
    variance = clusters / (clusters - 1) * float(residuals @ residuals) / count**2
    return min(count, value * (1 - value) / variance) if variance else float(clusters)
