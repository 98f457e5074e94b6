"""Evaluate a policy between two rounds: its held-out reward, KL and length.

It takes held-out prompts, a policy, the original model and live engines, and returns a few numbers
and the tables behind them. The engine gave the policy's log-probs with its samples. They are the
model's own, whatever the sampling settings cut off. So only the original model scores anything. If
the settings cut the distribution, the mean is not an estimate of KL; `caveats.py` reports this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raydpo.config.job import Config, ModelConfig, RewardConfig
from raydpo.core.errors import NumericsError
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import read_rows
from raydpo.evaluation import metrics
from raydpo.evaluation.heldout import sample_heldout
from raydpo.evaluation.measure import are_shares, mean_score
from raydpo.evaluation.samples import (
    Sample,
    ScoredCompletions,
    collect_samples,
    groups_of_samples,
)
from raydpo.labeling.stage import all_judge, score_candidates
from raydpo.models.loading import weights_fingerprint
from raydpo.reference.agreement import sampler_tolerance
from raydpo.reference.stage import score_reference
from raydpo.sampling.pool import EnginePool
from raydpo.sampling.stage import WITHOUT_LOGPS

Json = dict[str, Any]


@dataclass(frozen=True)
class PolicyMeasures:
    """The results of one policy's held-out samples.

    Attributes:
        samples: the completions with their scores, to compare another policy with.
        values: `reward`, `completion_tokens` and `kl_nats_per_completion` as estimates with
            standard errors clustered by prompt; `finished_share`.
        logps: per-token log-probs of the completions under the policy and the original model.
        rewarded: the completions with the rewards that made the labels; None if these are not asked.
    """

    samples: list[Sample]
    values: Json
    logps: ScoredCompletions
    rewarded: list[Sample] | None


def measure_policy(
    *,
    config: Config,
    place: Place,
    prompts: Table,
    policy: ModelConfig,
    original: ModelConfig,
    pool: Callable[[], EnginePool] | None,
    sampled: Callable[[], None],
) -> PolicyMeasures:
    """Sample the policy on held-out prompts and measure what came out.

    The seeds of the samples depend on the prompts alone, so every round's policy draws with the
    same ones.

    Args:
        config: the job; its `evaluation` section is required.
        place: where the tables go.
        prompts: held-out prompts.
        policy: the policy to measure.
        original: the model that KL is measured from.
        pool: gives the engines if samples are missing; without it, engines start for them.
        sampled: called when the engines have nothing more to do here.

    Raises:
        EngineError: the original model sampled, but its log-probs differ from the engines'.
        NumericsError: the KL is not finite.
    """
    assert config.evaluation is not None
    samples = sample_heldout(config, place.inside("samples"), prompts, policy, pool)
    sampled()
    scores = score_candidates(place.inside("scores"), samples, config.evaluation.judge)
    rewarded = _rewarded(config, place.inside("rewards"), samples, scores)
    groups = groups_of_samples(place.inside("groups"), samples)
    original_logps = score_reference(
        place.inside("original-logps"),
        groups,
        original,
        config.reference,
        samples=samples if weights_fingerprint(policy) == weights_fingerprint(original) else None,
        tolerance=sampler_tolerance(original, config.sampling.engines),
    )
    policy_logps = None
    if samples.manifest["counts"].get(WITHOUT_LOGPS):
        own = place.inside("policy-logps")
        policy_logps = score_reference(own, groups, policy, config.reference)
    logps = _logps(samples, original_logps, policy_logps)
    judged = collect_samples(samples, scores, config.evaluation.judge)
    values = _values(judged, _kl(logps), config.evaluation.judge)
    return PolicyMeasures(judged, values, logps, rewarded)


def reward_difference(policy: PolicyMeasures, other: PolicyMeasures) -> Json:
    """Return one policy's mean judge score minus another's, paired by prompt, and its z."""
    difference = metrics.paired_difference(*_scores(policy.samples), *_scores(other.samples))
    return {**difference.as_json(), "z": difference.z}


def _rewarded(config: Config, place: Place, samples: Table, scores: Table) -> list[Sample] | None:
    """Return the samples with the rewards that made the labels, if the job has these asked."""
    rewards = config.rewards_evaluated
    if not rewards:
        return None
    judges = config.evaluation.judge if config.evaluation else ()
    known = all_judge(rewards, judges)
    values = scores if known else score_candidates(place, samples, rewards)
    return collect_samples(samples, values, rewards, config.combine_evaluated)


def _values(samples: list[Sample], kl: Json, judges: tuple[RewardConfig, ...]) -> Json:
    prompts = [sample.prompt_id for sample in samples]
    lengths = [float(len(sample.completion_ids)) for sample in samples]
    finished = [float(sample.finish_reason == "stop") for sample in samples]
    scores_of_samples = [sample.score for sample in samples]
    return {
        "reward": mean_score(scores_of_samples, prompts, are_shares(judges)).as_json(),
        "kl_nats_per_completion": kl,
        "completion_tokens": metrics.clustered_mean(lengths, prompts).as_json(),
        "finished_share": metrics.clustered_mean(finished, prompts).mean,
    }


def _logps(samples: Table, original_logps: Table, policy_logps: Table | None) -> ScoredCompletions:
    """Return the log-probs of the samples under the policy and under the original model.

    The policy's are the sampler's own, unless a sampler function gave none.
    """
    rows = list(read_rows(samples.folder, samples.manifest))
    prompts = [row["prompt_id"] for row in rows]
    if policy_logps is not None:
        policy = _token_logps(policy_logps)
    else:
        policy = [row["sampler_token_logps"] for row in rows]
    return ScoredCompletions(prompts, policy, _token_logps(original_logps))


def _kl(logps: ScoredCompletions) -> Json:
    """Return the mean of the policy's minus the original model's log-prob, in nats."""
    kl = metrics.kl_per_completion(logps.policy, logps.reference, logps.prompts)
    if not math.isfinite(kl.mean):
        raise NumericsError(
            f"KL(policy || original) on held-out samples is {kl.mean}",
            "both models give every sampled token a finite log-probability",
            "look at the training's metrics for a loss that exploded; lower the learning rate",
        )
    return kl.as_json()


def _token_logps(table: Table) -> list[list[float]]:
    """Log-probs of each completion, in the order of the samples."""
    rows = read_rows(table.folder, table.manifest)
    return [logps for row in rows for logps in row["reference_token_logps"]]


def _scores(samples: list[Sample]) -> tuple[list[float], list[str]]:
    return [sample.score for sample in samples], [sample.prompt_id for sample in samples]
