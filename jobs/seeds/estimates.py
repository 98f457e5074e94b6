"""A mean whose standard error is clustered by prompt and by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from raydpo.evaluation.metrics import Estimate, clustered_mean


def two_way_mean(values: Sequence[float], prompts: Sequence[str], seeds: Sequence[str]) -> Estimate:
    """The mean, with a standard error clustered by prompt and by seed.

    Cameron, Gelbach and Miller (2011), "Robust inference with multiway clustering", eq. 2.11:

        SE^2 = SE_prompt^2 + SE_seed^2 - SE_prompt-and-seed^2

    and never less than SE_prompt^2. With three seeds the second term has two degrees of freedom.

    Args:
        values: [n].
        prompts: [n], the prompt of each value; the same name in two seeds is the same prompt.
        seeds: [n], the seed of each value.
    """
    by_prompt = clustered_mean(values, prompts)
    by_seed = clustered_mean(values, seeds)
    both = clustered_mean(values, [f"{s} {p}" for s, p in zip(seeds, prompts, strict=True)])
    if None in (by_prompt.standard_error, by_seed.standard_error, both.standard_error):
        return by_prompt
    of_prompt, of_seed, of_both = (e.standard_error or 0.0 for e in (by_prompt, by_seed, both))
    more = max(0.0, of_seed**2 - of_both**2)
    return replace(by_prompt, standard_error=math.sqrt(of_prompt**2 + more))
