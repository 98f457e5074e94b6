"""Measure what the evaluation's samples get from the rewards that made the labels.

A policy can learn to please its training reward without becoming better: then this reward rises and
the judge's score does not (over-optimization: Gao, Schulman and Hilton 2023, arXiv:2210.10760). The
samples of both models, scored by the training rewards, give one JSON value for metrics.json. The
preferences give the distribution of the rewards that the labels were made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.config.job import Config, RewardConfig
from raydpo.config.labeling import CombineConfig
from raydpo.core.parts import Table
from raydpo.core.run import read_part
from raydpo.evaluation import metrics
from raydpo.evaluation.measure import are_shares, mean_score, score_unit
from raydpo.evaluation.samples import Sample, values_of

Json = dict[str, Any]
_Values = tuple[list[float], list[str]]


@dataclass(frozen=True)
class LabelRewards:
    """What the labels were made of.

    Args:
        rewards: the combined reward of each completion.
        margins: of each pair, the reward of chosen minus that of rejected.
    """

    rewards: list[float]
    margins: list[float]


def read_label_rewards(preferences: Table) -> LabelRewards | None:
    """Return the rewards and margins in a table of preferences; None if it has no reward."""
    found = LabelRewards([], [])
    if preferences.manifest.get("table") not in ("preferences", "sampled_preferences"):
        return None
    for index in range(preferences.manifest["parts"]):
        part = read_part(preferences.folder, preferences.manifest, index)
        for row in part.select(["rewards", "pairs"]).to_pylist():
            if row["rewards"] is not None:
                rewards = row["rewards"]
                found.rewards.extend(rewards)
                found.margins.extend(
                    rewards[pair["chosen"]] - rewards[pair["rejected"]] for pair in row["pairs"]
                )
    return found if found.rewards else None


def describe_labels(labels: LabelRewards | None) -> Json | None:
    """Return mean, standard deviation and quantiles of rewards and margins, for metrics.json."""
    if labels is None:
        return None
    return {
        "completions": _distribution(labels.rewards),
        "pairs": _distribution(labels.margins) if labels.margins else None,
        "pairs_with_equal_rewards": sum(margin == 0 for margin in labels.margins),
        "pairs_against_the_reward": sum(margin < 0 for margin in labels.margins),
    }


def training_reward(
    config: Config, reference: list[Sample] | None, policy: list[Sample] | None
) -> Json:
    """Compare the samples of both models by the rewards that made the labels.

    Args:
        config: the job.
        reference: completions of the reference; their scores are the training rewards'.
        policy: the same of the policy.

    Returns:
        `components`, one for each reward, and `sum`, with both models' means and the difference
        paired by prompt; or `missing_because`, in words.
    """
    rewards = config.rewards_evaluated
    shared = {s.prompt_id for s in reference or ()} & {s.prompt_id for s in policy or ()}
    if not rewards or reference is None or policy is None or not shared:
        empty = "the training rewards refused the samples of every prompt"
        reason = empty if rewards else _not_measured(config)
        return {"missing_because": reason, "components": [], "sum": None}
    return {
        "missing_because": None,
        "components": [
            _component(reward, *sides)
            for reward in rewards
            if (sides := _sides(reward, reference, policy)) is not None
        ],
        "sum": {
            "unit": reward_unit(rewards, config.combine_evaluated),
            **_compared(
                _scores(reference),
                _scores(policy),
                config.combine_evaluated.is_plain_sum and are_shares(rewards),
            ),
        },
    }


def reward_unit(rewards: tuple[RewardConfig, ...], combine: CombineConfig) -> str:
    """Return the meaning of the combined rewards in words, for a table or an axis."""
    plain = len(rewards) == 1 and combine.is_plain_sum
    return score_unit(rewards) if plain else combine.unit


def _not_measured(config: Config) -> str:
    labeling = config.labeling
    if labeling is None:
        return "the preferences are existing data, so no reward made the labels"
    if labeling.people is not None:
        return "people made the labels, and did not see these samples"
    if labeling.is_implicit:
        return "the policy itself made the labels, by its log-ratio to the reference: see the KL"
    return "evaluation.training_rewards is false"


def _sides(
    reward: RewardConfig, reference: list[Sample], policy: list[Sample]
) -> tuple[_Values, _Values] | None:
    """Return a reward's values of both models; None if it applies to no prompt of both."""
    theirs, ours = values_of(reference, reward.scorer), values_of(policy, reward.scorer)
    return (theirs, ours) if set(theirs[1]) & set(ours[1]) else None


def _component(reward: RewardConfig, reference: _Values, policy: _Values) -> Json:
    alone = (reward.model_copy(update={"weight": 1.0}),)
    return {
        "name": reward.scorer,
        "unit": score_unit(alone),
        "weight": reward.weight,
        **_compared(reference, policy, are_shares(alone)),
    }


def _compared(reference: _Values, policy: _Values, shares: bool) -> Json:
    difference = metrics.paired_difference(*policy, *reference)
    return {
        "reference": mean_score(*reference, shares).as_json(),
        "policy": mean_score(*policy, shares).as_json(),
        "difference": {**difference.as_json(), "z": difference.z},
    }


def _scores(samples: list[Sample]) -> _Values:
    return [sample.score for sample in samples], [sample.prompt_id for sample in samples]


def _distribution(values: list[float]) -> Json:
    quantiles = np.quantile(values, [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0])
    names = ("min", "q05", "q25", "median", "q75", "q95", "max")
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        **dict(zip(names, map(float, quantiles), strict=True)),
    }
