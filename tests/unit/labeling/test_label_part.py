"""Every candidate ends in a group, in the quarantine or in a count; rewards are weighted sums."""

from __future__ import annotations

import math

import pytest

from raydpo.config.job import PairsConfig
from raydpo.core.errors import DataError
from raydpo.core.tables import PREFERENCES, SAMPLED_PREFERENCES, table_from_rows
from raydpo.labeling.groups import refuse_zero_pairs, refuse_zero_samples
from raydpo.labeling.preferences import Labels, combined_rewards, label_part


def labels(weights=None, samples=False, **pairs) -> Labels:
    return Labels(
        PairsConfig(**pairs), weights or {"s": 1.0}, seed=0, round_index=0, samples=samples
    )


def scores_of(candidates, values, scorer="s"):
    return [
        {
            "prompt_id": row["prompt_id"],
            "candidate": row["candidate"],
            "scorer": scorer,
            "value": value,
            "rationale": None,
        }
        for row, value in zip(candidates, values, strict=True)
        if value is not None
    ]


def test_rewards_are_the_weighted_sum_of_the_scorers(make_candidate):
    candidates = [make_candidate("p", k) for k in range(2)]
    scores = scores_of(candidates, [1.0, 2.0], "a") + scores_of(candidates, [10.0, -10.0], "b")
    assert combined_rewards(scores, {"a": 2.0, "b": -0.5}) == {("p", 0): -3.0, ("p", 1): 9.0}


def test_a_candidate_that_lacks_a_scorer_has_no_reward(make_candidate):
    candidates = [make_candidate("p", k) for k in range(2)]
    scores = scores_of(candidates, [1.0, 2.0], "a") + scores_of(candidates, [None, 5.0], "b")
    assert combined_rewards(scores, {"a": 1.0, "b": 1.0}) == {("p", 1): 7.0}


def test_groups_are_rows_of_the_table_and_pairs_point_into_their_completions(make_candidate):
    candidates = [make_candidate(f"p{i}", k) for i in range(2) for k in range(3)]
    values = [0.1, 0.9, 0.5, 3.0, 2.0, 1.0]
    result = label_part(labels(builder="all_pairs"), candidates, scores_of(candidates, values))
    table_from_rows(result.rows, PREFERENCES)
    first, second = result.rows
    assert (first["group_id"], first["prompt_id"], first["prompt"]) == ("p0", "p0", "prompt p0:")
    assert first["completions"] == [[10, 3], [11, 3], [12, 3]]
    assert first["completion_texts"] == [f" completion {k}" for k in range(3)]
    assert (first["rewards"], second["rewards"]) == (values[:3], values[3:])
    for row in result.rows:
        assert len(row["pairs"]) == 3
        for pair in row["pairs"]:
            assert row["rewards"][pair["chosen"]] > row["rewards"][pair["rejected"]]
            assert pair["weight"] == 1.0
    assert result.counts["pairs"] == 6


def test_a_group_goes_on_without_a_candidate_that_has_no_score(make_candidate):
    candidates = [make_candidate("p", k) for k in range(3)]
    result = label_part(labels(), candidates, scores_of(candidates, [None, 1.0, 2.0]))
    (row,) = result.rows
    assert row["completions"] == [[11, 3], [12, 3]]
    (pair,) = row["pairs"]
    assert (pair["chosen"], pair["rejected"], pair["weight"]) == (1, 0, 1.0)
    assert pair["probability"] == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert result.counts["candidates_without_score"] == 1


def test_completions_without_tokens_are_quarantined(make_candidate):
    candidates = [
        make_candidate("p", 0, completion_ids=[]),
        *(make_candidate("p", k) for k in (1, 2)),
    ]
    result = label_part(labels(), candidates, scores_of(candidates, [9.0, 1.0, 2.0]))
    assert [(row["id"], row["reason"]) for row in result.quarantined] == [
        ("p/0", "the completion has no tokens")
    ]
    assert result.rows[0]["rewards"] == [1.0, 2.0]


def test_groups_without_pairs_are_dropped_and_counted(make_candidate):
    candidates = [make_candidate(f"p{i}", k) for i in range(3) for k in range(2)]
    result = label_part(
        labels(), candidates, scores_of(candidates, [1.0, 1.0, 1.0, 2.0, 3.0, None])
    )
    assert [row["group_id"] for row in result.rows] == ["p1"]
    assert result.counts["groups_without_pairs"] == 2
    assert result.counts["ties"] == 1


