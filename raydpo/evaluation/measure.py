"""Compute the content of metrics.json: every number of the evaluation.

The joined samples, log-probs and pairs, and the configuration, give one JSON value. It has no
NaN, its keys are in reading order, and it contains no text of any prompt or completion.
"""

from __future__ import annotations

import math
from typing import Any, Final

from raydpo.config.job import Config, EvaluationConfig, RewardConfig, SamplingConfig
from raydpo.core.errors import DataError, NumericsError
from raydpo.evaluation import metrics
from raydpo.evaluation.caveats import sampling_caveats
from raydpo.evaluation.length_control import (
    Outcome,
    length_comparisons,
    length_controlled_win_rate,
)
from raydpo.evaluation.samples import (
    HeldoutJudgements,
    HeldoutPairs,
    Sample,
    ScoredCompletions,
    values_of,
)

Json = dict[str, Any]

#: Bootstrap resamples of the win rate at equal length.
RESAMPLES: Final = 1000


def measure(
    config: Config,
    evaluation: EvaluationConfig,
    reference: list[Sample],
    policy: list[Sample],
    logps: ScoredCompletions,
    pairs: HeldoutPairs | None,
    judged: HeldoutJudgements | None = None,
) -> Json:
    """Compute all numbers of the report.

    Held-out groups contain pairs, or in unpaired data completions judged one by one.

    Raises:
        DataError: no prompt has scored samples of both models, or no sample has log-probs.
        NumericsError: a log-ratio is not finite.
    """
    if not logps.prompts or not {s.prompt_id for s in reference} & {s.prompt_id for s in policy}:
        raise DataError(
            f"{len(reference)} reference samples, {len(policy)} policy samples and "
            f"{len(logps.prompts)} with log-probs are left to compare",
            "at least one held-out prompt has scored samples of both models",
            "read the reasons in the quarantine folders of the evaluation, or give more prompts",
        )
    _refuse_non_finite(logps, pairs, judged)
    beta = config.training.objective.kl_beta if config.training else None
    return {
        "judge": _judge(config, evaluation.judge),
        "reference": _model_values(reference, evaluation.judge),
        "policy": _model_values(policy, evaluation.judge),
        "difference": _differences(reference, policy),
        "win_rate": _win_rate(reference, policy).as_json(),
        "length_controlled_win_rate": _at_equal_length(reference, policy, config.seed),
        "kl": _kl(logps, evaluation, config.sampling, beta),
        "heldout": _heldout(pairs, beta) if pairs is not None and pairs.prompts else None,
        "heldout_judged": _judged(judged, beta) if judged is not None else None,
    }


def measure_reference(
    config: Config, evaluation: EvaluationConfig, reference: list[Sample]
) -> Json:
    """Compute the numbers of the reference alone.

    Raises:
        DataError: it has no judged sample.
    """
    if not reference:
        raise DataError(
            "no sample of the reference has a judge score",
            "at least one held-out prompt has judged samples",
            "read the reasons in the quarantine folders of the evaluation, or give more prompts",
        )
    return {
        "judge": _judge(config, evaluation.judge),
        "reference": _model_values(reference, evaluation.judge),
    }


def best_of_values(
    config: Config,
    evaluation: EvaluationConfig,
    rewards: tuple[RewardConfig, ...],
    models: dict[str, list[Json]],
) -> Json:
    """Return what metrics.json says about Best-of-N: `models` by name, a value for each N."""
    assert evaluation.best_of is not None
    return {
        "chosen_by": [reward.scorer for reward in rewards],
        "samples_per_prompt": evaluation.best_of.samples_per_prompt,
        "kl_of_cut_distribution": sampling_caveats(evaluation, config.sampling),
        "models": models,
    }


