"""The verdict on a policy by its samples: what is flagged, and what is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from evaluation_samples import make_config, make_logps

from raydpo.config.job import LabelingConfig, RewardConfig
from raydpo.evaluation.flags import examine
from raydpo.evaluation.measure import measure
from raydpo.evaluation.metrics import distinct_2, distinct_2_difference, repetition_difference
from raydpo.evaluation.samples import Sample

REPETITION, DISTINCT, LENGTH = "repetition", "distinct-2", "completion length"
ENTROPY = "entropy"
EQUAL = "win rate at equal length"
LIMIT, KL, JUDGE = "share at the token limit", "KL per token", "independent judge"


def samples(score: float, seed: int, tokens: int = 20, vocabulary: int = 90) -> list[Sample]:
    """Four completions of each of twenty prompts, of about so many random tokens."""
    rng = np.random.default_rng(seed)
    return [
        Sample(
            prompt_id=f"p{prompt}",
            candidate=candidate,
            prompt="The film was",
            completion=" fine",
            completion_ids=tuple(
                int(i) for i in rng.integers(0, vocabulary, tokens + int(rng.integers(-2, 3)))
            ),
            finish_reason="stop",
            score=float(score + rng.normal(0, 0.1)),
            values={"judge": 0.0},
        )
        for prompt in range(20)
        for candidate in range(4)
    ]


def surprised(some: list[Sample], nats: float) -> list[Sample]:
    """The samples, each of whose tokens had a probability of e^-nats."""
    return [replace(s, logp=-nats * len(s.completion_ids)) for s in some]


def said(
    policy: list[Sample],
    reference: list[Sample] | None = None,
    kl: float = 0.1,
    rewarded_by: str = "another",
    counts: dict[str, dict[str, int]] | None = None,
) -> dict[str, Any]:
    reward = LabelingConfig(reward=(RewardConfig(classifier=rewarded_by),))
    config = make_config().model_copy(update={"labeling": reward})
    assert config.evaluation is not None
    theirs = samples(0.4, seed=0) if reference is None else reference
    values = measure(config, config.evaluation, theirs, policy, make_logps(policy, kl), None)
    return examine(values, theirs, policy, counts or {})


def flagged(found: dict[str, Any]) -> list[str]:
    return [check["name"] for check in found["checks"] if check["flagged"]]


def looped(sample: Sample, start: int) -> Sample:
    """The sample, whose tokens from `start` on repeat the first four."""
    ids = sample.completion_ids
    again = tuple(ids[place % 4] for place in range(start, len(ids)))
    return replace(sample, completion_ids=ids[:start] + again)


def test_a_clean_gain_has_no_objection():
    found = said(samples(0.7, seed=1))
    assert found["verdict"].startswith(
        "Training helped: the judge score on 20 held-out prompts rose by 0."
    )
    assert found["verdict"].endswith(" Nothing that was checked speaks against the policy.")
    assert found["speaks_against_it"] == [] == flagged(found) == found["notes"]
    json.dumps(found, allow_nan=False)


def test_a_policy_that_repeats_itself_for_a_higher_score_gets_reservations():
    found = said([looped(s, start=12) for s in samples(0.9, seed=1)])
    assert found["verdict"].startswith("Training helped, with reservations: ")
    assert "Against it: the policy repeats itself: repetition " in found["verdict"]
    check = next(check for check in found["checks"] if check["name"] == REPETITION)
    assert check["policy"] > check["reference"] + 0.1
    low, high = check["difference"]["ci95"]
    assert low < check["policy"] - check["reference"] < high
    assert f"{100 * low:.1f}, {100 * high:.1f}] points" in check["text"]


def test_a_repetition_that_doubled_is_flagged_although_it_rose_by_few_points():
    def some(score: float, seed: int, looping: int) -> list[Sample]:
        every = samples(score, seed, vocabulary=4000)
        return [looped(s, start=16) if s.candidate < looping else s for s in every]

    found = said(some(0.7, seed=1, looping=2), some(0.4, seed=0, looping=1))
    check = next(check for check in found["checks"] if check["name"] == REPETITION)
    assert 0.02 < check["difference"]["mean"] < 0.1
    assert flagged(found) == [REPETITION]


def test_no_gain_says_so_and_is_an_objection():
    found = said(samples(0.4, seed=1))
    assert found["verdict"].startswith("Training showed no effect: ")
    assert (
        "Against it: the judge score changed by less than two standard errors" in (found["verdict"])
    )
    assert flagged(found) == ["judge score"]


def test_a_lower_score_is_harm():
    found = said(samples(0.1, seed=1))
    assert found["verdict"].startswith("Training did harm: the judge score on 20 ")
    fell, low, high = (float(x) for x in re.findall(r"0\.\d\d\d", found["verdict"])[:3])
    assert "fell by 0." in found["verdict"]
    assert low < fell < high
    assert flagged(found) == ["judge score"]


def test_one_prompt_is_too_few_to_tell():
    found = said(samples(0.9, seed=1)[:4], samples(0.4, seed=0)[:4])
    assert found["verdict"].startswith("Training showed no effect: ")
    assert "too few prompts" in found["speaks_against_it"][0]
    json.dumps(found, allow_nan=False)


def test_the_policy_that_is_the_reference_did_not_move():
    same = samples(0.4, seed=0)
    found = said(same, same, kl=0.0)
    assert "prompts did not move." in found["verdict"]
    assert flagged(found) == ["judge score"]


@pytest.mark.parametrize(
    ("name", "policy", "others"),
    [
        # Each completion loops, and no other one is like it.
        (REPETITION, [looped(s, start=16) for s in samples(0.7, seed=1, vocabulary=4000)], {}),
        # All prompts get the same four texts; none repeats a bigram.
        (DISTINCT, [replace(s, completion_ids=tuple(range(20 * s.candidate, 20 * s.candidate + 20)))
                    for s in samples(0.7, seed=1)], {}),
        # Some are as long as the reference's: at equal length the policy wins as well.
        (LENGTH, [short if long.candidate == 0 else long for short, long in zip(
            samples(0.7, seed=1), samples(0.7, seed=1, tokens=28, vocabulary=4000), strict=True)],
         {}),
        (LIMIT, [replace(s, finish_reason="length" if s.candidate == 0 else "stop")
                 for s in samples(0.7, seed=1)], {}),
        (KL, samples(0.7, seed=1), {"kl": 0.31}),
        (JUDGE, samples(0.7, seed=1), {"rewarded_by": "judge"}),
    ],
)  # fmt: skip
def test_each_flag_is_raised_by_its_own_fault_alone(
    name: str, policy: list[Sample], others: dict[str, Any]
):
    found = said(policy, **others)
    assert flagged(found) == [name]
    assert found["verdict"].startswith("Training helped, with reservations: ")
    assert len(found["speaks_against_it"]) == 1


@pytest.mark.parametrize(
    ("policy", "others"),
    [
        (samples(0.7, seed=1, tokens=22), {}),
        # One completion of eighty: within chance, and below the limit.
        ([replace(s, finish_reason="length" if i == 0 else "stop")
          for i, s in enumerate(samples(0.7, seed=1))], {}),
        (samples(0.7, seed=1), {"kl": 0.29}),
    ],
)  # fmt: skip
def test_below_their_limits_nothing_is_flagged(policy: list[Sample], others: dict[str, Any]):
    assert flagged(said(policy, **others)) == []


def test_wins_that_length_alone_explains_are_flagged():
    def by_length(seed: int, tokens: int) -> list[Sample]:
        some = [
            long if long.candidate % 2 else short
            for short, long in zip(samples(0.0, seed), samples(0.0, seed, tokens), strict=True)
        ]
        return [replace(s, score=s.score + 0.1 * len(s.completion_ids)) for s in some]

    found = said(by_length(1, tokens=24), by_length(0, tokens=20))
    assert EQUAL in flagged(found)
    check = next(check for check in found["checks"] if check["name"] == EQUAL)
    assert check["text"].startswith("at equal length the wins are not beyond chance: win rate 6")
    assert check["policy"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("nats", "flags"), [(0.9, [ENTROPY]), (1.1, [])])
def test_a_policy_that_lost_half_of_its_entropy_is_flagged(nats: float, flags: list[str]):
    reference = surprised(samples(0.4, seed=0), 2.0)
    some = surprised(samples(0.7, seed=1), nats)
    policy = [replace(s, logp=(s.logp or 0.0) - 0.1 * (s.candidate - 1.5)) for s in some]
    found = said(policy, reference)
    assert flagged(found) == flags
    check = next(check for check in found["checks"] if check["name"] == ENTROPY)
    assert check["difference"]["mean"] == pytest.approx(nats - 2.0, abs=0.01)
    assert "nats per token (−" in check["text"]


def test_samplers_without_log_probs_have_no_entropy():
    some = samples(0.7, seed=1)
    half = [replace(s, logp=-1.0) if s.candidate else s for s in some]
    found = said(half, surprised(samples(0.4, seed=0), 2.0))
    assert ENTROPY not in {check["name"] for check in found["checks"]}


def test_stages_that_cut_texts_are_noted():
    counts = {"policy_samples": {"output": 100, "cut_at_max_tokens": 30}}
    assert said(samples(0.7, seed=1), counts=counts)["notes"] == [
        "Policy samples: 30% of the completions ran into the token limit, and have no end (30 of "
        "100): raise sampling.max_completion_tokens; a model that never ends needs its end token."
    ]


def test_the_jackknife_of_distinct_2_leaves_out_whole_prompts():
    ours, theirs = [(1, 2, 3), (1, 2, 4), (5, 6, 7)], [(1, 2, 1), (1, 2, 1), (5, 6, 8)]
    prompts = ["a", "b", "c"]

    def difference(kept: list[int]) -> float:
        sides = (distinct_2([side[i] for i in kept]) for side in (ours, theirs))
        first, second = sides
        assert first is not None
        assert second is not None
        return first - second

    found = distinct_2_difference(ours, prompts, theirs, prompts)
    without = np.array([difference(kept) for kept in ([1, 2], [0, 2], [0, 1])])
    assert found is not None
    assert found.mean == pytest.approx(difference([0, 1, 2]))
    assert found.standard_error == pytest.approx(np.sqrt(2 / 3 * np.var(without) * 3))


def test_the_difference_of_repetition_is_paired_by_prompt():
    ours, prompts = [(1, 2, 1, 2), (3, 4, 5, 6)], ["a", "b"]
    found = repetition_difference(ours, prompts, ours, prompts)
    assert found is not None
    assert (found.mean, found.standard_error) == (0.0, 0.0)
    more = repetition_difference(ours, prompts, [(1, 2, 3, 4), (3, 4, 5, 6)], prompts)
    assert more is not None
    # One of six bigrams repeats: prompt a adds (1 - 3/6)/6, and prompt b (0 - 3/6)/6.
    assert more.mean == pytest.approx(1 / 6)
    assert more.standard_error == pytest.approx(np.sqrt(2 * (2 * (0.5 / 6) ** 2)))
    assert repetition_difference([(1,)], ["a"], [(2,)], ["a"]) is None