def test_for_samples_every_prompt_with_a_reward_stays_with_the_samplers_logps(make_candidate):
    candidates = [make_candidate(f"p{i}", k) for i in range(4) for k in range(2)]
    candidates[3]["sampler_token_logps"] = [-2.0, -3.0]
    values = [1.0, 1.0, 1.0, 2.0, 3.0, None, None, None]
    settings = labels(samples=True, weighting="group")
    result = label_part(settings, candidates, scores_of(candidates, values))
    table_from_rows(result.rows, SAMPLED_PREFERENCES)
    equal, other, alone = result.rows
    assert [row["group_id"] for row in result.rows] == ["p0", "p1", "p2"]
    assert [row["rewards"] for row in result.rows] == [[1.0, 1.0], [1.0, 2.0], [3.0]]
    assert [len(row["pairs"]) for row in result.rows] == [0, 1, 0]
    assert other["sampler_token_logps"] == [[-0.5, -0.25], [-2.0, -3.0]]
    assert len(equal["sampler_token_logps"]) == 2
    assert alone["sampler_token_logps"] == [[-0.5, -0.25]]
    assert result.counts["samples"] == 5
    assert result.counts["groups_with_equal_rewards"] == 2
    assert result.counts["groups_without_pairs"] == 1


def test_a_sample_without_the_samplers_logps_is_quarantined(make_candidate):
    candidates = [make_candidate("p", k) for k in range(3)]
    candidates[1]["sampler_token_logps"] = None
    result = label_part(labels(samples=True), candidates, scores_of(candidates, [1.0, 2.0, 3.0]))
    ((refused, reason),) = [(row["id"], row["reason"]) for row in result.quarantined]
    assert refused == "p/1"
    assert "the sampler gave no log-probs" in reason
    assert result.rows[0]["rewards"] == [1.0, 3.0]


def test_a_table_without_any_sample_is_refused(make_candidate, make_table):
    candidates = [make_candidate("p", k) for k in range(2)]
    result = label_part(labels(samples=True), candidates, [])
    table = make_table("sampled_preferences", [result.rows])
    table.manifest["counts"].update(result.counts)
    with pytest.raises(DataError, match="no completion with a reward at all"):
        refuse_zero_samples(table)
    assert not table.folder.exists("manifest.json")


@pytest.mark.parametrize("samples", [False, True])
def test_every_candidate_is_accounted_for(make_candidate, samples):
    candidates = [make_candidate(f"p{i}", k) for i in range(12) for k in range(4)]
    for row in candidates[::7]:
        row["completion_ids"] = []
    values = [None if i % 5 == 0 else float(i % 3) for i in range(48)]
    settings = labels(samples=samples, min_margin=0.5)
    result = label_part(settings, candidates, scores_of(candidates, values))
    in_groups = sum(len(row["completions"]) for row in result.rows)
    counts = result.counts
    assert in_groups > 0
    assert (
        in_groups
        + len(result.quarantined)
        + counts["candidates_without_score"]
        + counts["candidates_in_groups_without_pairs"]
    ) == 48
    assert len(result.rows) + counts["groups_without_pairs"] == 12


def test_identical_completions_are_counted(make_candidate):
    candidates = [make_candidate("p", k, completion_ids=[5]) for k in range(2)]
    result = label_part(labels(), candidates, scores_of(candidates, [1.0, 2.0]))
    assert result.rows == []
    assert result.counts["identical"] == 1


def test_zero_pairs_leave_no_finished_stage_and_say_why(make_candidate, make_table):
    candidates = [make_candidate(f"p{i}", k) for i in range(2) for k in range(2)]
    result = label_part(labels(), candidates, scores_of(candidates, [1.0] * 4))
    table = make_table("preferences", [result.rows])
    table.manifest["counts"].update(result.counts)
    with pytest.raises(DataError, match=r"(?s)no pair at all .*ties 2.*fix it"):
        refuse_zero_pairs(table, "fix it")
    assert not table.folder.exists("manifest.json")


def test_weights_caps_and_merged_candidates_reach_the_table_and_its_counts(make_candidate):
    ids = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [7, 8, 9], [10, 11, 12]]
    candidates = [make_candidate("p", k, completion_ids=ids[k]) for k in range(4)]
    scores = scores_of(candidates, [0.0, 9.0, 1.0, 3.0], "a")
    scores += scores_of(candidates, [0.0, 9.0, 1.0, 0.5], "b")
    of = labels(
        {"a": 1.0, "b": 1.0},
        builder="adjacent_ranks",
        weight_by="agreement",
        merge_similarity=0.5,
        max_per_prompt=9,
    )
    result = label_part(of, candidates, scores)
    [row] = result.rows
    assert [(p["chosen"], p["rejected"], p["weight"]) for p in row["pairs"]] == [
        (3, 2, 0.5),
        (2, 0, 1.0),
    ]
    assert (row["ranking"], row["rewards"]) == ([3, 2, 0], [0.0, 18.0, 2.0, 3.5])
    assert (result.counts["merged"], result.counts["above_max_per_prompt"]) == (1, 0)
