"""The evaluation between two rounds: the held-out reward, the KL and the length of one policy.

What comes in: held-out prompts, a policy, the original model, engines that live already. What
goes out: a few numbers, and the tables behind them. The policy's log-probs are those that
the engine gave with its samples: the model's own, whatever is cut from what is sampled. So only
the original model scores anything. Of samples that are cut, their mean is no estimate of KL,
and `caveats.py` says so beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raydpo.agreement import sampler_tolerance
from raydpo.config import Config, ModelConfig, RewardConfig
from raydpo.errors import NumericsError
from raydpo.evaluation import metrics
from raydpo.evaluation.heldout import sample_heldout
from raydpo.evaluation.measure import are_shares, mean_score
from raydpo.evaluation.samples import Sample, collect_samples, groups_of_samples
from raydpo.labeling.stage import score_candidates
from raydpo.models import weights_fingerprint
from raydpo.parts import Table
from raydpo.reference.stage import score_reference
from raydpo.run import read_rows
from raydpo.sampling.pool import EnginePool
from raydpo.storage import Folder

Json = dict[str, Any]


@dataclass(frozen=True)
class PolicyMeasures:
    """What one policy's held-out samples show.

    Attributes:
        samples: the completions with their scores, to compare another policy with.
        values: `reward`, `completion_tokens` and `kl_nats_per_completion` as estimates with
            standard errors clustered by prompt; `finished_share`.
    """

    samples: list[Sample]
    values: Json


def measure_policy(
    *,
    config: Config,
    folder: Folder,
    prompts: Table,
    policy: ModelConfig,
    original: ModelConfig,
    pool: Callable[[], EnginePool],
    sampled: Callable[[], None],
    what: str,
) -> PolicyMeasures:
    """Sample the policy on held-out prompts and measure what came out.

    The seeds of the samples depend on the prompts alone: every round's policy draws with
    the same ones.

    Args:
        config: the job; its `evaluation` section is required.
        folder: where the tables go.
        prompts: held-out prompts.
        policy: what is measured.
        original: the model that KL is measured from.
        pool: gives the engines that sample; asked only if samples are missing.
        sampled: called when they have nothing more to do here.
        what: the stage and round, for the log.

    Raises:
        EngineError: the original model sampled, and the engines give other log-probs than it.
        NumericsError: the KL is not finite.
    """
    assert config.evaluation is not None
    limit = config.max_quarantined_fraction
    samples = sample_heldout(config, folder.child("samples"), prompts, policy, pool, what)
    sampled()
    scores = score_candidates(
        folder=folder.child("scores"),
        candidates=samples,
        rewards=config.evaluation.judge,
        what=what,
        max_quarantined_fraction=limit,
    )
    original_logps = score_reference(
        folder=folder.child("original-logps"),
        groups=groups_of_samples(folder.child("groups"), samples),
        model=original,
        settings=config.reference,
        what=what,
        max_quarantined_fraction=limit,
        samples=samples if weights_fingerprint(policy) == weights_fingerprint(original) else None,
        tolerance=sampler_tolerance(original, config.sampling.engines),
    )
    return _measures(samples, scores, original_logps, config.evaluation.judge)


def reward_difference(policy: PolicyMeasures, other: PolicyMeasures) -> Json:
    """Mean judge score of one policy minus that of another, paired by prompt, and its z."""
    difference = metrics.paired_difference(*_scores(policy.samples), *_scores(other.samples))
    return {**difference.as_json(), "z": difference.z}


def _measures(
    table: Table, scores: Table, original_logps: Table, judges: tuple[RewardConfig, ...]
) -> PolicyMeasures:
    samples = collect_samples(table, scores, judges)
    prompts = [sample.prompt_id for sample in samples]
    lengths = [float(len(sample.completion_ids)) for sample in samples]
    finished = [float(sample.finish_reason == "stop") for sample in samples]
    scores_of_samples = [sample.score for sample in samples]
    values = {
        "reward": mean_score(scores_of_samples, prompts, are_shares(judges)).as_json(),
        "kl_nats_per_completion": _kl(table, original_logps),
        "completion_tokens": metrics.clustered_mean(lengths, prompts).as_json(),
        "finished_share": metrics.clustered_mean(finished, prompts).mean,
    }
    return PolicyMeasures(samples, values)


def _kl(samples: Table, original_logps: Table) -> Json:
    """Mean over the samples of sampler's log-prob minus the original model's, in nats."""
    policy = [row["sampler_token_logps"] for row in read_rows(samples.folder, samples.manifest)]
    prompts = [row["prompt_id"] for row in read_rows(samples.folder, samples.manifest)]
    original = [
        logps
        for row in read_rows(original_logps.folder, original_logps.manifest)
        for logps in row["reference_token_logps"]
    ]
    kl = metrics.kl_per_completion(policy, original, prompts)
    if not math.isfinite(kl.mean):
        raise NumericsError(
            f"KL(policy || original) on held-out samples is {kl.mean}",
            "both models give every sampled token a finite log-probability",
            "look at the training's metrics for a loss that exploded; lower the learning rate",
        )
    return kl.as_json()


def _scores(samples: list[Sample]) -> tuple[list[float], list[str]]:
    return [sample.score for sample in samples], [sample.prompt_id for sample in samples]
