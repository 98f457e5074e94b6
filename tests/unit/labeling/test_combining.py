"""Rewards of several scorers become one as `labeling.combine` says; None has no part in it."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.config.job import LabelingConfig, PairsConfig
from raydpo.config.labeling import CombineConfig
from raydpo.core.tables import PREFERENCES, table_from_rows
from raydpo.labeling.combining import combine_values, combined_reward
from raydpo.labeling.preferences import Labels, label_part

WEIGHTS = {"a": 2.0, "b": -1.0}


def values(**by_prompt: list[tuple[float | None, float | None]]) -> dict[Any, Any]:
    return {
        (prompt, k): {"a": a, "b": b}
        for prompt, pairs in by_prompt.items()
        for k, (a, b) in enumerate(pairs)
    }


def rewards(found: dict[Any, Any], **combine: Any) -> tuple[dict[Any, float], dict[str, int]]:
    how = CombineConfig(**combine)
    combined = combine_values(found, WEIGHTS, how)
    return {k: combined_reward(terms, how) for k, terms in combined.terms.items()}, combined.counts


def test_the_sum_is_the_default_and_leaves_out_what_does_not_apply() -> None:
    found, counts = rewards(values(p=[(1.0, 3.0), (None, 3.0), (1.0, None)]))
    assert found == {("p", 0): -1.0, ("p", 1): -3.0, ("p", 2): 2.0}
    assert counts == {}


def test_a_candidate_that_lacks_a_scorer_has_no_reward_and_no_part_in_z_scores() -> None:
    some = values(p=[(1.0, 0.0), (3.0, 0.0), (500.0, 0.0)])
    del some["p", 2]["b"]
    found, _ = rewards(some, normalize="z_score")
    assert found == {("p", 0): -2.0, ("p", 1): 2.0}


def test_z_scores_are_those_of_the_candidates_of_a_prompt() -> None:
    a, b = [1.0, 2.0, 6.0], [10.0, 30.0, 20.0]
    other = [(100.0, 7.0), (300.0, 7.0)]
    found, counts = rewards(values(p=list(zip(a, b, strict=True)), q=other), normalize="z_score")
    for k in range(3):
        z = [(of[k] - statistics.mean(of)) / statistics.pstdev(of) for of in (a, b)]
        assert found["p", k] == pytest.approx(2 * z[0] - z[1], abs=1e-12)
    assert [found["q", k] for k in range(2)] == [-2.0, 2.0]
    assert counts == {"z_scores_of_equal_values": 1}, "the values of b for q"


def test_z_scores_leave_out_what_does_not_apply() -> None:
    found, counts = rewards(values(p=[(1.0, None), (3.0, None), (None, 5.0)]), normalize="z_score")
    assert found == {("p", 0): -2.0, ("p", 1): 2.0, ("p", 2): 0.0}
    assert counts == {"z_scores_of_equal_values": 1}


def test_values_are_clipped_before_their_weight_and_counted() -> None:
    found, counts = rewards(values(p=[(9.0, -9.0), (0.5, None), (-3.0, 1.0)]), clip=(-1.0, 2.0))
    assert found == {("p", 0): 2 * 2.0 + 1.0, ("p", 1): 1.0, ("p", 2): 2 * -1.0 - 1.0}
    assert counts == {"clipped_values": 3}


def test_z_scores_are_clipped_as_z_scores() -> None:
    many = values(p=[(0.0, 0.0)] * 9 + [(100.0, 0.0)])
    found, counts = rewards(many, normalize="z_score", clip=(-1.0, 1.0))
    assert found["p", 9] == 2.0
    assert counts["clipped_values"] == 1


def test_an_ensemble_is_its_mean_minus_its_spread() -> None:
    """By hand: terms 2, -4 (mean -1, variance 9); terms 6 alone."""
    some = values(p=[(1.0, 4.0), (3.0, None)])
    found, counts = rewards(some, method="mean_minus_spread", spread_coefficient=0.5)
    assert found == {("p", 0): -1.0 - 0.5 * 3.0, ("p", 1): 6.0}
    assert counts == {"ensembles_of_one": 1}
    found, _ = rewards(some, method="mean_minus_spread", spread="variance", spread_coefficient=0.5)
    assert found["p", 0] == -1.0 - 0.5 * 9.0


def test_what_the_evaluation_combines_has_no_z_scores_and_none_of_their_bounds() -> None:
    assert CombineConfig(normalize="z_score", clip=(-1, 1)).across_models == CombineConfig()
    clipped = CombineConfig(clip=(-1, 1))
    assert clipped.across_models == clipped
    assert (
        CombineConfig(normalize="z_score", clip=(-1, 1)).unit == "weighted sum of clipped z-scores"
    )


@pytest.mark.parametrize(
    ("combine", "said"),
    [
        ({"clip": [1.0, 1.0]}, "the first bound is below the second"),
        ({"clip": [float("nan"), 1.0]}, "finite number"),
        ({"spread_coefficient": 2.0}, "is for `method: mean_minus_spread`"),
        ({"method": "mean_minus_spread"}, "is for an ensemble"),
        ({"methud": "sum"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_mean_nothing_are_refused(combine: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelingConfig.model_validate({"reward": {"function": "m:f"}, "combine": combine})


def test_people_are_not_combined() -> None:
    with pytest.raises(ValidationError, match="`combine` is for rewards, and people label"):
        LabelingConfig.model_validate({"people": {}, "combine": {"normalize": "z_score"}})


def test_preferences_have_combined_rewards_and_count_how(make_candidate) -> None:
    candidates = [make_candidate("p", k) for k in range(3)]
    scores = [
        {**{key: row[key] for key in ("prompt_id", "candidate")}, "scorer": scorer, "value": value}
        for row, of in zip(candidates, [(1.0, 0.0), (3.0, 0.0), (2.0, None)], strict=True)
        for scorer, value in zip("ab", of, strict=True)
    ]
    combine = CombineConfig(normalize="z_score", clip=(-1.0, 1.0))
    labels = Labels(PairsConfig(builder="all_pairs"), WEIGHTS, 0, 0, combine=combine)
    result = label_part(labels, candidates, scores)
    [row] = table_from_rows(result.rows, PREFERENCES).to_pylist()
    assert row["rewards"] == [-2.0, 2.0, 0.0]
    assert [(pair["chosen"], pair["rejected"]) for pair in row["pairs"]] == [(1, 0), (2, 0), (1, 2)]
    assert result.counts["clipped_values"] == 2
    assert result.counts["z_scores_of_equal_values"] == 1