def score_unit(judges: tuple[RewardConfig, ...]) -> str:
    """Return the meaning of the judge score in words, for a table or an axis."""
    judge, *others = judges
    if others:
        return "weighted sum of judges"
    names = {"probability": "probability", "log_odds": "log-odds", "logit": "logit"}
    kind = names[judge.output] if judge.kind == "classifier" else "reward"
    named = f"{kind} of “{judge.label}”" if judge.label is not None else kind
    return named if judge.weight == 1 else f"{judge.weight:g} × {named}"


def are_shares(judges: tuple[RewardConfig, ...]) -> bool:
    """Return whether the judges' weighted sum lies in [0, 1]: probabilities, suitably weighted."""
    weights = [judge.weight for judge in judges]
    return all(map(_is_probability, judges)) and min(weights) >= 0 and sum(weights) <= 1


def mean_score(scores: list[float], prompts: list[str], shares: bool) -> metrics.Estimate:
    """Return the mean of judge scores; if `shares`, scores and their interval lie in [0, 1]."""
    estimate = metrics.clustered_mean(scores, prompts)
    return metrics.as_share(estimate) if shares else estimate


def _is_probability(judge: RewardConfig) -> bool:
    return judge.kind == "classifier" and judge.output == "probability"


def _judge(config: Config, judges: tuple[RewardConfig, ...]) -> Json:
    rewards = config.labeling.reward if config.labeling else ()
    labelled_by = {(reward.kind, reward.source) for reward in rewards}
    return {
        "scorers": [judge.scorer for judge in judges],
        "unit": score_unit(judges),
        "made_the_labels": any((j.kind, j.source) in labelled_by for j in judges),
    }


def _model_values(samples: list[Sample], judges: tuple[RewardConfig, ...]) -> Json:
    prompts = _prompts(samples)
    ids = [sample.completion_ids for sample in samples]
    ended = [float(sample.finish_reason == "stop") for sample in samples]
    repetition = metrics.repetition_share(ids, prompts)
    return {
        "score": mean_score(_scores(samples), prompts, are_shares(judges)).as_json(),
        "score_by_judge": {
            judge.scorer: mean_score(*found, _is_probability(judge)).as_json() if found[0] else None
            for judge in judges
            if (found := values_of(samples, judge.scorer))
        },
        "completion_tokens": metrics.clustered_mean(_lengths(samples), prompts).as_json(),
        "finished_share": metrics.as_share(metrics.clustered_mean(ended, prompts)).as_json(),
        "distinct_2": metrics.distinct_2(ids),
        "repetition_share": repetition.as_json() if repetition else None,
        "entropy_nats_per_token": _entropy(samples),
    }


def _entropy(samples: list[Sample]) -> Json | None:
    """Estimate the entropy of a token from the log-probs of the model's own samples."""
    if (sums := _surprises(samples)) is None:
        return None
    return metrics.clustered_ratio(sums, _lengths(samples), _prompts(samples)).as_json()


def _entropy_difference(reference: list[Sample], policy: list[Sample]) -> Json | None:
    ours, theirs = _surprises(policy), _surprises(reference)
    if ours is None or theirs is None:
        return None
    found = metrics.difference_of_ratios(
        ours, _lengths(policy), _prompts(policy), theirs, _lengths(reference), _prompts(reference)
    )
    return None if found is None else {**found.as_json(), "z": found.z}


def _surprises(samples: list[Sample]) -> list[float] | None:
    """Return minus the log-prob of each completion, in nats; None if one is unknown."""
    found = [-sample.logp for sample in samples if sample.logp is not None]
    return found if found and len(found) == len(samples) else None


def _differences(reference: list[Sample], policy: list[Sample]) -> Json:
    ours, theirs = _prompts(policy), _prompts(reference)
    score = metrics.paired_difference(_scores(policy), ours, _scores(reference), theirs)
    tokens = metrics.paired_difference(_lengths(policy), ours, _lengths(reference), theirs)
    return {
        "score": {**score.as_json(), "z": score.z},
        "completion_tokens": {**tokens.as_json(), "z": tokens.z},
        "entropy_nats_per_token": _entropy_difference(reference, policy),
    }


