"""Means over prompts and seeds, and paired differences between objectives.

Results of several seeds become an `Estimate`. The prompts of the model's seeds are the same 418, so
both prompts and seeds are clusters there. Each seed of a world has prompts of its own, and nothing
else that its prompts share, so prompts alone are clusters there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from noise.contenders import Result
from raydpo.evaluation.metrics import Estimate, clustered_mean
from seeds.estimates import two_way_mean

#: A result's values, and the prompt of each.
Values = Callable[[Result], tuple[list[float], list[str]]]


def right(result: Result) -> tuple[list[float], list[str]]:
    """Whether the policy orders each pair as the true rewards do."""
    return result.right, result.prompts


def missing(result: Result) -> tuple[list[float], list[str]]:
    """What the policy misses of the largest regularized reward, by prompt."""
    return result.missing, result.missing_prompts


def score(result: Result) -> tuple[list[float], list[str]]:
    """The judge's score of each sample."""
    return result.scores, result.score_prompts


def kl(result: Result) -> tuple[list[float], list[str]]:
    """The log-ratio of each sample, nats; its mean estimates KL(policy || reference)."""
    return result.kl, result.score_prompts


def mean(results: Sequence[Result], values: Values) -> Estimate:
    """The mean over the results of one objective at one rate, of several seeds."""
    return _over_seeds(results, [values(result)[0] for result in results], values)


def gain(results: Sequence[Result], baseline: Sequence[Result], values: Values) -> Estimate:
    """The mean difference from a baseline on the same pairs or samples of the same seeds."""
    others = {other.seed: values(other)[0] for other in baseline}
    pairs = [zip(values(r)[0], others[r.seed], strict=True) for r in results]
    return _over_seeds(results, [[ours - theirs for ours, theirs in p] for p in pairs], values)


def _over_seeds(results: Sequence[Result], values: Sequence[list[float]], of: Values) -> Estimate:
    flat = [value for own in values for value in own]
    prompts = [of(result)[1] for result in results]
    seeds = [str(r.seed) for r, own in zip(results, values, strict=True) for _ in own]
    if results[0].setting == "model":
        return two_way_mean(flat, [name for own in prompts for name in own], seeds)
    names = [f"{r.seed} {name}" for r, own in zip(results, prompts, strict=True) for name in own]
    return clustered_mean(flat, names)
