"""The data's chosen completion against the sampled candidates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.job import ModelConfig, PairsConfig
from raydpo.core.tables import PREFERENCES, Row, table_from_rows
from raydpo.labeling.data_chosen import DataChosen, chosen_text
from raydpo.labeling.preferences import Labels, label_part
from raydpo.prompts.rows import RefusedRow

MODEL = ModelConfig(path=str(Path(__file__).parents[3] / "assets" / "review-lm"))
CHOSEN = " was superb and moving."


def labels(**pairs: Any) -> Labels:
    config = PairsConfig(builder="data_chosen", **pairs)
    return Labels(config, {"s": 1.0}, 0, 0, data=DataChosen.of(config, MODEL))


def prompt_rows(make: Callable[..., Row], prompt_id: str, chosen: Any, **changes: Any) -> list[Row]:
    metadata = json.dumps({"chosen": chosen})
    return [make(prompt_id, k, metadata=metadata, **changes) for k in range(3)]


def scores_of(candidates: list[Row]) -> list[Row]:
    return [
        {
            "prompt_id": row["prompt_id"],
            "candidate": row["candidate"],
            "scorer": "s",
            "value": float(row["candidate"]),
            "rationale": None,
        }
        for row in candidates
    ]


def test_the_datas_completion_wins_over_each_sampled_candidate(
    make_candidate: Callable[..., Row],
) -> None:
    of = labels()
    assert of.data is not None
    tokenizer = of.data.encoder.tokenizer
    candidates = prompt_rows(make_candidate, "p", CHOSEN)
    result = label_part(of, candidates, scores_of(candidates))
    table_from_rows(result.rows, PREFERENCES)
    [row] = result.rows
    ids = row["completions"][0]
    assert tokenizer.decode(ids[:-1]) == CHOSEN
    assert ids[-1] == tokenizer.eos_token_id
    assert row["completion_texts"][0] == CHOSEN
    assert row["completions"][1:] == [one["completion_ids"] for one in candidates]
    assert [(pair["chosen"], pair["rejected"]) for pair in row["pairs"]] == [(0, 1), (0, 2), (0, 3)]
    assert {pair["probability"] for pair in row["pairs"]} == {None}
    assert (row["ranking"], row["rewards"]) == (None, None)
    assert (result.counts["pairs"], result.counts["soft_labels"]) == (3, 0)


def test_a_candidate_that_equals_the_datas_completion_is_no_pair(
    make_candidate: Callable[..., Row],
) -> None:
    of = labels(max_per_prompt=1)
    assert of.data is not None
    candidates = prompt_rows(make_candidate, "p", CHOSEN)
    same = of.data.candidate(candidates[0])
    assert same is not None
    candidates[1]["completion_ids"] = same["completion_ids"]
    result = label_part(of, candidates, scores_of(candidates))
    assert (result.counts["identical"], result.counts["above_max_per_prompt"]) == (1, 1)
    [pair] = result.rows[0]["pairs"]
    assert pair["chosen"] == 0
    assert pair["rejected"] in (1, 3)


def test_prompts_without_a_chosen_completion_are_counted_and_unusable_ones_quarantined(
    make_candidate: Callable[..., Row],
) -> None:
    candidates = prompt_rows(make_candidate, "a", None)
    candidates += prompt_rows(make_candidate, "b", "too long " * 20)
    candidates += prompt_rows(make_candidate, "c", {"score": 1})
    candidates += prompt_rows(make_candidate, "d", CHOSEN)
    result = label_part(labels(max_chosen_tokens=16), candidates, scores_of(candidates))
    assert [row["group_id"] for row in result.rows] == ["d"]
    assert result.counts["groups_without_chosen"] == 1
    assert result.counts["candidates_in_groups_without_pairs"] == 3
    reasons = {row["id"]: row["reason"] for row in result.quarantined}
    assert set(reasons) == {f"{name}/{k}" for name in "bc" for k in range(3)}
    assert "labeling.pairs.max_chosen_tokens" in reasons["b/0"]
    assert "neither text nor messages" in reasons["c/2"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("  ", None),
        ([], None),
        (" fine", " fine"),
        ([{"role": "assistant", "content": "Good."}], "Good."),
        ([{"role": "user", "content": "So?"}, {"role": "assistant", "content": "Good."}], "Good."),
    ],
)
def test_chosen_completions_are_texts_or_the_last_message(value: Any, text: str | None) -> None:
    assert chosen_text(value) == text


@pytest.mark.parametrize("value", [7, {"a": 1}, ["a"], [{"role": "user", "content": "So?"}]])
def test_anything_else_is_no_completion(value: Any) -> None:
    with pytest.raises(RefusedRow):
        chosen_text(value)