def _win_rate(reference: list[Sample], policy: list[Sample]) -> metrics.Estimate:
    return metrics.win_rate(
        _scores(policy), _prompts(policy), _scores(reference), _prompts(reference)
    )


def _at_equal_length(reference: list[Sample], policy: list[Sample], seed: int) -> Json:
    shared = sorted(set(_prompts(policy)) & set(_prompts(reference)))
    found = length_comparisons(outcomes(policy), outcomes(reference), shared)
    return length_controlled_win_rate(found, RESAMPLES, seed)


def outcomes(samples: list[Sample]) -> Outcome:
    """Return scores, lengths in tokens and prompts of completions; lists of n."""
    return _scores(samples), [len(s.completion_ids) for s in samples], _prompts(samples)


def _kl(
    logps: ScoredCompletions,
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
    beta: float | None,
) -> Json:
    lists = logps.policy, logps.reference, logps.prompts
    completion = metrics.kl_per_completion(*lists)
    return {
        "nats_per_completion": completion.as_json(),
        "nats_per_token": metrics.kl_per_token(*lists).as_json(),
        "not_exact_because": sampling_caveats(evaluation, sampling),
        "beta": beta,
        "beta_times_kl": None if beta is None else beta * completion.mean,
    }


def _heldout(pairs: HeldoutPairs, beta: float | None) -> Json:
    lists = pairs.margins, pairs.weights, pairs.prompts
    margin = metrics.weighted_mean(*lists)
    rewards = [beta * value for value in pairs.margins] if beta is not None else None
    return {
        "accuracy": metrics.pair_accuracy(*lists).as_json(),
        "logratio_margin_nats": margin.as_json(),
        "reward_margin": metrics.weighted_mean(rewards, pairs.weights, pairs.prompts).as_json()
        if rewards
        else None,
    }


def _judged(judged: HeldoutJudgements, beta: float | None) -> Json | None:
    """Measure how far apart desirable and undesirable completions lie; None if a side is empty."""
    good, bad = judged.side(True), judged.side(False)
    if not good[0] or not bad[0]:
        return None
    scaled = [([beta * value for value in side[0]], side[1]) for side in (good, bad) if beta]
    return {
        "desirable": len(good[0]),
        "undesirable": len(bad[0]),
        "separation": metrics.separation(*good, *bad).as_json(),
        "logratio_difference_nats": metrics.difference_of_means(*good, *bad).as_json(),
        "reward_difference": metrics.difference_of_means(*scaled[0], *scaled[1]).as_json()
        if scaled
        else None,
    }


def _prompts(samples: list[Sample]) -> list[str]:
    return [sample.prompt_id for sample in samples]


def _scores(samples: list[Sample]) -> list[float]:
    return [sample.score for sample in samples]


def _lengths(samples: list[Sample]) -> list[float]:
    return [float(len(sample.completion_ids)) for sample in samples]


def _refuse_non_finite(
    logps: ScoredCompletions, pairs: HeldoutPairs | None, judged: HeldoutJudgements | None
) -> None:
    logratios = metrics.sequence_logratios(logps.policy, logps.reference)
    named = [*zip(logps.prompts, logratios, strict=True)]
    if pairs is not None:
        named += zip(pairs.prompts, pairs.margins, strict=True)
    if judged is not None:
        named += zip(judged.prompts, judged.logratios, strict=True)
    broken = [(prompt, value) for prompt, value in named if not math.isfinite(value)]
    if broken:
        raise NumericsError(
            f"{len(broken)} of {len(named)} log-ratios are not finite, the first is "
            f"{broken[0][1]} for prompt {broken[0][0]!r}",
            "policy and reference give every sampled token a finite log-probability",
            "look at the training's metrics for a loss that exploded; lower the learning rate",
        )
