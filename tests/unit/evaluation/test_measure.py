"""The content of metrics.json."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from evaluation_samples import make_config, make_logps, make_metrics, make_samples

from raydpo.config.job import LabelingConfig, RewardConfig, SamplingConfig
from raydpo.core.errors import DataError, NumericsError
from raydpo.evaluation.caveats import sampling_caveats
from raydpo.evaluation.measure import measure, score_unit
from raydpo.evaluation.report import number_lines
from raydpo.evaluation.samples import HeldoutJudgements, HeldoutPairs, ScoredCompletions


def test_metrics_are_those_of_the_samples():
    values = make_metrics()
    reference, policy = make_samples(0.4, seed=0), make_samples(0.7, seed=1)
    lengths = [len(s.completion_ids) for s in policy]
    assert values["reference"]["score"]["mean"] == pytest.approx(fmean(s.score for s in reference))
    assert values["policy"]["score"]["mean"] == pytest.approx(fmean(s.score for s in policy))
    assert values["policy"]["completion_tokens"]["mean"] == pytest.approx(fmean(lengths))
    assert values["policy"]["finished_share"]["mean"] == 0.5
    assert values["kl"]["nats_per_token"]["mean"] == pytest.approx(0.125)
    assert values["kl"]["nats_per_completion"]["mean"] == pytest.approx(0.125 * fmean(lengths))
    assert values["difference"]["score"]["z"] > 5


def test_beta_scales_margins_and_the_price_of_the_kl():
    values = make_metrics()
    heldout, kl = values["heldout"], values["kl"]
    assert heldout["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert heldout["logratio_margin_nats"]["mean"] == pytest.approx(4 / 3)
    assert heldout["reward_margin"]["mean"] == pytest.approx(0.25 * 4 / 3)
    assert kl["beta_times_kl"] == pytest.approx(0.25 * kl["nats_per_completion"]["mean"])


def test_without_held_out_pairs_there_is_no_accuracy():
    config = make_config()
    assert config.evaluation is not None
    samples = make_samples(0.5, seed=0)
    values = measure(
        config,
        config.evaluation,
        samples,
        samples,
        make_logps(samples, 0.0),
        HeldoutPairs([], [], []),
    )
    assert values["heldout"] is None


def test_unpaired_data_is_held_out_as_judged_completions():
    config = make_config()
    assert config.evaluation is not None
    samples, logps = make_samples(0.5, seed=0), make_logps(make_samples(0.5, seed=0), 0.0)
    judged = HeldoutJudgements(
        ["q", "r", "s", "s"], [2.0, 4.0, 1.0, 3.0], [True, True, False, False]
    )
    none = HeldoutPairs([], [], [])
    parts = config, config.evaluation, samples, samples, logps, none
    values = measure(*parts, judged)
    assert values["heldout"] is None
    found = values["heldout_judged"]
    assert (found["desirable"], found["undesirable"]) == (2, 2)
    assert found["separation"]["mean"] == 0.75
    assert found["logratio_difference_nats"]["mean"] == 1.0
    assert found["reward_difference"]["mean"] == 0.25
    lines = [line.name for line in number_lines(values)]
    assert "held-out completions told apart (2 desirable, 2 undesirable)" in lines
    only_good = HeldoutJudgements(["q"], [2.0], [True])
    assert measure(*parts, only_good)["heldout_judged"] is None
    broken = HeldoutJudgements(["q"], [float("nan")], [True])
    with pytest.raises(NumericsError, match="not finite"):
        measure(*parts, broken)


def test_policy_that_is_the_reference_differs_in_nothing():
    config = make_config()
    assert config.evaluation is not None
    samples = make_samples(0.5, seed=0)
    values = measure(
        config, config.evaluation, samples, samples, make_logps(samples, 0.0), pairs=None
    )
    assert values["kl"]["nats_per_completion"]["mean"] == 0.0
    assert values["win_rate"]["mean"] == 0.5
    assert values["difference"]["score"]["mean"] == 0.0
    assert values["difference"]["score"]["z"] is None


@pytest.mark.parametrize(
    ("judge", "inside"),
    [
        ({"classifier": "c", "label": "x", "output": "probability"}, True),
        ([{"classifier": "c", "output": "probability", "weight": 0.5, "name": "judge"}], True),
        ({"classifier": "c", "label": "x", "output": "log_odds"}, False),
        ({"function": "a:b"}, False),
    ],
)
def test_intervals_of_probabilities_and_shares_stay_between_0_and_1(judge: Any, inside: bool):
    judges = judge if isinstance(judge, list) else [judge]
    config = make_config(judge=[{**judge, "name": "judge"} for judge in judges])
    assert config.evaluation is not None
    ends = [0.999] * 15 + [0.2]
    samples = [
        replace(sample, score=score, values={"judge": score}, finish_reason="stop")
        for sample, score in zip(make_samples(0.5, seed=0), ends, strict=True)
    ]
    pairs = HeldoutPairs(["q", "r", "s"], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    values = measure(config, config.evaluation, samples, samples, make_logps(samples, 0.1), pairs)
    shares = [values["policy"][name] for name in ("finished_share", "repetition_share")]
    shares += [values["win_rate"], values["heldout"]["accuracy"]]
    assert all(0 <= end <= 1 for share in shares for end in share["ci95"])
    for score in (values["policy"]["score"], values["policy"]["score_by_judge"]["judge"]):
        assert (score["ci95"][1] <= 1) is inside


def test_metrics_hold_neither_nan_nor_text():
    written = json.dumps(make_metrics(), allow_nan=False)
    assert "The film was" not in written
    assert " fine" not in written


def test_one_prompt_is_enough_and_its_errors_are_null():
    config = make_config()
    assert config.evaluation is not None
    samples = make_samples(0.5, seed=0)[:2]
    values = measure(
        config, config.evaluation, samples, samples, make_logps(samples, 0.1), pairs=None
    )
    assert values["policy"]["score"]["standard_error"] is None
    json.dumps(values, allow_nan=False)


def test_infinite_log_probs_are_an_error():
    config = make_config()
    assert config.evaluation is not None
    samples = make_samples(0.5, seed=0)
    logps = make_logps(samples, float("inf"))
    with pytest.raises(NumericsError, match=r"16 of 16 log-ratios are not finite.*'p0'"):
        measure(config, config.evaluation, samples, samples, logps, pairs=None)


def test_nothing_left_to_compare_is_an_error():
    config = make_config()
    assert config.evaluation is not None
    samples = make_samples(0.5, seed=0)
    others = [replace(sample, prompt_id=f"other {sample.prompt_id}") for sample in samples]
    with pytest.raises(DataError, match="left to compare"):
        measure(config, config.evaluation, others, samples, make_logps(samples, 0.0), None)
    with pytest.raises(DataError, match="left to compare"):
        measure(
            config, config.evaluation, samples, samples, ScoredCompletions([], [], []), pairs=None
        )


def test_restricted_sampling_is_named():
    evaluation = make_config(temperature=0.7).evaluation
    assert evaluation is not None
    caveats = sampling_caveats(
        evaluation, SamplingConfig(top_p=0.9, top_k=5, min_completion_tokens=1)
    )
    assert caveats == ["temperature 0.7", "top_p 0.9", "top_k 5", "min_completion_tokens 1"]
    plain = make_config().evaluation
    assert plain is not None
    assert sampling_caveats(plain, SamplingConfig()) == []


def test_unit_of_the_score_is_the_judges():
    def unit(judge: object) -> str:
        evaluation = make_config(judge=judge).evaluation
        assert evaluation is not None
        return score_unit(evaluation.judge)

    assert unit({"classifier": "c", "label": "positive", "output": "probability"}) == (
        "probability of “positive”"
    )
    assert unit({"function": "a.b:c", "weight": 2.0}) == "2 × reward"
    assert unit([{"function": "a:b"}, {"classifier": "c"}]) == "weighted sum of judges"


@pytest.mark.parametrize(("reward", "same"), [("judge", True), ("another", False)])
def test_a_judge_that_made_the_labels_is_known(reward: str, same: bool):
    config = make_config().model_copy(
        update={"labeling": LabelingConfig(reward=(RewardConfig(classifier=reward),))}
    )
    assert config.evaluation is not None
    samples = make_samples(0.5, seed=0)
    logps = make_logps(samples, 0.0)
    values = measure(config, config.evaluation, samples, samples, logps, pairs=None)
    assert values["judge"]["made_the_labels"] is same


def test_the_win_rate_at_equal_length_is_over_the_same_comparisons():
    values = make_metrics()
    controlled, plain = values["length_controlled_win_rate"], values["win_rate"]
    assert (controlled["prompts"], controlled["observations"]) == (8, plain["observations"])
    low, high = controlled["ci95"]
    assert low < controlled["mean"] < high
    names = [line.name for line in number_lines(values)]
    assert (
        names.index("win rate at equal length") == names.index("win rate against the reference") + 1
    )


def test_the_entropy_is_minus_the_log_prob_of_a_token_and_its_difference_is_paired():
    config = make_config()
    assert config.evaluation is not None
    reference = [replace(s, logp=-2.0 * len(s.completion_ids)) for s in make_samples(0.4, seed=0)]
    policy = [replace(s, logp=-1.5 * len(s.completion_ids)) for s in make_samples(0.7, seed=1)]
    logps = make_logps(policy, 0.1)
    values = measure(config, config.evaluation, reference, policy, logps, None)
    assert values["reference"]["entropy_nats_per_token"]["mean"] == pytest.approx(2.0)
    difference = values["difference"]["entropy_nats_per_token"]
    assert difference["mean"] == pytest.approx(-0.5)
    assert difference["standard_error"] == pytest.approx(0.0, abs=1e-12)
    shown = next(line for line in number_lines(values) if line.name == "entropy (nats per token)")
    assert (shown.reference.value, shown.policy.value) == ("2.00", "1.50")
    same = measure(
        config, config.evaluation, reference, reference, make_logps(reference, 0.0), None
    )
    assert same["difference"]["entropy_nats_per_token"]["mean"] == 0.0
    assert make_metrics()["difference"]["entropy_nats_per_token"] is None
